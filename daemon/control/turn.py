"""The turn: read, reconcile, plan, perform, record. ``now`` is read once.

* Killed anywhere and run again, it comes to the same end.
* A data plane that does not answer stops what touches it; monitors and records go on.
* A journal that does not verify stops every act: what cannot be recorded truly is not done.
* The catch-all here is one of two in the house (the other is the panel's): a turn that raised is journalled
  and the next one runs.
"""

import logging
import threading
from collections.abc import Callable

from daemon.control.book import Book
from daemon.control.jobs import Jobs
from daemon.control.law import Law
from daemon.control.performer import Performer
from daemon.control.sensors import Sensors
from daemon.control.shadows import Shadows
from daemon.control.targets.target import Observed, Target, Unreachable
from daemon.ops.metrics import ControlMetrics
from daemon.store.samples import Samples
from policies import rules
from policies.errors import InstarError, PermanentError, TamperError
from policies.lifecycle import Stage
from policies.plan import Plan, plan
from policies.probation import Step
from policies.status import Blocked
from policies.terms import Level, Signal
from policies.world import Candidate, Kind, RowCounts, World

log = logging.getLogger(__name__)

Hook = Callable[[str], None]


def _step(candidate: Candidate | None) -> Step | None:
    """Return the step that a candidate on probation has taken last."""
    return candidate.step if candidate is not None and candidate.stage is Stage.PROBATION else None


def _no_hook(_place: str) -> None:
    """Do nothing between two acts; tests kill the turn here."""


