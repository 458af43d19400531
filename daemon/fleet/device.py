"""A device beside its instar-serve: what it does every beat.

* Pull what was released, have it served, push telemetry, time what is asked when there is time, report.
  Each of these may fail without the others: a hub that is away stops nothing that is served here.
* A release is pulled when the hub names a newer one, and at least every ``REFRESH_S``: a statement that runs
  out without a newer one is a freeze, and reported.
* What was believed is given to instar-serve again while that does not serve it: it may have been restarted,
  or have refused for want of room.
* A hub that wants no more telemetry for a while still gets reports; a disk that refuses ends nothing.
* After a call that failed the hub is left alone for a while, longer each time, with some chance in it: a
  thousand devices do not come back at once.

Called by ``daemon.fleet.main``. The clock is passed in.
"""

import logging
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import httpx
from pydantic import ValidationError

from daemon.control.targets.target import Observed, Target, Unreachable
from daemon.fleet.caller import Busy, call
from daemon.fleet.hardware import hardware
from daemon.fleet.pusher import Pusher
from daemon.fleet.stopwatch import Stopwatch
from daemon.fleet.terms import Answer, Hardware, Report
from daemon.fleet.trust import Trust
from daemon.store.blobs import Blobs
from policies.clock import Clock
from policies.errors import PermanentError, TemporaryError, first_fault
from policies.terms import Deployment
from policies.wire import canonical

log = logging.getLogger(__name__)

REFRESH_S = 60.0
PIECES = 16
_LONGEST_WAIT_S = 60.0


@dataclass(frozen=True)
class Place:
    """Where a device's things lie: its state folder is that of its instar-serve."""

    state: Path

    @property
    def own(self) -> Path:
        """Return the device's own folder."""
        return self.state / "device"

    @property
    def blobs(self) -> Path:
        """Return where instar-serve finds bundles."""
        return self.state / "blobs"

    @property
    def spool(self) -> Path:
        """Return where instar-serve leaves telemetry."""
        return self.state / "spool"


