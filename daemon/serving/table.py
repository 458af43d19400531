"""The table: who serves which request, as one immutable fact that is swapped by one store.

* ``stable`` answers unless the newcomer's share takes the request; without a stable slot nobody answers.
* Sticky: the same request id goes to the same slot while the newcomer stays.
* Monotone: as the share grows, no request moves back from the newcomer to the stable slot.
* A pinned version is served while it is stable, or the newcomer has a share. A newcomer that is only staged
  has no traffic at all, and the previous slot is only kept warm.

Read by ``batcher.py`` once a batch, written by ``keeper.py`` alone. Does not know HTTP.
"""

import hashlib
from dataclasses import dataclass

from daemon.serving.slot import Slot

BUCKETS = 10_000


def bucket(salt: str, request_id: str) -> int:
    """Return the routing bucket of a request, in [0, 10000), even over ids and independent between salts.

    >>> bucket("meter-reader/2", "a"), bucket("meter-reader/3", "a")
    (8, 1115)
    """
    digest = hashlib.blake2b(f"{salt}\n{request_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % BUCKETS


@dataclass(frozen=True, slots=True)
class Table:
    """What is served at one moment. ``exit_confidence``: at which a row leaves a network early."""

    model: str
    stable: Slot | None = None
    newcomer: Slot | None = None
    share: float = 0.0
    previous: Slot | None = None
    exit_confidence: float | None = None

    def route(self, request_id: str) -> Slot | None:
        """Return the slot that answers a request that names no version; None when nothing is ready."""
        if self.stable is None or self.newcomer is None:
            return self.stable
        salt = f"{self.model}/{self.newcomer.generation}"
        return self.newcomer if bucket(salt, request_id) < round(self.share * BUCKETS) else self.stable

    def version(self, generation: str) -> Slot | None:
        """Return the slot of a pinned version, as spelled in the path; None when it is not served."""
        for slot in self.open():
            if str(slot.generation) == generation:
                return slot
        return None

    def open(self) -> list[Slot]:
        """Return the slots that take traffic, stable first."""
        newcomer = self.newcomer if self.share > 0.0 else None
        return [slot for slot in (self.stable, newcomer) if slot is not None]

    def slots(self) -> list[Slot]:
        """Return the loaded slots, stable first."""
        return [slot for slot in (self.stable, self.newcomer, self.previous) if slot is not None]
