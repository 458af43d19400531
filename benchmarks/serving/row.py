"""One line of the serving table: what was measured, what was wanted, what stood beside it.

* A figure is a median with its ends (``benchmarks/search/row.py``); ``ours`` is what is held against the
  target. Where it is a ratio, the median is that of the runs' own ratios, so that a noisy run spoils itself
  alone.
* Three answers: met, missed, not measured. A row that could not be measured has no figure, and its note says
  why; it is never left out and never counted as met.
* A part of the table is a module of this folder with ``measure(runs, quick) -> list[Row]``.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from benchmarks.search.row import Figure, number, times

__all__ = ["Figure", "Row", "at_least", "at_most", "number", "times"]


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Args:
        what: What was measured, in words.
        target: What was wanted, in words; empty where nothing was.
        ours: What Instar gave; None where it could not be measured.
        unit: Of all figures of the row.
        peers: What stood beside it in the same run, by name.
        ratio: Ours against a peer, in words.
        met: Whether the target was met; None where none was set, or nothing was measured.
        note: What a reader must know to read the figures rightly; why nothing was measured.
    """

    what: str
    target: str
    ours: Figure | None
    unit: str
    peers: Mapping[str, Figure] = field(default_factory=dict)
    ratio: str = ""
    met: bool | None = None
    note: str = ""

    def __post_init__(self) -> None:
        if self.ours is None and (self.met is not None or not self.note):
            raise ValueError(f"expected of {self.what!r}, which has no figure, a note that says why")

    @property
    def verdict(self) -> str:
        """Return the judgement in a word."""
        if self.ours is None:
            return "not measured"
        return {True: "met", False: "**missed**", None: ""}[self.met]

    @property
    def measured(self) -> str:
        """Return the figure in words."""
        return "–" if self.ours is None else str(self.ours)

    @classmethod
    def read(cls, record: Mapping[str, Any]) -> "Row":
        """Return a row from its JSON (``dataclasses.asdict``)."""
        peers = {name: Figure(**one) for name, one in record["peers"].items()}
        ours = None if record["ours"] is None else Figure(**record["ours"])
        return cls(**{**record, "ours": ours, "peers": peers})


def at_least(ours: Figure, floor: float) -> bool:
    """Tell whether a figure's median reaches a floor.

    >>> at_least(Figure.of([0.8, 0.7, 0.1]), 0.7)
    True
    """
    return ours.median >= floor


def at_most(ours: Figure, ceiling: float) -> bool:
    """Tell whether a figure's median stays within a ceiling.

    >>> at_most(Figure.of([0.8, 0.7, 0.1]), 0.6)
    False
    """
    return ours.median <= ceiling
