"""One device class as the hub sees it: its releases, its devices, its telemetry, its timings.

* ``push`` answers when the records are durable: pushes that come within ``TICK_S`` share one commit, made in
  a thread, so that no disk holds the hub's loop.
* Two limits stand against too much: a device's bytes a second, and the bytes that wait for the monitors. What
  is above is refused with a time to wait, and the device keeps it.

Called by the hub's application, in its loop.
"""

import asyncio
import logging
from collections.abc import Callable

from daemon.fleet.desk import TimingDesk
from daemon.fleet.intake import Intake, Push
from daemon.fleet.releases import Releases
from daemon.fleet.roll import Lane
from daemon.fleet.roster import Roster
from daemon.fleet.terms import Position
from daemon.store.blobs import Blobs
from policies.errors import PermanentError, TemporaryError

log = logging.getLogger(__name__)

TICK_S = 0.05
BURST_S = 10.0
_WAITING_BYTES = 32 << 20


class Busy(TemporaryError):  # noqa: N818  a state of the world, not a mistake
    """More telemetry came than may wait."""


class HubLane:
    """What devices of one class meet at the hub."""

    def __init__(
        self,
        name: str,
        terms: Lane,
        releases: Releases,
        roster: Roster,
        intake: Intake,
        desk: TimingDesk,
        blobs: Blobs,
        monotonic: Callable[[], float],
    ) -> None:
        self.name = name
        self.releases = releases
        self.roster = roster
        self.intake = intake
        self.desk = desk
        self._blobs = blobs
        self._terms = terms
        self._monotonic = monotonic
        self._allowance = dict.fromkeys(terms.devices, (monotonic(), terms.device_bytes_per_s * BURST_S))
        self._waiting: list[tuple[Push, asyncio.Future[Position]]] = []
        self._waiting_bytes = 0
        self._commits: asyncio.Task[None] | None = None

    def may_fetch(self, digest: str) -> bool:
        """Tell whether devices may have a blob: what is released, and what is to be timed."""
        return digest in self.releases.digests or digest in self.desk.digests

    def blob(self, digest: str) -> bytes | None:
        """Return a blob that devices may have, or None.

        Raises:
            TamperError: It is not what its name says.
        """
        return self._blobs.read(digest) if self.may_fetch(digest) else None

    async def push(self, push: Push) -> Position:
        """Take a piece of a device's segment in; return the position after it, once it is durable.

        Raises:
            Busy: The device sends too fast, or the monitors are behind.
            PermanentError: The piece does not fit.
        """
        size = len(push.body)
        self._admit(push, size)
        future: asyncio.Future[Position] = asyncio.get_running_loop().create_future()
        self._waiting.append((push, future))
        self._waiting_bytes += size
        if self._commits is None:
            self._commits = asyncio.create_task(self._commit())
        position = await future
        self.roster.heard(push.device, size)
        return position

    def _admit(self, push: Push, size: int) -> None:
        now = self._monotonic()
        rate = self._terms.device_bytes_per_s
        since, left = self._allowance[push.device]
        # A single piece may be larger than the burst: it is let through when all of the burst is there.
        left = min(rate * BURST_S, left + (now - since) * rate)
        needed = min(size, rate * BURST_S)
        if left < needed:
            raise Busy(f"expected at most {rate} bytes a second of {push.device}", (needed - left) / rate)
        held = self.intake.held_bytes(push.kind) + self._waiting_bytes
        if held + size > self._terms.telemetry_bytes or self._waiting_bytes + size > _WAITING_BYTES:
            raise Busy(f"expected room for {size} bytes of lane {self.name}, {held} wait to be read", 5.0)
        self._allowance[push.device] = (now, left - needed)

    async def _commit(self) -> None:
        try:
            while self._waiting:
                await asyncio.sleep(TICK_S)
                batch, self._waiting, self._waiting_bytes = self._waiting, [], 0
                try:
                    await self._commit_batch(batch)
                finally:
                    # Whatever went wrong: nobody is left waiting, devices ask again.
                    for _, future in batch:
                        future.cancel()
        finally:
            self._commits = None

    async def _commit_batch(self, batch: list[tuple[Push, asyncio.Future[Position]]]) -> None:
        answers: list[Position | PermanentError | TemporaryError]
        try:
            answers = [*await asyncio.to_thread(self.intake.commit, [push for push, _ in batch])]
        except OSError as error:
            log.error("lane=%s the disk refuses telemetry; devices keep it: %s", self.name, error)
            answers = [Busy(f"the hub's disk refuses: {error.strerror}", 10.0)] * len(batch)
        for (_, future), answer in zip(batch, answers, strict=True):
            # A device that hung up meanwhile gets its answer from the position that it asks for next.
            if future.cancelled():
                continue
            if isinstance(answer, Position):
                future.set_result(answer)
            else:
                future.set_exception(answer)
