"""The shadow at work: a newcomer that is run beside the traffic, in a process of its own.

* The journal is written before the worker starts, so that a killed control plane knows what it began; the
  worker outlives it, and the next start finds it again.
* A worker whose candidate is no longer staged has nothing to answer for, and is ended.
* What it counted is read with its bounds, and is believed only of the bundle that is staged.

It decides nothing: ``policies.shadow`` does.
"""

import logging
from pathlib import Path

from pydantic import ValidationError

from daemon.control import workers
from daemon.control.book import Book
from daemon.control.law import Law
from daemon.control.state import slot
from daemon.control.workers import Allowance, Worker
from policies.errors import TamperError
from policies.lifecycle import Stage
from policies.shadow import ShadowCase, ShadowResult
from policies.terms import Slot
from policies.wire import canonical
from policies.world import Candidate, Job, JobState

log = logging.getLogger(__name__)

RESULT = "shadow.json"
MEMORY_BYTES = 1_500_000_000
"""An interpreter, the runtime and two of the networks that a device can hold."""

_GRACE_S = 60.0
"""For loading two networks on a machine that has other things to do."""


def shadow_folder(jobs: Path, candidate: str) -> Path:
    """Return the folder of a candidate's shadow."""
    return jobs / f"shadow-{candidate}"


class Shadows:
    """The shadow that is at work, at most one."""

    def __init__(self, model: str, law: Law, book: Book, blobs: Path, spool: Path, folder: Path) -> None:
        self._model = model
        self._law = law
        self._book = book
        self._blobs = blobs
        self._spool = spool
        self._folder = folder
        self.off_cpus: frozenset[int] = frozenset()
        self._worker: tuple[str, Worker] | None = None
        self._failed: Worker | None = None

    def start(self, candidate: Candidate) -> None:
        """Write the case, journal the intent, start the worker."""
        live = self._book.ledger.live
        if live is None:
            raise ValueError(f"expected a live generation to run {candidate.id} beside, there is none")
        attempt = self._book.ledger.shadow_attempts.get(candidate.id, 0) + 1
        folder = shadow_folder(self._folder, candidate.id)
        folder.mkdir(parents=True, exist_ok=True)
        case = ShadowCase(
            candidate=candidate.id,
            model=self._model,
            blobs=str(self._blobs.resolve()),
            spool=str(self._spool.resolve()),
            newcomer=slot(candidate),
            incumbent=Slot(generation=live.generation, bundle=live.bundle),
            since=self._book.clock.now(),
            clause=self._law.policy.modification_protocol.shadow,
            exit_confidence=self._law.policy.modification_protocol.exits.threshold,
        )
        path = folder / "case.json"
        path.write_bytes(canonical(case))
        self._book.write(
            "shadow.started",
            candidate=candidate.id,
            attempt=attempt,
            generation=candidate.generation,
            beside=live.generation,
        )
        log.info(
            "candidate=%s attempt=%d: it runs beside generation %d", candidate.id, attempt, live.generation
        )
        worker = workers.start("daemon.shadow", path, folder, RESULT, self._allowance(), self._book.clock)
        self._worker = (candidate.id, worker)

    def recover(self) -> None:
        """Find the worker that a former control plane left."""
        candidate = self._book.ledger.open_candidate
        if candidate is None or candidate.stage is not Stage.STAGED:
            return
        if candidate.id not in self._book.ledger.shadow_attempts:
            return
        folder = shadow_folder(self._folder, candidate.id)
        found = workers.find(folder, RESULT, self._allowance(), self._book.clock.monotonic())
        if found is not None:
            self._worker = (candidate.id, found)

    def job(self) -> Job | None:
        """Return how the shadow stands; one that nobody waits for any more is ended."""
        if self._worker is None:
            return None
        name, worker = self._worker
        candidate = self._book.ledger.candidates[name]
        if candidate.stage is not Stage.STAGED:
            self.stop()
            return None
        state = worker.poll(self._book.clock.monotonic())
        if state is JobState.FAILED and self._failed is not worker:
            self._failed = worker
            self._book.write("shadow.failed", candidate=name, reason=worker.ended or "")
        return Job(
            id=name,
            kind="shadow",
            state=state,
            started_at=candidate.since,
            attempts=max(1, self._book.ledger.shadow_attempts.get(name, 1)),
            cpu_s=worker.cpu_s,
            detail=worker.ended or "",
        )

    def result(self, candidate: Candidate) -> ShadowResult:
        """Return what the worker counted.

        Raises:
            TamperError: There is no whole result, or it is of another candidate or other bytes.
        """
        out = shadow_folder(self._folder, candidate.id) / "out"
        try:
            result = ShadowResult.model_validate_json((out / RESULT).read_bytes())
        except (OSError, ValidationError) as error:
            raise TamperError(f"expected a shadow's result in {out}, got {error}") from error
        if (result.candidate, result.bundle) != (candidate.id, candidate.bundle):
            raise TamperError(
                f"expected a shadow of {candidate.id} with {candidate.bundle} in {out}, "
                f"got one of {result.candidate} with {result.bundle}"
            )
        return result

    def stop(self) -> None:
        """End the worker; an ordered stop of the daemon does, a crash does not."""
        if self._worker is not None:
            self._worker[1].stop()
            self._worker = None

    def _allowance(self) -> Allowance:
        # One thread: it cannot use more processor time than the time it is given.
        wall_s = self._law.policy.modification_protocol.shadow.max_s + _GRACE_S
        return Allowance(
            cpu_s=wall_s, memory_bytes=MEMORY_BYTES, wall_s=wall_s, threads=1, off_cpus=self.off_cpus
        )
