"""What is told of a row that another server answered, and how it goes over the wire.

* A record of an answered row has logits, embedding, and the input or the five numbers that sum it up: without
  them instard could not tell a drift, and does not guess.
* A batch speaks of one generation, and is small enough for instard: ``batches`` splits accordingly, keeping
  the order within a generation.
"""

import base64
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

MOST_RECORDS = 500
MOST_BYTES = 2_000_000
COLOURS = 3


@dataclass(frozen=True, slots=True)
class Record:
    """One row. Make it with ``answered`` or ``failed``."""

    id: str
    generation: int
    outcome: str
    latency_ms: float
    group: str | None = None
    batch: int = 1
    logits: tuple[float, ...] | None = None
    embedding: tuple[float, ...] | None = None
    summary: tuple[float, ...] | None = None
    input: bytes | None = None

    @classmethod
    def answered(
        cls,
        id: str,  # noqa: A002  the protocol's word
        generation: int,
        latency_ms: float,
        logits: Sequence[float],
        embedding: Sequence[float],
        *,
        input: bytes | None = None,  # noqa: A002
        summary: Sequence[float] | None = None,
        group: str | None = None,
        batch: int = 1,
    ) -> "Record":
        """Return the record of a row that was answered.

        Args:
            id: The request's id; a label that comes later names it.
            generation: The version that answered.
            latency_ms: From the request's arrival to its answer.
            logits: The model's output ``logits`` of this row.
            embedding: The model's output ``embedding`` of this row.
            input: The row's raw bytes, little-endian in C order; kept as a sample.
            summary: Instead of the input: see ``summarise``.
            group: Equal for near-duplicates; the id, if None.
            batch: How many rows ran together.

        Raises:
            ValueError: Neither or both of input and summary.
        """
        if (input is None) == (summary is None):
            raise ValueError("expected either input or summary, got neither or both")
        return cls(
            id,
            generation,
            "ok",
            latency_ms,
            group,
            batch,
            tuple(map(float, logits)),
            tuple(map(float, embedding)),
            None if summary is None else tuple(map(float, summary)),
            input,
        )

    @classmethod
    def failed(
        cls,
        id: str,  # noqa: A002
        generation: int,
        latency_ms: float,
        outcome: str,
        *,
        group: str | None = None,
    ) -> "Record":
        """Return the record of a row without an answer.

        Args:
            id: The request's id.
            generation: The version that failed, 0 when none was chosen.
            latency_ms: From the request's arrival to its end.
            outcome: ``error``, ``timeout``, ``shed``, ``client_error`` or ``not_finite``.
            group: Equal for near-duplicates; the id, if None.

        Raises:
            ValueError: The outcome is ok.
        """
        if outcome == "ok":
            raise ValueError("expected an outcome of a row without an answer, got ok; use Record.answered")
        return cls(id, generation, outcome, latency_ms, group)

    def plain(self) -> dict[str, Any]:
        """Return the record as instard reads it."""
        told: dict[str, Any] = {
            "id": self.id,
            "generation": self.generation,
            "outcome": self.outcome,
            "latency_ms": self.latency_ms,
            "batch": self.batch,
        }
        for name in ("group", "logits", "embedding", "summary"):
            value = getattr(self, name)
            if value is not None:
                told[name] = value
        if self.input is not None:
            told["input_b64"] = base64.b64encode(self.input).decode("ascii")
        return told


def batches(records: Iterable[Record]) -> Iterator[bytes]:
    """Yield bodies of one generation each, within instard's bounds.

    Raises:
        ValueError: A number is not finite.
    """
    waiting: dict[int, list[bytes]] = {}
    sizes: dict[int, int] = {}
    for record in records:
        raw = json.dumps(record.plain(), allow_nan=False, separators=(",", ":")).encode()
        held = waiting.setdefault(record.generation, [])
        size = sizes.get(record.generation, 0)
        if held and (len(held) >= MOST_RECORDS or size + len(raw) > MOST_BYTES):
            yield _body(held)
            held.clear()
            size = 0
        held.append(raw)
        sizes[record.generation] = size + len(raw)
    for held in waiting.values():
        if held:
            yield _body(held)


def _body(held: list[bytes]) -> bytes:
    return b'{"records":[' + b",".join(held) + b"]}"


def summarise(values: Sequence[float], shape: Sequence[int]) -> tuple[float, float, float, float, float]:
    """Return the five numbers that stand for an input which stays where it is.

    Mean, standard deviation, minimum, maximum, and the mean absolute step along the last axis; where the last
    of three axes holds the three colours of a picture, steps are taken along its width.

    Args:
        values: The row in C order.
        shape: Of the row, without the batch.

    Raises:
        ValueError: Not as many values as the shape says, or none.

    >>> summarise([0, 2, 4], [3])
    (2.0, 1.632993161855452, 0.0, 4.0, 2.0)
    """
    count = math.prod(shape)
    if count != len(values) or count == 0:
        raise ValueError(f"expected {count} values of shape {tuple(shape)}, at least one, got {len(values)}")
    mean = math.fsum(values) / count
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / count)
    stride = shape[-1] if len(shape) == COLOURS and shape[-1] == COLOURS else 1
    width = shape[-2] if stride > 1 else shape[-1]
    line = width * stride
    steps = [
        abs(values[place + stride] - values[place])
        for place in range(count - stride)
        if place % line < line - stride
    ]
    step = math.fsum(steps) / len(steps) if steps else 0.0
    return mean, deviation, float(min(values)), float(max(values)), step
