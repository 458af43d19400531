"""What control shows: status and candidates, composed from the ledger and the last turn. Decides nothing."""

import os
import shutil
from importlib.metadata import version
from pathlib import Path

from daemon.control.book import Book
from daemon.control.law import Law
from daemon.control.sensors import Sensors
from daemon.control.turn import Turn
from daemon.store.blobs import Blobs
from policies import limits
from policies.lifecycle import Stage
from policies.status import CandidateView, Status
from policies.terms import Level, Task
from policies.world import Candidate, Kind

_WORST = (Level.ALARM, Level.WARNING, Level.UNKNOWN, Level.QUIET)


class Views:
    """Read-only answers for the console and the socket."""

    def __init__(
        self, task: Task, book: Book, law: Law, turn: Turn, sensors: Sensors, blobs: Blobs, reports: Path
    ) -> None:
        self._task = task
        self._book = book
        self._law = law
        self._turn = turn
        self._sensors = sensors
        self._blobs = blobs
        self._reports = reports

    def status(self) -> Status:
        """Return the state of the task at this moment."""
        with self._turn.lock:
            return self._status()

    def candidates(self) -> list[CandidateView]:
        """Return every candidate, the latest first."""
        with self._turn.lock:
            found = sorted(self._book.ledger.candidates.values(), key=lambda c: c.since, reverse=True)
            return [self.candidate(candidate) for candidate in found]

    def candidate(self, candidate: Candidate) -> CandidateView:
        """Return one candidate, whole."""
        clause = self._law.policy.modification_protocol.approval
        waits = candidate.stage is Stage.CLEARED and candidate.sealed_at is not None
        return CandidateView(
            id=candidate.id,
            stage=candidate.stage.value,
            since=candidate.since,
            reason=candidate.reason,
            trigger=candidate.trigger,
            genome=candidate.genome,
            bundle=candidate.bundle,
            dossier=candidate.dossier,
            report=str(self.report_path(candidate)) if candidate.report else None,
            generation=candidate.generation,
            expires_at=(candidate.sealed_at or 0.0) + clause.window_s if waits else None,
            approvals=tuple(
                sorted(
                    {
                        a.principal
                        for a in candidate.approvals
                        if a.decision == "approve" and a.expires_at > self._book.clock.now()
                    }
                )
            ),
            quorum=clause.quorum,
            verdicts=candidate.verdicts,
            shadow=candidate.shadow,
            step=candidate.step,
        )

    def report_path(self, candidate: Candidate) -> Path:
        """Return where a candidate's report lies under a name that a person finds."""
        return self._reports / f"{candidate.id}.html"

    def report(self, name: str) -> bytes | None:
        """Return a candidate's report, checked against its digest."""
        with self._turn.lock:
            candidate = self._book.ledger.candidates.get(name)
            if candidate is None or candidate.report is None:
                return None
            return self._blobs.read(candidate.report)

    def history(self, after: int, limit: int, kind: str | None) -> list[dict[str, object]]:
        """Return journal entries in order."""
        kinds = None if kind is None else [kind]
        entries = self._book.journal.entries(after=after, limit=limit, kinds=kinds)
        return [
            {
                "seq": e.seq,
                "at": e.at,
                "kind": e.kind,
                "body": e.body,
                "prev": e.prev,
                "digest": e.digest,
            }
            for e in entries
        ]

    def phase(self) -> str:
        """Return one word for where the loop stands."""
        ledger = self._book.ledger
        candidate = ledger.open_candidate
        if candidate is not None:
            return {
                Stage.PROPOSED: "exporting",
                Stage.EXPORTED: "judging",
                Stage.CLEARED: "approval",
                Stage.APPROVED: "staging",
                Stage.STAGED: "shadow" if candidate.kind is Kind.ADAPTATION else "staging",
                Stage.PROBATION: "probation",
            }[candidate.stage]
        if ledger.search is not None:
            return "founding" if ledger.live is None else "searching"
        if ledger.live is None:
            return "founding"
        if ledger.trigger is not None:
            return "gathering"
        watch = self._sensors.watch
        return "watching" if watch is not None and watch.calibrated else "commissioning"

    def _status(self) -> Status:
        ledger = self._book.ledger
        now = self._book.clock.now()
        candidate = ledger.open_candidate
        protocol = self._law.policy.modification_protocol
        pace = self._law.policy.description_of_modifications.pace
        watch = self._sensors.watch
        levels = {signal.level for signal in self._turn.signals}
        observed = self._turn.observed
        return Status(
            at=now,
            task=self._task.name,
            model=self._task.model,
            generation=None if ledger.live is None else ledger.live.generation,
            bundle=None if ledger.live is None else ledger.live.bundle,
            stage=candidate.stage.value if candidate else (Stage.LIVE.value if ledger.live else None),
            phase=self.phase(),
            frozen=ledger.frozen,
            open_candidate=None if candidate is None else self.candidate(candidate),
            drift=next((level for level in _WORST if level in levels), Level.UNKNOWN),
            signals=self._turn.signals,
            reference_rows=0 if watch is None else watch.reference_rows,
            reference_needed=protocol.monitoring.drift.min_reference_rows,
            last_swap=ledger.swaps[-1] if ledger.swaps else None,
            blocked=self._turn.blocked,
            serving=self._turn.serving,
            newcomer_share=0.0 if observed is None else observed.newcomer_share,
            search_cpu_s_today=limits.spent_today(ledger.spent, now),
            search_cpu_s_budget=protocol.search.budget_cpu_s_per_day,
            swaps_today=limits.swaps_today(ledger.swaps, now),
            swaps_allowed=pace.swaps_per_day,
            policy=self._law.digest,
            policy_version=self._law.policy.version,
            policy_problem=self._law.problem,
            journal_entries=ledger.entries,
            journal_valid=self._turn.journal_valid,
            demo_key=self._law.demo_key,
            trust=self._law.trust,
            pid=os.getpid(),
            version=version("instar"),
        )

    def count_stages(self) -> dict[str, int]:
        """Return how many candidates stand in each stage."""
        counts = {stage.value: 0 for stage in Stage}
        for candidate in self._book.ledger.candidates.values():
            counts[candidate.stage.value] += 1
        return counts

    def pending_since(self) -> float | None:
        """Return since when the oldest candidate waits for approval."""
        waiting = [
            c.sealed_at
            for c in self._book.ledger.candidates.values()
            if c.stage is Stage.CLEARED and c.sealed_at is not None
        ]
        return min(waiting, default=None)

    def budget_used(self) -> float:
        """Return which share of the day's search budget is spent."""
        budget = self._law.policy.modification_protocol.search.budget_cpu_s_per_day
        return limits.spent_today(self._book.ledger.spent, self._book.clock.now()) / budget

    def free_bytes(self) -> int:
        """Return the free bytes of the disk that the state lies on."""
        return shutil.disk_usage(self._reports.parent).free
