"""When things happen: the turn, the journal's verification, the monitors' snapshot, housekeeping, the clock.

The schedule is in memory and made anew at every start, from the settings: a pickled job store deletes what it
cannot restore. A job never runs twice at once, and a missed run is made up once.
"""

import logging
from collections.abc import Callable

from apscheduler.events import EVENT_JOB_SUBMITTED, JobSubmissionEvent
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.interval import IntervalTrigger

from daemon.ops.jumps import JumpGuard, reanchor
from daemon.ops.metrics import ControlMetrics
from policies.clock import Clock

log = logging.getLogger(__name__)

VERIFY_S = 60.0
SNAPSHOT_S = 5.0
GUARD_S = 1.0
HOUSEKEEPING_S = 60.0
JUMP_S = 2.0


class Schedule:
    """The daemon's own clockwork."""

    def __init__(self, clock: Clock, metrics: ControlMetrics, on_jump: Callable[[float], None]) -> None:
        self._clock = clock
        self._guard = JumpGuard(clock)
        self._metrics = metrics
        self._on_jump = on_jump
        self._scheduler = BackgroundScheduler(timezone="UTC")
        self.last_run: dict[str, float] = {}

    def every(self, seconds: float, name: str, job: Callable[[], object]) -> None:
        """Run ``job`` every so many seconds, never beside itself."""

        def run() -> None:
            outcome = "error"
            try:
                job()
                outcome = "ok"
            finally:
                self.last_run[name] = self._clock.monotonic()
                self._metrics.scheduler_run(name, outcome)

        self._scheduler.add_job(
            run,
            IntervalTrigger(seconds=seconds, timezone="UTC"),
            id=name,
            max_instances=1,
            coalesce=True,
            misfire_grace_time=None,
        )

    def start(self) -> None:
        """Start the clockwork, with its own guard."""
        self.every(GUARD_S, "clock", self._check_clock)
        self._scheduler.add_listener(self._measure_lag, EVENT_JOB_SUBMITTED)
        self._scheduler.start()

    def stop(self) -> None:
        """Stop after the jobs that run have ended."""
        self._scheduler.shutdown(wait=True)

    def _measure_lag(self, event: JobSubmissionEvent) -> None:
        due = max(moment.timestamp() for moment in event.scheduled_run_times)
        self._metrics.scheduler_lag(event.job_id, max(0.0, self._clock.now() - due))

    def _check_clock(self) -> None:
        jump = self._guard.check()
        if abs(jump) > JUMP_S:
            # After a backward step the scheduler would wait until time catches up.
            reanchor(self._scheduler, self._clock.now())
            self._metrics.clock_jump(jump)
            self._on_jump(jump)
