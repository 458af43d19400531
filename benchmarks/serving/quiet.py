"""Who else had the processors while something was measured, and the calmest of a few tries.

* ``others`` are cores: what all processors did for programs, less what the measured server and the load
  generator had. Interrupts are left out; those of the loopback belong to both.
* A try in which others had more than ``LIMIT`` is made again, at most ``TRIES`` times, and the one that they
  disturbed least is kept: the choice looks at them, never at the result.
"""

import os
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

LIMIT, TRIES = 0.15, 3

# user, nice, system and steal: proc_stat(5), fields of the line "cpu".
_PROGRAMS = (0, 1, 2, 7)


class Disturbed(Protocol):
    """A result that knows how many cores others had."""

    @property
    def others(self) -> float:
        """Return the cores."""
        ...


Result = TypeVar("Result", bound=Disturbed)


@dataclass(frozen=True)
class Watch:
    """The processors' work at a moment, and ours."""

    at: float
    busy_s: float
    ours_s: float

    @classmethod
    def start(cls) -> "Watch":
        """Return this moment's."""
        return cls(time.monotonic(), programs_s(Path("/proc/stat").read_text()), _ours_s())

    def others(self, server_s: float) -> float:
        """Return the cores that others had since then.

        Args:
            server_s: CPU-seconds of the measured server since then, where it is no ended child of ours.
        """
        now = Watch.start()
        lasted = max(now.at - self.at, 1e-9)
        others_s = (now.busy_s - self.busy_s) - (now.ours_s - self.ours_s) - server_s
        return max(0.0, others_s / lasted)


def programs_s(stat: str) -> float:
    """Return the CPU-seconds that all processors have worked for programs, from the text of ``/proc/stat``.

    >>> programs_s("cpu  100 20 30 900 5 6 7 50 0 0") * os.sysconf("SC_CLK_TCK")
    200.0
    """
    counts = stat.splitlines()[0].split()[1:]
    return sum(int(counts[place]) for place in _PROGRAMS) / os.sysconf("SC_CLK_TCK")


def calmest(measure: Callable[[], Result]) -> Result:
    """Return the first try that nobody disturbed, or the least disturbed one."""
    found: list[Result] = []
    for _ in range(TRIES):
        found.append(measure())
        if found[-1].others <= LIMIT:
            break
    return min(found, key=lambda one: one.others)


def _ours_s() -> float:
    """Return the CPU-seconds of this process and of its children that have ended."""
    both = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in both)