class Device:
    """One device.

    Args:
        name: As in its certificate.
        place: Its folders.
        http: A client of the hub.
        serve: The local instar-serve.
        root: Its lane's first root, from enrolment.
        clock: For waiting and expiry.
        idle_rows_per_s: Below so many answered rows a second there is time for timings.
        report_s: How often it reports when nothing changes.
    """

    def __init__(
        self,
        name: str,
        place: Place,
        http: httpx.Client,
        serve: Target,
        root: bytes,
        clock: Clock,
        idle_rows_per_s: float,
        report_s: float,
    ) -> None:
        self._name = name
        self._http = http
        self._serve = serve
        self._clock = clock
        self._idle, self._report_s = idle_rows_per_s, report_s
        self._hardware: Hardware = hardware()
        self.trust = Trust(place.own, http, Blobs(place.blobs), root)
        self.pusher = Pusher(place.spool, place.own / "epoch.json", http, self._announced)
        self.stopwatch = Stopwatch(place.own / "timing", http, self.trust, name, clock.monotonic)
        self.wanted: Deployment | None = None
        self._refused: str | None = None
        self._disbelieved: str | None = None
        self._observed: Observed | None = None
        self._release, self._pulled = 0, -1
        self._refresh_at = self._report_at = self._call_at = self._push_at = 0.0
        self._failures = 0
        self._told = ""
        self._sent = b""
        self._job = False
        self._last = (clock.monotonic(), 0)

    def beat(self) -> None:
        """Do what is due."""
        now = self._clock.monotonic()
        reached = now >= self._call_at and self._reach(now, self._pull)
        self._have_served()
        if reached:
            self._reach(now, self._push, self._timings, self._report)

    def close(self) -> None:
        """End what is at work; what is served is served on."""
        self.stopwatch.stop()
        self._http.close()
        self._serve.close()

    # -- the hub ----------------------------------------------------------------------------------------

    def _reach(self, now: float, *acts: Callable[[float], object]) -> bool:
        """Do what needs the hub; return whether it answered. What it refuses stops nothing else."""
        try:
            for act in acts:
                try:
                    act(now)
                except (PermanentError, OSError) as error:
                    self._say(f"{act.__name__.removeprefix('_')}: {error}")
        except TemporaryError as error:
            self._failures += 1
            longest = min(_LONGEST_WAIT_S, 2.0 ** min(self._failures, 10))
            wait_s = max(error.retry_after_s, random.uniform(0.5, 1.0) * longest)
            self._call_at = now + wait_s
            self._say(f"the hub is left alone for a while: {error}")
            return False
        return True

    def _push(self, now: float) -> None:
        if now < self._push_at:
            return
        try:
            self.pusher.push(PIECES)
        except Busy as busy:
            self._push_at = now + busy.retry_after_s
            self._say(f"telemetry waits: {busy}")

    def _announced(self, release: int) -> None:
        self._release = max(self._release, release)

    def _pull(self, now: float) -> None:
        if self._release == self._pulled and now < self._refresh_at:
            return
        release = self._release
        self._refresh_at = now + REFRESH_S
        try:
            wanted = self.trust.pull()
        except PermanentError as error:
            self._disbelieved = str(error)[:1000]
            raise
        self._pulled = release
        if wanted != self.wanted:
            log.info("release=%d revision=%s believed", release, wanted and wanted.revision)
            self.wanted = wanted
        self._disbelieved = None

    def _report(self, now: float) -> None:
        revision = 0 if self.wanted is None else self.wanted.revision
        rows = self.pusher.sent_rows
        idle = not self.stopwatch.busy and self._quiet(now, rows)
        report = Report(
            observed=self._observed,
            revision=revision,
            problem=self._refused or self._disbelieved,
            idle=idle,
            lost_segments=self.pusher.lost_segments,
            hardware=self._hardware,
        )
        raw = canonical(report)
        # A change is told at once: control waits for it.
        if raw == self._sent and now < self._report_at:
            return
        try:
            answer = Answer.model_validate_json(call(self._http, "POST", "/v1/report", raw))
        except ValidationError as error:
            raise TemporaryError(f"expected an answer from the hub, got {first_fault(error)}", 5.0) from error
        self._sent, self._report_at = raw, now + self._report_s
        self._announced(answer.release)
        self._failures = 0
        self._job = answer.job and idle

    def _quiet(self, now: float, rows: int) -> bool:
        """Tell whether few rows were answered since the last look."""
        since, before = self._last
        if now - since >= 5.0:
            self._last = (now, rows)
        return rows - before <= self._idle * max(1.0, now - since)

    def _timings(self, _now: float) -> None:
        self.stopwatch.look()
        if self._job and not self.stopwatch.busy:
            self._job = False
            self.stopwatch.begin()

    # -- the local data plane ---------------------------------------------------------------------------

    def _have_served(self) -> None:
        """Look at what is served, and have served what was believed."""
        try:
            self._observed = self._serve.observed()
            wanted = self.wanted
            if wanted is None or self._is_served(wanted):
                self._refused = None
                return
            self._observed = self._serve.apply(wanted)
            self._refused = None
            log.info("revision=%d is served", wanted.revision)
            self.trust.forget(self._kept(wanted))
        except Unreachable as error:
            self._observed = None
            self._say(str(error))
        except PermanentError as error:
            self._refused = str(error)[:1000]
            self._say(self._refused)
        except OSError as error:
            self._say(f"blobs that are no longer served stay: {error}")

    def _is_served(self, wanted: Deployment) -> bool:
        observed = self._observed
        return observed is not None and observed.revision >= wanted.revision and observed.matches(wanted)

    def _kept(self, wanted: Deployment) -> frozenset[str]:
        slots = (wanted.stable, wanted.newcomer, wanted.previous)
        return frozenset(slot.bundle for slot in slots if slot is not None)

    def _say(self, text: str) -> None:
        if text != self._told:
            log.warning("%s", text)
            self._told = text
