"""The acts, performed: one small method an act, each safe to perform again.

* What changes traffic for the better is recorded before it is visible; ``reconcile`` makes it visible.
* A candidate that cannot be staged is tried a few times, then abandoned: it never had traffic.
"""

import logging
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

from daemon.control.book import Book
from daemon.control.jobs import Jobs
from daemon.control.law import Law
from daemon.control.shadows import Shadows
from daemon.control.state import wanted
from daemon.control.targets.target import Target
from daemon.store.blobs import Blobs
from policies import acts, shadow
from policies.clearance import clear
from policies.errors import PermanentError, TamperError, TemporaryError
from policies.lifecycle import Stage
from policies.terms import Deployment, Dossier, Finding
from policies.wire import canonical, digest_bytes
from policies.world import Candidate

log = logging.getLogger(__name__)

_STAGE_ATTEMPTS = 3


class Performer:
    """Performs acts; everything it knows is passed in."""

    def __init__(
        self,
        book: Book,
        law: Law,
        jobs: Jobs,
        shadows: Shadows,
        blobs: Blobs,
        link: Target,
        model: str,
        reports: Path,
    ) -> None:
        self._reports = reports
        self._shadows = shadows
        self._book = book
        self._law = law
        self._jobs = jobs
        self._blobs = blobs
        self._link = link
        self._model = model
        self._paged: set[str] = set()
        self._refused: tuple[str, int] | None = None
        self._table: dict[type, Callable[[Any, float], None]] = {
            acts.OpenTrigger: self._open_trigger,
            acts.LapseTrigger: self._lapse_trigger,
            acts.StartSearch: lambda act, _now: self._jobs.start_search(act.trigger),
            acts.AdoptSearch: self._adopt,
            acts.CloseSearch: lambda act, now: self._jobs.end_search(act.reason, now),
            acts.Export: lambda act, _now: self._jobs.export(self._candidate(act.candidate)),
            acts.Judge: self._judge,
            acts.Seal: self._seal,
            acts.Move: self._move,
            acts.StageSlot: self._stage,
            acts.StartShadow: lambda act, _now: self._shadows.start(self._candidate(act.candidate)),
            acts.SealShadow: self._seal_shadow,
            acts.EndShadow: self._end_shadow,
            acts.BeginProbation: self._begin_probation,
            acts.TakeStep: self._take_step,
            acts.Promote: self._promote,
            acts.Revert: self._revert,
            acts.Retire: self._retire,
            acts.Page: lambda act, _now: self.page(act.what, act.why),
        }

    def perform(self, act: acts.Act, now: float) -> None:
        """Perform one act.

        Raises:
            TemporaryError: The data plane does not answer; the next turn plans the act again.
        """
        self._table[type(act)](act, now)

    def reconcile(self) -> None:
        """Have the data plane serve what the ledger says, if it does not yet.

        Raises:
            TemporaryError: It does not answer.
            PermanentError: It refuses the wanted state, and serves what it served.
        """
        target = self._wanted()
        observed = self._link.observed()
        if target.stable is None and target.newcomer is None and observed.stable is None:
            return
        if not observed.matches(target):
            self._apply(target)

    def page(self, what: str, why: str) -> None:
        """Call a person, once for the same thing."""
        if what in self._paged:
            return
        self._book.write("page", what=what, why=why)
        self._paged.add(what)
        log.error("page: %s: %s", what, why)

    # -- triggers and searches --------------------------------------------------------------------------

    def _open_trigger(self, act: acts.OpenTrigger, _now: float) -> None:
        trigger = act.trigger
        self._book.write(
            "trigger",
            id=trigger.id,
            kind=trigger.kind.value,
            reason=trigger.reason,
            clause=trigger.clause,
            trigger=trigger.model_dump(mode="json"),
        )
        log.info("trigger=%s clause=%s: %s", trigger.id, trigger.clause, trigger.reason)

    def _lapse_trigger(self, act: acts.LapseTrigger, _now: float) -> None:
        self._book.write("trigger.lapsed", id=act.trigger, reason=act.reason)
        log.info("trigger=%s lapsed: %s", act.trigger, act.reason)

    def _adopt(self, _act: acts.AdoptSearch, now: float) -> None:
        try:
            self._jobs.adopt(now)
        except TamperError as error:
            self._jobs.close_search("failed", str(error), now)

    # -- candidates -------------------------------------------------------------------------------------

    def _candidate(self, name: str) -> Candidate:
        return self._book.ledger.candidates[name]

    def _judge(self, act: acts.Judge, _now: float) -> None:
        candidate = self._candidate(act.candidate)
        try:
            self._jobs.start_panel(candidate)
        except TamperError as error:
            self._book.move(candidate, Stage.ABANDONED, str(error))

    def _seal(self, act: acts.Seal, now: float) -> None:
        candidate = self._candidate(act.candidate)
        ledger = self._book.ledger
        try:
            result, report = self._jobs.panel_result(candidate)
        except TamperError as error:
            self._book.move(candidate, Stage.ABANDONED, str(error))
            return
        if candidate.bundle is None:
            raise ValueError(f"expected an exported bundle on {candidate.id}")
        baseline = None if ledger.baseline is None else ledger.candidates[ledger.baseline].bundle
        dossier = Dossier(
            candidate=candidate.id,
            bundle=candidate.bundle,
            incumbent=None if ledger.live is None else ledger.live.bundle,
            baseline=baseline,
            policy=self._law.digest,
            trigger=candidate.trigger,
            genome=candidate.genome,
            verdicts=result.verdicts,
            report=self._blobs.put(report),
            sealed_at=now,
            nonce=secrets.token_hex(16),
        )
        self._show(candidate.id, report)
        raw = canonical(dossier)
        digest = self._blobs.put(raw)
        findings = {verdict.guard: verdict.finding.value for verdict in result.verdicts}
        self._book.write(
            "dossier.sealed",
            candidate=candidate.id,
            digest=digest,
            report=dossier.report,
            findings=findings,
            verdicts=[verdict.model_dump(mode="json") for verdict in result.verdicts],
        )
        panel = self._law.policy.modification_protocol.evaluation.panel
        clearance = clear(result.verdicts, panel, founding=dossier.incumbent is None)
        to = Stage.CLEARED if clearance.outcome == "cleared" else Stage.REJECTED
        passed = sum(v.finding is Finding.PASS for v in result.verdicts)
        log.info("candidate=%s verdicts=%d passed=%d", candidate.id, len(result.verdicts), passed)
        self._book.move(self._candidate(candidate.id), to, clearance.reason)

    def _show(self, name: str, report: bytes) -> None:
        """Write the report under a name that a person finds; the blob is the record."""
        self._reports.mkdir(parents=True, exist_ok=True)
        temporary = self._reports / f".{name}.tmp"
        temporary.write_bytes(report)
        temporary.replace(self._reports / f"{name}.html")

    def _move(self, act: acts.Move, _now: float) -> None:
        self._book.move(self._candidate(act.candidate), act.to, act.reason)

    def _stage(self, act: acts.StageSlot, _now: float) -> None:
        candidate = self._candidate(act.candidate)
        target = self._wanted(staging=(candidate.id, act.generation))
        try:
            self._apply(target)
        except PermanentError as error:
            self._book.write("stage.failed", candidate=candidate.id, reason=str(error))
            failures = self._book.ledger.stage_failures[candidate.id]
            log.warning("candidate=%s could not be staged (%d): %s", candidate.id, failures, error)
            if failures >= _STAGE_ATTEMPTS:
                reason = f"not staged in {failures} attempts: {error}"
                self._book.move(self._candidate(candidate.id), Stage.ABANDONED, reason)
            return
        self._book.move(
            candidate, Stage.STAGED, "self-tested and warm, no traffic yet", generation=act.generation
        )

    def _seal_shadow(self, act: acts.SealShadow, _now: float) -> None:
        candidate = self._candidate(act.candidate)
        try:
            result = self._shadows.result(candidate)
        except TamperError as error:
            self._end(candidate, str(error))
            return
        verdict = shadow.judge(result, self._law.policy.modification_protocol.shadow)
        self._book.write(
            "shadow.judged",
            candidate=candidate.id,
            finding=verdict.finding.value,
            reason=verdict.reason,
            **result.model_dump(mode="json", exclude={"candidate"}),
        )
        log.info("candidate=%s shadow=%s: %s", candidate.id, verdict.finding.value, verdict.reason)

    def _end_shadow(self, act: acts.EndShadow, _now: float) -> None:
        self._end(self._candidate(act.candidate), act.reason)

    def _end(self, candidate: Candidate, reason: str) -> None:
        """Abandon a newcomer that nobody could show to be fit, and call a person."""
        self._book.move(candidate, Stage.ABANDONED, reason)
        self.page(f"candidate {candidate.id} was abandoned before it had traffic", reason)

    def _begin_probation(self, act: acts.BeginProbation, now: float) -> None:
        candidate = self._candidate(act.candidate)
        self._book.move(candidate, Stage.PROBATION, f"begins with {100 * act.share:g} % of the traffic")
        step = acts.TakeStep(
            candidate=act.candidate, number=1, of=act.of, share=act.share, reason="probation begins"
        )
        self._take_step(step, now)

    def _take_step(self, act: acts.TakeStep, _now: float) -> None:
        self._book.write(
            "probation.step",
            candidate=act.candidate,
            step=act.number,
            of=act.of,
            share=act.share,
            reason=act.reason,
        )
        log.info(
            "candidate=%s step=%d of=%d share=%g: %s",
            *(act.candidate, act.number, act.of, act.share, act.reason),
        )
        self.reconcile()

    def _promote(self, act: acts.Promote, _now: float) -> None:
        self._book.move(self._candidate(act.candidate), Stage.LIVE, act.reason)
        self.reconcile()

    def _revert(self, act: acts.Revert, _now: float) -> None:
        self._book.move(self._candidate(act.candidate), Stage.ROLLED_BACK, act.reason, cause="probation")
        self.reconcile()
        if act.page:
            self.page(f"candidate {act.candidate} was rolled back", act.reason)

    def _retire(self, act: acts.Retire, _now: float) -> None:
        self._book.move(self._candidate(act.candidate), Stage.RETIRED, act.reason)

    # -- the data plane ---------------------------------------------------------------------------------

    def _wanted(self, staging: tuple[str, int] | None = None) -> Deployment:
        threshold = self._law.policy.modification_protocol.exits.threshold
        return wanted(self._book.ledger, self._model, staging, threshold)

    def _apply(self, target: Deployment) -> None:
        plain = target.model_dump(mode="json", exclude={"revision"})
        digest = digest_bytes(canonical(plain))
        if self._refused is not None and self._refused[0] == digest:
            # The same wish was refused or not answered before: it is not written again every second.
            self._link.apply(target.model_copy(update={"revision": self._refused[1]}))
            seq = self._refused[1]
        else:
            seq = self._book.write("deploy.intent", deployment=plain, digest=digest).seq
            try:
                self._link.apply(target.model_copy(update={"revision": seq}))
            except TemporaryError:
                # Devices take their time: the same wish is asked again, under the same revision.
                self._refused = (digest, seq)
                raise
            except PermanentError as error:
                self._refused = (digest, seq)
                self._book.write("deploy.refused", revision=seq, reason=str(error))
                raise
        self._refused = None
        self._book.write("deploy.done", revision=seq)
