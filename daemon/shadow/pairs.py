"""Inputs that were sampled, each with the answer that its client was given: the spool's two halves, joined.

* Only rows of one generation that it answered, at or after a moment; an answer that is not finite is none.
* A row is given out once, in the order in which its later half came.
* It begins with the newest segment of each kind, so that a long spool is not read for rows that are too old.
* What waits for its other half is bounded: the oldest is forgotten first.

Called by ``contest``. It writes nothing and never waits; the data plane does not know that it is read.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monitors.spool import Block, Cursor, Kind, SpoolReader
from policies.telemetry import OUTCOMES

MOST_WAITING = 20_000
MOST_WAITING_BYTES = 64 << 20
_ROWS_A_READ = 5_000
_OK = OUTCOMES.index("ok")


@dataclass(frozen=True, slots=True)
class Pair:
    """One row: its input, without the batch, and the class that the client was told."""

    x: NDArray[Any]
    told: int


def newest(folder: Path, kind: Kind) -> Cursor:
    """Return a cursor before the newest segment of a kind."""
    name = re.compile(rf"{kind}-([0-9]{{12}})\.seg")
    found = (name.fullmatch(path.name) for path in folder.iterdir()) if folder.is_dir() else ()
    return Cursor(max((int(match[1]) for match in found if match), default=0), 0)


class Pairs:
    """Joined rows of ``generation`` since a moment (seconds since the epoch)."""

    def __init__(self, spool: Path, generation: int, since: float) -> None:
        self._generation, self._since = generation, since
        self._inputs = SpoolReader(spool, "samples", newest(spool, "samples"))
        self._answers = SpoolReader(spool, "telemetry", newest(spool, "telemetry"))
        self._x: dict[bytes, NDArray[Any]] = {}
        self._told: dict[bytes, int] = {}

    def read(self) -> list[Pair]:
        """Return rows that have become whole since the last call; none when all is read and none has."""
        while True:
            blocks = [reader.read(_ROWS_A_READ)[0] for reader in (self._inputs, self._answers)]
            found = [pair for block in blocks if block is not None for pair in self._join(block)]
            self._forget()
            if found or all(block is None for block in blocks):
                return found

    def _join(self, block: Block) -> list[Pair]:
        rows = block[(block["at"] >= self._since) & (block["generation"] == self._generation)]
        names = rows.dtype.names or ()
        if "input" in names:
            # A copy: a row must not hold the block that it came in.
            self._x |= {
                key.tobytes(): x.copy() for key, x in zip(rows["row_key"], rows["input"], strict=True)
            }
        else:
            rows = rows[(rows["outcome"] == _OK) & np.isfinite(rows["logits"]).all(axis=1)]
            told = rows["logits"].argmax(axis=1).tolist()
            self._told |= {key.tobytes(): top for key, top in zip(rows["row_key"], told, strict=True)}
        return self._whole(rows)

    def _whole(self, rows: Block) -> list[Pair]:
        keys = [key.tobytes() for key in rows["row_key"]]
        both = [key for key in dict.fromkeys(keys) if key in self._x and key in self._told]
        return [Pair(self._x.pop(key), self._told.pop(key)) for key in both]

    def _forget(self) -> None:
        size = next(iter(self._x.values())).nbytes if self._x else 1
        most = min(MOST_WAITING, max(1, MOST_WAITING_BYTES // max(1, size)))
        for waiting, kept in ((self._x, most), (self._told, MOST_WAITING)):
            while len(waiting) > kept:
                del waiting[next(iter(waiting))]
