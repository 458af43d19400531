"""Clock jumps: the wall against the monotonic clock.

After a backward step APScheduler waits until wall time catches up, and ``wakeup()`` does not help;
re-anchoring every job does (APScheduler #339, #351, #752). After a forward step one coalesced run is made up.

Who looks, how often, and from how many seconds on it is a jump, is the caller's.
"""

from datetime import UTC, datetime

from apscheduler.schedulers.base import BaseScheduler
from apscheduler.triggers.date import DateTrigger
from apscheduler.triggers.interval import IntervalTrigger

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
    """Give every job its next run as if it were scheduled at ``now``.

    An interval job runs one interval from now, a calendar job at its next date. A job for one moment keeps
    its moment, and a paused job stays paused.
    """
    moment = datetime.fromtimestamp(now, UTC)
    for job in scheduler.get_jobs():
        if job.next_run_time is None or isinstance(job.trigger, DateTrigger):
            continue
        if isinstance(job.trigger, IntervalTrigger):
            # Asked itself, it would answer with the moment it was made, which may lie in the future now.
            job.modify(next_run_time=moment + job.trigger.interval)
        else:
            job.modify(next_run_time=job.trigger.get_next_fire_time(None, moment))
