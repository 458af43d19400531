"""Which devices of a lane there are, when they were last heard of, and what they said last.

* Only the fleet file's names. What is not said again is forgotten with the process: devices report often.
* A device that was never heard of counts as heard of at the start: it is waited for as long as one that fell
  silent then.

Read by the lane's link, its timings and the console; written by the hub. Safe between threads.
"""

import threading
from dataclasses import dataclass

from daemon.fleet.terms import Report
from policies.clock import Clock


@dataclass(frozen=True, slots=True)
class Seen:
    """A device as it is known now."""

    name: str
    silent_s: float
    report: Report | None
    received_bytes: int


class Roster:
    """The devices of one lane."""

    def __init__(self, names: tuple[str, ...], clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._heard = dict.fromkeys(names, clock.monotonic())
        self._reports: dict[str, Report] = {}
        self._bytes = dict.fromkeys(names, 0)

    def heard(self, name: str, received_bytes: int = 0) -> None:
        """Note that a device is there."""
        self._heard[name] = self._clock.monotonic()
        self._bytes[name] += received_bytes

    def report(self, name: str, report: Report) -> None:
        """Take a device's report in."""
        with self._lock:
            self._heard[name] = self._clock.monotonic()
            self._reports[name] = report

    def seen(self) -> list[Seen]:
        """Return all devices, as the fleet file has them."""
        now = self._clock.monotonic()
        with self._lock:
            return [
                Seen(name, now - heard, self._reports.get(name), self._bytes[name])
                for name, heard in self._heard.items()
            ]
