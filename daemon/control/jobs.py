"""The search and the panel at work: started, found again, charged, and their answers taken back.

* Everything that comes back is checked against its digest before it is believed.
* The journal is written before a worker starts, so that a killed control plane knows what it began.
"""

import logging
import os
import shutil
from pathlib import Path

from pydantic import ValidationError

from daemon.control import answers, workers
from daemon.control.book import Book
from daemon.control.briefs import Briefs
from daemon.control.law import Law
from daemon.control.ledger import OpenSearch
from daemon.control.shadows import shadow_folder
from daemon.control.workers import Allowance, Worker
from daemon.store.blobs import Blobs
from daemon.store.samples import Samples
from policies.case import PanelResult
from policies.errors import TamperError
from policies.lifecycle import Stage
from policies.terms import Brief, Task, Trigger
from policies.wire import canonical
from policies.world import Candidate, Job, JobState

log = logging.getLogger(__name__)

_SEARCH_ATTEMPTS = 3
_KEPT_FOLDERS = 24


class Jobs:
    """The search and the panel that are at work, at most one of each."""

    def __init__(
        self, task: Task, law: Law, book: Book, blobs: Blobs, samples: Samples, folder: Path, seed: int
    ) -> None:
        self._law = law
        self._book = book
        self._blobs = blobs
        self._briefs = Briefs(task, law, book, blobs, samples, seed)
        self._folder = folder
        self._seed = seed
        self.off_cpus: frozenset[int] = frozenset()
        self._search: Worker | None = None
        self._panel: tuple[str, Worker] | None = None

    # -- search -----------------------------------------------------------------------------------------

    def start_search(self, trigger: Trigger) -> None:
        """Write the brief, journal the intent, start the worker."""
        number = self._book.ledger.searches + 1
        name = f"search-{number}"
        seed = self._seed * 1000 + number
        folder = self._folder / name
        folder.mkdir(parents=True, exist_ok=True)
        brief = self._briefs.brief(name, trigger, seed, folder)
        (folder / "brief.json").write_bytes(canonical(brief))
        self._begin(name, trigger, seed, attempt=1, charged=0.0, budget=brief.budget_cpu_s)

    def recover(self) -> None:
        """Find the workers that a former control plane left; start again what was lost."""
        now = self._book.clock.monotonic()
        opened = self._book.ledger.search
        if opened is not None:
            self._search = workers.find(
                self._folder / opened.id, "result.json", self._search_allowance(), now
            )
            if self._search is None:
                self._restart(opened)
        candidate = self._book.ledger.open_candidate
        if candidate is not None and candidate.stage is Stage.EXPORTED:
            found = workers.find(self._panel_folder(candidate.id), "panel.json", self._panel_allowance(), now)
            if found is not None:
                self._panel = (candidate.id, found)

    def search_job(self) -> Job | None:
        """Return how the open search stands."""
        opened = self._book.ledger.search
        if opened is None:
            return None
        if self._search is None:
            state, detail, cpu_s = JobState.FAILED, "its worker is lost", opened.charged_cpu_s
        else:
            state = self._search.poll(self._book.clock.monotonic())
            detail, cpu_s = self._search.ended or "", self._search.cpu_s + opened.charged_cpu_s
        return Job(
            id=opened.id,
            kind="search",
            state=state,
            started_at=opened.started_at,
            attempts=opened.attempts,
            cpu_s=cpu_s,
            detail=detail,
        )

    def end_search(self, reason: str, now: float) -> None:
        """End the open search's worker, charge it and close it; its trigger ends with it."""
        if self._search is not None:
            self._search.stop()
        self.close_search("failed", reason, now)

    def close_search(
        self, outcome: str, reason: str, now: float, *, architectures: int = 0, cpu_s: float = 0.0
    ) -> None:
        """Charge the open search and close it.

        Args:
            outcome: ``done`` or ``failed``.
            reason: In a sentence.
            now: The turn's moment.
            architectures: How many it looked at.
            cpu_s: What the worker says it used, its checkpoint's part included.
        """
        job = self.search_job()
        trigger = self._book.ledger.trigger
        if job is None or trigger is None:
            return
        self._book.write(
            "search.ended",
            id=job.id,
            outcome=outcome,
            reason=reason,
            kind=trigger.kind.value,
            cpu_s=round(max(job.cpu_s, self._total_cpu_s(cpu_s)), 3),
            wall_s=round(now - job.started_at, 3),
            architectures=architectures,
            caged=None if self._search is None else self._search.caged,
        )
        log.info("search=%s outcome=%s cpu_s=%.1f: %s", job.id, outcome, job.cpu_s, reason)
        self._search = None

    def adopt(self, now: float) -> None:
        """Take the winner in as a candidate; charge the search.

        Raises:
            TamperError: A file is not what the result says of it.
        """
        opened, trigger = self._book.ledger.search, self._book.ledger.trigger
        if opened is None or trigger is None:
            return
        out = self._folder / opened.id / "out"
        result = answers.search_result(out)
        if result.brief != opened.id:
            raise TamperError(f"expected a result of {opened.id} in {out}, got one of {result.brief}")
        number = opened.id.rpartition("-")[2]
        name = f"c{number}-{result.bundle.digest[7:13]}"
        if name not in self._book.ledger.candidates:
            accuracy = answers.accuracy(result)
            state = self._blobs.put(answers.checked(out, result.state))
            archive = self._blobs.put(answers.checked(out, result.archive))
            try:
                record = self._briefs.record(name, trigger, result, now)
            except ValueError as error:
                raise TamperError(f"expected a genome of the parent's space, got {error}") from error
            self._book.write(
                "candidate.moved",
                candidate=name,
                **{"from": None, "to": Stage.PROPOSED.value},
                reason=f"{opened.id} looked at {result.architectures} architectures",
                record=record.model_dump(mode="json"),
                state=state,
                archive=archive,
                accuracy=accuracy,
                search=opened.id,
            )
            log.info("candidate=%s stage=PROPOSED generation=None: by %s", name, opened.id)
        self.close_search(
            "done", "a candidate was found", now, architectures=result.architectures, cpu_s=result.cpu_s
        )

    def export(self, candidate: Candidate) -> None:
        """Take the candidate's bytes in under their digest, or abandon it."""
        out = self._search_out(candidate)
        try:
            raw = answers.checked(out, answers.search_result(out).bundle)
        except TamperError as error:
            self._book.move(candidate, Stage.ABANDONED, str(error))
            return
        digest = self._blobs.put(raw)
        self._book.move(candidate, Stage.EXPORTED, f"{len(raw)} bytes, {digest}", bundle=digest)

    # -- panel ------------------------------------------------------------------------------------------

    def start_panel(self, candidate: Candidate) -> None:
        """Write the case, journal the intent, start the guard worker."""
        attempt = self._book.ledger.judge_attempts.get(candidate.id, 0) + 1
        folder = self._panel_folder(candidate.id)
        folder.mkdir(parents=True, exist_ok=True)
        case = self._briefs.case(candidate, answers.search_result(self._search_out(candidate)), folder)
        path = folder / "case.json"
        path.write_bytes(canonical(case))
        self._book.write("judge.started", candidate=candidate.id, attempt=attempt)
        log.info("candidate=%s stage=%s attempt=%d: the panel sits", candidate.id, candidate.stage, attempt)
        worker = workers.start(
            "guards", path, folder, "panel.json", self._panel_allowance(), self._book.clock
        )
        self._panel = (candidate.id, worker)

    def panel_job(self) -> Job | None:
        """Return how the panel stands."""
        candidate = self._book.ledger.open_candidate
        if self._panel is None or candidate is None or self._panel[0] != candidate.id:
            return None
        worker = self._panel[1]
        state = worker.poll(self._book.clock.monotonic())
        attempts = self._book.ledger.judge_attempts.get(candidate.id, 1)
        if state is JobState.FAILED and candidate.id not in self._book.ledger.judge_failed:
            self._book.write("judge.failed", candidate=candidate.id, reason=worker.ended or "")
        return Job(
            id=candidate.id,
            kind="panel",
            state=state,
            started_at=candidate.since,
            attempts=max(1, attempts),
            cpu_s=worker.cpu_s,
            detail=worker.ended or "",
        )

    def panel_result(self, candidate: Candidate) -> tuple[PanelResult, bytes]:
        """Return the panel's verdicts and its report.

        Raises:
            TamperError: A file is not what the panel says of it.
        """
        return answers.panel_result(self._panel_folder(candidate.id) / "out", candidate.id)

    def prune(self) -> int:
        """Forget the oldest folders of jobs that are over; return how many."""
        busy = {"" if self._book.ledger.search is None else self._book.ledger.search.id}
        candidate = self._book.ledger.open_candidate
        if candidate is not None:
            busy |= {self._search_out(candidate).parent.name, self._panel_folder(candidate.id).name}
            busy.add(shadow_folder(self._folder, candidate.id).name)
        folders = sorted(self._folder.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)
        gone = [path for path in folders[_KEPT_FOLDERS:] if path.name not in busy]
        for path in gone:
            shutil.rmtree(path)
            self._briefs.gate_path(path.name.removeprefix("panel-")).unlink(missing_ok=True)
        return len(gone)

    def stop(self) -> None:
        """End the workers; an ordered stop of the daemon does, a crash does not."""
        for worker in (self._search, self._panel[1] if self._panel else None):
            if worker is not None:
                worker.stop()

    # -- parts ------------------------------------------------------------------------------------------

    def _begin(
        self, name: str, trigger: Trigger, seed: int, *, attempt: int, charged: float, budget: float
    ) -> None:
        folder = self._folder / name
        kept = answers.used_cpu_s(folder / "out" / "checkpoint" / "checkpoint.json")
        self._book.write(
            "search.started",
            id=name,
            trigger=trigger.id,
            kind=trigger.kind.value,
            seed=seed,
            attempt=attempt,
            charged_cpu_s=charged,
            # Never more than is charged: what a worker wrote cannot make a search cheaper.
            resumed_cpu_s=min(charged, kept),
            budget_cpu_s=budget,
        )
        log.info("search=%s trigger=%s attempt=%d budget_cpu_s=%.0f", name, trigger.id, attempt, budget)
        self._search = workers.start(
            "search",
            folder / "brief.json",
            folder,
            "result.json",
            self._search_allowance(),
            self._book.clock,
        )

    def _restart(self, opened: OpenSearch) -> None:
        """Begin a lost search again from its brief, charging what it had used."""
        trigger = self._book.ledger.trigger
        path = self._folder / opened.id / "brief.json"
        if trigger is None or opened.attempts >= _SEARCH_ATTEMPTS:
            return
        try:
            brief = Brief.model_validate_json(path.read_bytes())
        except (OSError, ValidationError) as error:
            log.warning("search=%s is lost with its brief: %s", opened.id, error)
            return
        used = self._total_cpu_s(answers.used_cpu_s(path.parent / "out" / "progress.json"))
        self._begin(
            opened.id,
            trigger,
            opened.seed,
            attempt=opened.attempts + 1,
            charged=used,
            budget=brief.budget_cpu_s,
        )

    def _total_cpu_s(self, said_cpu_s: float) -> float:
        """Return what all attempts of the open search used, by what its worker says of the last one."""
        opened = self._book.ledger.search
        if opened is None:
            return said_cpu_s
        # A search that went on from a checkpoint counts on from there, and that part is charged already.
        return opened.charged_cpu_s + max(0.0, said_cpu_s - opened.resumed_cpu_s)

    def _search_out(self, candidate: Candidate) -> Path:
        number = candidate.id.partition("-")[0].removeprefix("c")
        return self._folder / f"search-{number}" / "out"

    def _panel_folder(self, candidate: str) -> Path:
        return self._folder / f"panel-{candidate}"

    def _search_allowance(self) -> Allowance:
        clause = self._law.policy.modification_protocol.search
        founding = self._book.ledger.live is None
        budget = clause.founding_cpu_s if founding else clause.budget_cpu_s
        # The worker keeps its own budget; twice that, from outside, is for one that does not.
        return Allowance(
            cpu_s=2 * budget + 30,
            memory_bytes=clause.max_memory_bytes,
            wall_s=clause.timeout_s,
            threads=max(1, os.cpu_count() or 1) if founding else clause.threads,
            off_cpus=self.off_cpus,
        )

    def _panel_allowance(self) -> Allowance:
        panel = self._law.policy.modification_protocol.evaluation.panel
        wall = panel.timeout_s * (len(panel.required) + 1) * panel.attempts
        return Allowance(cpu_s=wall, memory_bytes=4_000_000_000, wall_s=wall, threads=1)
