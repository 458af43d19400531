"""One line of the table: what was measured, what was wanted, what stood beside it.

Every script here returns rows; ``table`` prints them and keeps them. A figure is a median with its ends: what
the seeds (or repeats) gave at least and at most, and how many there were.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any


@dataclass(frozen=True)
class Figure:
    """A median, the least and the greatest of ``n`` values.

    >>> str(Figure.of([3.0, 1.0, 20.0]))
    '3 (1 to 20)'
    """

    median: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Figure":
        """Return the figure of some values; at least one."""
        return cls(float(median(values)), float(min(values)), float(max(values)), len(values))

    @classmethod
    def told(cls, record: Mapping[str, float]) -> "Figure":
        """Return the figure of what a peer's script says (``peers/figures.py``)."""
        return cls(record["median"], record["min"], record["max"], int(record["repeats"]))

    def __str__(self) -> str:
        middle = number(self.median)
        return middle if self.n == 1 else f"{middle} ({number(self.low)} to {number(self.high)})"


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Args:
        what: What was measured, in words.
        target: What was wanted, in words; empty where nothing was.
        ours: What Instar gave.
        unit: Of all figures of the row.
        peers: What stood beside it in the same run, by name.
        ratio: Ours against a peer, in words.
        met: Whether the target was met; None where none was set.
        note: What a reader must know to read the figures rightly.
    """

    what: str
    target: str
    ours: Figure
    unit: str
    peers: Mapping[str, Figure] = field(default_factory=dict)
    ratio: str = ""
    met: bool | None = None
    note: str = ""

    @property
    def verdict(self) -> str:
        """Return the judgement in a word."""
        return {True: "met", False: "**missed**", None: ""}[self.met]

    @classmethod
    def read(cls, record: Mapping[str, Any]) -> "Row":
        """Return a row from its JSON (``dataclasses.asdict``)."""
        peers = {name: Figure(**one) for name, one in record["peers"].items()}
        return cls(**{**record, "ours": Figure(**record["ours"]), "peers": peers})


def number(value: float) -> str:
    """Return a number with four digits that count.

    >>> number(0.123456), number(12.0), number(123456.7), number(0.0)
    ('0.1235', '12', '123,457', '0')
    """
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"


def times(one: Figure, other: Figure, words: str) -> str:
    """Return a ratio of medians in words.

    >>> times(Figure.of([10.0]), Figure.of([2.0]), "of a peer")
    '5 x of a peer'
    """
    return f"{number(float(f'{one.median / other.median:.3g}'))} x {words}"
