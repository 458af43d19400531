"""Time, passed in.

Below ``daemon/`` nobody reads a clock: ``now`` is an argument. The shell reads it through a ``Clock``,
so that a test can stand still.
"""

import time
from typing import Protocol


class Clock(Protocol):
    """Two readings: the wall for records, the monotonic for durations."""

    def now(self) -> float:
        """Return seconds since the epoch, UTC."""
        ...

    def monotonic(self) -> float:
        """Return seconds that never go back."""
        ...


class SystemClock:
    """The machine's own clocks."""

    def now(self) -> float:
        """Return seconds since the epoch, UTC."""
        return time.time()

    def monotonic(self) -> float:
        """Return seconds that never go back."""
        return time.monotonic()


class StandingClock:
    """A clock that moves only when told; for tests and replays."""

    def __init__(self, now: float = 1_800_000_000.0) -> None:
        self._now = now
        self._monotonic = 0.0

    def now(self) -> float:
        """Return seconds since the epoch, UTC."""
        return self._now

    def monotonic(self) -> float:
        """Return seconds that never go back."""
        return self._monotonic

    def advance(self, seconds: float) -> None:
        """Move both readings forward by ``seconds`` (>= 0)."""
        if seconds < 0:
            raise ValueError(f"expected seconds >= 0, got {seconds}")
        self._now += seconds
        self._monotonic += seconds