class Turn:
    """One decision after another over the same world."""

    def __init__(
        self,
        book: Book,
        law: Law,
        jobs: Jobs,
        shadows: Shadows,
        sensors: Sensors,
        samples: Samples,
        link: Target,
        performer: Performer,
        metrics: ControlMetrics,
        hook: Hook = _no_hook,
    ) -> None:
        self._book = book
        self._law = law
        self._jobs = jobs
        self._shadows = shadows
        self._sensors = sensors
        self._samples = samples
        self._link = link
        self._performer = performer
        self._metrics = metrics
        self._hook = hook
        self.lock = threading.RLock()
        self.signals: tuple[Signal, ...] = ()
        self.blocked: tuple[Blocked, ...] = ()
        self.rows = RowCounts(train=0, search=0, gate=0)
        self.observed: Observed | None = None
        self.serving = "not asked yet"
        self.journal_valid: bool | None = None
        self.verified_at: float | None = None

    def run(self) -> Plan | None:
        """Run one turn; return its plan, or None when it could not be made."""
        with self.lock:
            now = self._book.clock.now()
            try:
                return self._run(now)
            except Exception as error:
                log.exception("turn failed")
                self.blocked = (
                    Blocked(what="the last turn failed", why=repr(error)[:500], remedy="see instard's log"),
                )
                self._record_failure(error)
                return None

    def verify(self) -> None:
        """Verify the journal's chain; a broken one stops every act."""
        found = self._book.journal.verify()
        self.journal_valid = found.valid
        self.verified_at = self._book.clock.now()
        if not found.valid:
            log.critical("the journal does not verify at entry %s: %s", found.seq, found.reason)

    def _run(self, now: float) -> Plan | None:
        self._sense(now)
        if self.journal_valid is False:
            self.blocked = (
                Blocked(
                    what="every act is blocked",
                    why="the journal does not verify",
                    remedy="instar audit verify; restore a verified backup",
                ),
            )
            return None
        unreachable = self._reconcile()
        world = self._world()
        decided = plan(world, self._law.policy, now)
        blocked = list(decided.blocked)
        for act in decided.acts:
            self._hook(f"before {type(act).__name__}")
            try:
                self._performer.perform(act, now)
            except Unreachable as error:
                unreachable = str(error)
            self._hook(f"after {type(act).__name__}")
        if unreachable is not None:
            blocked.insert(
                0,
                Blocked(
                    what="the data plane",
                    why=unreachable,
                    remedy="systemctl status instar-serve, or the server that --target names",
                ),
            )
        self.blocked = tuple(blocked)
        return decided

    def _sense(self, now: float) -> None:
        ledger = self._book.ledger
        live = None if ledger.live is None else ledger.live.generation
        self._sensors.follow(live)
        step = _step(ledger.open_candidate)
        self._sensors.compare(None if step is None else step.since)
        self._sensors.read()
        self.signals = self._sensors.assess(now)
        for signal in self.signals:
            self._metrics.monitor(signal)
            if ledger.levels.get(signal.monitor, Level.QUIET.value) != signal.level.value:
                self._book.write(
                    "signal",
                    monitor=signal.monitor,
                    level=signal.level.value,
                    score=signal.score,
                    reason=signal.reason,
                )
                log.info("monitor=%s level=%s: %s", signal.monitor, signal.level, signal.reason)
        watch = self._sensors.watch
        if watch is not None and watch.calibrated and watch.generation not in ledger.references:
            facts = next((s.facts for s in self.signals if s.monitor == "drift"), {})
            self._book.write(
                "reference.sealed",
                generation=watch.generation,
                rows=watch.reference_rows,
                arl0=facts.get("arl0"),
            )

    def _reconcile(self) -> str | None:
        """Bring the data plane in line; return why it could not be, or None."""
        try:
            self._performer.reconcile()
            self.observed = self._link.observed()
            self.serving = "ok" if self.observed.ready else (self.observed.problem or "no model yet")
        except Unreachable as error:
            self.observed, self.serving = None, "unreachable"
            return str(error)
        except PermanentError as error:
            self.serving = str(error)
            self._refused(str(error))
            return str(error)
        return None

    def _refused(self, why: str) -> None:
        """Act on a wish that the data plane refuses: whose bytes were at fault?

        A newcomer that can no longer be loaded loses its place. When the live generation itself is not
        served, the newcomer is not to blame, and a person is called.
        """
        live = self._book.ledger.live
        stable = self._link.observed().stable
        if live is not None and (stable is None or stable.generation != live.generation):
            self._performer.page(f"the data plane refuses generation {live.generation}, which is live", why)
            return
        candidate = self._book.ledger.open_candidate
        if candidate is None or candidate.kind is Kind.FOUNDING:
            return
        if candidate.stage is Stage.STAGED:
            self._book.move(candidate, Stage.ABANDONED, why)
        elif candidate.stage is Stage.PROBATION:
            self._book.move(candidate, Stage.ROLLED_BACK, why, cause="data_plane")

    def _world(self) -> World:
        ledger = self._book.ledger
        candidate = ledger.open_candidate
        trigger = ledger.trigger
        since = 0.0 if trigger is None else rules.change_since(trigger)
        counts = self._samples.counts(since)
        self.rows = RowCounts(train=counts.train, search=counts.search, gate=counts.gate)
        live = None if ledger.live is None else ledger.live.generation
        generation = None if candidate is None else candidate.generation
        on_probation = _step(candidate) is not None
        return World(
            policy=self._law.digest,
            frozen=ledger.frozen,
            live=ledger.live,
            last_generation=ledger.last_generation,
            candidates=tuple(ledger.candidates.values()),
            trigger=trigger,
            search=self._jobs.search_job(),
            judge=self._jobs.panel_job(),
            shadow=self._shadows.job(),
            signals=self.signals,
            rows=self.rows,
            swaps=tuple(ledger.swaps),
            spent=tuple(ledger.spent),
            splits=self._link.abilities.splits,
            newcomer=self._sensors.arm(generation) if on_probation else None,
            incumbent=self._sensors.arm(live) if on_probation else None,
        )

    def _record_failure(self, error: Exception) -> None:
        try:
            if isinstance(error, TamperError):
                self.verify()  # was it the journal, or only something that a worker left?
            self._performer.page(f"a turn failed: {type(error).__name__}", repr(error)[:500])
        except InstarError as second:
            log.error("the failed turn could not be journalled: %s", second)
