"""Clock jumps: the wall against the monotonic clock.

After a backward step APScheduler waits until wall time catches up, and ``wakeup()`` does not help;
re-anchoring every job does (APScheduler #339, #351, #752).
"""

from datetime import UTC, datetime, timedelta

from apscheduler.schedulers.base import BaseScheduler

from policies.clock import Clock


class JumpGuard:
    """Compares the two clocks from one look to the next."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._wall = clock.now()
        self._steady = clock.monotonic()

    def check(self) -> float:
        """Return by how many seconds the wall clock jumped since the last look; backward is negative."""
        wall, steady = self._clock.now(), self._clock.monotonic()
        jump = (wall - self._wall) - (steady - self._steady)
        self._wall, self._steady = wall, steady
        return jump


def reanchor(scheduler: BaseScheduler, now: float) -> None:
    """Have every interval job run next one interval from now."""
    moment = datetime.fromtimestamp(now, UTC)
    for job in scheduler.get_jobs():
        interval: timedelta = job.trigger.interval
        job.modify(next_run_time=moment + interval)
