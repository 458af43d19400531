"""Proofs: what is known of a bundle after it has answered its own golden rows on this host.

* Digest, metadata, contract and goldens are checked by the very code that instar-serve loads with.
* Only facts are kept, no session: nothing is served from here.

Called by the targets whose server is not ours, and by the intake of telemetry.
"""

from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

from daemon.serving.slot import build
from policies.bundle import BundleMeta

_KEPT = 16


@dataclass(frozen=True)
class Proof:
    """A proven bundle; ``embedding`` is the width of its embedding output."""

    digest: str
    meta: BundleMeta
    embedding: int


class Proofs:
    """Proves each bundle of one model once, and remembers the latest."""

    def __init__(self, blobs: Path, model: str) -> None:
        self._blobs = blobs
        self._model = model
        self._kept: OrderedDict[str, Proof] = OrderedDict()

    def of(self, digest: str) -> Proof:
        """Return what is known of a bundle; the first time takes tens of milliseconds.

        Raises:
            PermanentError: Its bytes are missing, altered, of another model, or do not give their goldens.
        """
        if digest not in self._kept:
            slot = build(self._blobs, self._model, 1, digest, 1)
            self._kept[digest] = Proof(digest, slot.meta, slot.embedding)
        self._kept.move_to_end(digest)
        while len(self._kept) > _KEPT:
            self._kept.popitem(last=False)
        return self._kept[digest]
