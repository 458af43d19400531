"""What the camera saw of the service: its requests as arrays, and the numbers that the table needs of them.

Every time is in seconds since the epoch, and is when a request was due: a request that waited in the client
because the server stalled has waited. Pure but for ``load``.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from policies.errors import PermanentError

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
Span = tuple[float, float]

_LINE_BYTES = 160
_FIELDS = ("n", "at", "ms", "status", "generation", "right", "level")


@dataclass(frozen=True)
class Share:
    """How many of how many."""

    right: int
    n: int

    @property
    def value(self) -> float | None:
        """The share, or None of nothing."""
        return self.right / self.n if self.n else None


@dataclass(frozen=True)
class Footage:
    """Requests in the order in which they were due; ``generation`` 0 is no answer."""

    n: npt.NDArray[np.int64]
    at: Floats
    ms: Floats
    generation: npt.NDArray[np.int64]
    right: Mask
    level: Floats

    @classmethod
    def load(cls, path: Path) -> "Footage":
        """Read the camera's log; a last line that is not whole yet is left for the next time.

        Raises:
            PermanentError: A line is not the camera's.
        """
        raw = path.read_bytes() if path.is_file() else b""
        return cls._parse(raw.rpartition(b"\n")[0].splitlines(), path)

    @classmethod
    def load_last(cls, path: Path, requests: int) -> "Footage":
        """Read the last whole lines alone, up to ``requests`` of them.

        Raises:
            PermanentError: A line is not the camera's.
        """
        if not path.is_file():
            return cls._parse([], path)
        with path.open("rb") as file:
            start = max(0, file.seek(0, os.SEEK_END) - requests * _LINE_BYTES)
            file.seek(start)
            lines = file.read().rpartition(b"\n")[0].splitlines()
        # The first line after a jump into the middle of the file is not whole.
        return cls._parse(lines[1 if start else 0 :][-requests:], path)

    @classmethod
    def _parse(cls, lines: list[bytes], path: Path) -> "Footage":
        try:
            records = [json.loads(line) for line in lines]
            rows = sorted(tuple(record[name] for name in _FIELDS) for record in records)
        except (ValueError, KeyError, TypeError) as error:
            raise PermanentError(f"expected the camera's requests in {path}, got {error!r}") from error
        n, at, ms, status, generation, right, level = zip(*rows, strict=True) if rows else ((),) * 7
        answered = np.array(
            [g if s == 200 and g else 0 for g, s in zip(generation, status, strict=True)], np.int64
        )
        return cls(
            n=np.array(n, np.int64),
            at=np.array(at, np.float64),
            ms=np.array(ms, np.float64),
            generation=answered,
            right=np.array(right, np.bool_),
            level=np.array(level, np.float64),
        )

    @property
    def sent(self) -> int:
        """Requests that were sent and ended, one way or the other."""
        return len(self.n)

    @property
    def failed(self) -> int:
        """Requests without an answer of a model."""
        return int((self.generation == 0).sum())

    @property
    def unrecorded(self) -> int:
        """Requests before the last one of which there is no record."""
        return int(self.n.max()) + 1 - self.sent if self.sent else 0

    @property
    def drifted_at(self) -> float | None:
        """When the first request with any drift was due."""
        drifted = self.at[self.level > 0]
        return float(drifted[0]) if len(drifted) else None

    def within(self, *spans: Span) -> Mask:
        """Return which requests were due in any of the spans."""
        chosen = np.zeros(self.sent, np.bool_)
        for first, last in spans:
            chosen |= (self.at >= first) & (self.at < last)
        return chosen

    def accuracy(self, chosen: Mask) -> Share:
        """Return how many of the chosen answers were right; requests without one do not count."""
        answered = chosen & (self.generation > 0)
        return Share(int((self.right & answered).sum()), int(answered.sum()))

    def latency_ms(self, chosen: Mask) -> tuple[float, float] | None:
        """Return median and 99th percentile of the chosen, or None of fewer than 100."""
        times = self.ms[chosen]
        if len(times) < 100:
            return None
        p50, p99 = np.percentile(times, (50, 99))
        return float(p50), float(p99)

    def count(self, first: float, last: float) -> int:
        """Return how many requests were due between two moments."""
        return int(self.within((first, last)).sum())
