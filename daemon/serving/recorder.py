"""The recorder: turns answered and refused requests into telemetry records and samples.

* One telemetry record a row of every request; one record for a request that never reached a model, with
  generation 0 when none was chosen, and zeros where the model would have spoken.
* Samples only of rows that reached the model, as many as the sampler allows.
* Before the first model is loaded there is no layout, so nothing is recorded; the counters still count.

Called by ``batcher.py`` and ``front.py`` in the loop; hands bytes to the spool and never waits.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from daemon.serving.sampler import Sampler
from daemon.serving.slot import NUMPY_TYPES, Slot
from daemon.serving.spool import Layout, Spool
from policies.clock import Clock
from policies.telemetry import OUTCOMES, Field, group_key, row_key, sample_fields, telemetry_fields

_COLOUR_LAST, _COLOURS = 4, 3
_LARGEST = float(np.finfo(np.float32).max)

OUTCOME_CODES = {name: code for code, name in enumerate(OUTCOMES)}


def dtype_of(fields: Sequence[Field]) -> np.dtype[Any]:
    """Return the packed record type of a layout.

    >>> dtype_of(telemetry_fields(10, 4)).itemsize
    119
    """
    return np.dtype([(name, kind, shape) for name, kind, shape in fields])


def summary(x: NDArray[Any]) -> NDArray[np.float32]:
    """Return mean, deviation, minimum, maximum and mean step along the last axis of each row, ``(n, 5)``.

    Where the last axis holds the three colours of a picture, steps are taken along its width.

    >>> summary(np.array([[0, 2, 4]], np.uint8)).tolist()
    [[2.0, 1.632993221282959, 0.0, 4.0, 2.0]]
    """
    # Bytes fit into float32 and are quickest there. A sensor at the end of its scale would overflow, and its
    # row would count as unusable.
    exact = np.float32 if x.dtype.itemsize == 1 else np.float64
    flat = x.reshape(len(x), -1).astype(exact)
    steps = np.zeros(len(x), exact)
    axis = -2 if x.ndim == _COLOUR_LAST and x.shape[-1] == _COLOURS else -1
    if x.ndim > 1 and x.shape[axis] > 1:
        steps = np.abs(np.diff(flat.reshape(x.shape), axis=axis)).reshape(len(x), -1).mean(axis=1)
    columns = flat.mean(axis=1), flat.std(axis=1), flat.min(axis=1), flat.max(axis=1), steps
    told = np.stack(columns, axis=1)
    return told if exact is np.float32 else np.clip(told, -_LARGEST, _LARGEST).astype(np.float32)


@dataclass(frozen=True, slots=True)
class Row:
    """What a record says of one row beside numbers of the model."""

    row_key: bytes
    group_key: bytes
    outcome: str
    latency_ms: float


def rows_of(request_id: str, group: str, rows: int, outcome: str, latency_ms: float) -> list[Row]:
    """Return the rows of one request."""
    group_bytes = group_key(group)
    return [Row(row_key(request_id, i, rows), group_bytes, outcome, latency_ms) for i in range(rows)]


class _Shape:
    """The two layouts of one served model."""

    def __init__(self, slot: Slot) -> None:
        spec = slot.meta.input
        dtype = NUMPY_TYPES[spec.datatype].str
        self.record, self.telemetry = self._layout(
            "telemetry", slot.meta.model, telemetry_fields(len(slot.meta.classes), slot.embedding)
        )
        self.sample, self.samples = self._layout(
            "samples", slot.meta.model, sample_fields(dtype, spec.shape[1:])
        )

    @staticmethod
    def _layout(kind: str, model: str, fields: list[Field]) -> tuple[np.dtype[Any], Layout]:
        dtype = dtype_of(fields)
        return dtype, Layout(kind, model, tuple(fields), dtype.itemsize)


class Recorder:
    """Writes to one spool; keeps the layouts of the widths it has met."""

    def __init__(self, spool: Spool, sampler: Sampler, clock: Clock) -> None:
        self._spool, self._sampler, self._clock = spool, sampler, clock
        self._shapes: dict[tuple[int, int], _Shape] = {}

    def answered(
        self,
        slot: Slot,
        rows: Sequence[Row],
        x: NDArray[Any],
        logits: NDArray[np.float32],
        embedding: NDArray[np.float32],
    ) -> None:
        """Record a batch that went through ``slot``; all arrays have ``len(rows)`` rows."""
        shape, now = self._shape(slot), self._clock.now()
        records = self._blank(shape.record, rows, now, slot.generation)
        records["batch"] = len(rows)
        records["outcome"] = [OUTCOME_CODES[row.outcome] for row in rows]
        records["latency_ms"] = [row.latency_ms for row in rows]
        records["logits"] = logits
        records["embedding"] = embedding
        records["summary"] = summary(x)
        self._spool.append(shape.telemetry, records.tobytes())
        keep = self._sampler.keep(now, [row.row_key for row in rows], shape.sample.itemsize)
        if keep:
            samples = self._blank(shape.sample, [rows[i] for i in keep], now, slot.generation)
            samples["input"] = x[keep]
            self._spool.append(shape.samples, samples.tobytes())

    def unanswered(self, layout_of: Slot | None, generation: int, rows: Sequence[Row], batch: int) -> None:
        """Record rows without any answer: refused before the model, or failed inside it."""
        if layout_of is None:
            return
        shape = self._shape(layout_of)
        records = self._blank(shape.record, rows, self._clock.now(), generation)
        records["batch"] = batch
        records["outcome"] = [OUTCOME_CODES[row.outcome] for row in rows]
        records["latency_ms"] = [row.latency_ms for row in rows]
        self._spool.append(shape.telemetry, records.tobytes())

    def _shape(self, slot: Slot) -> _Shape:
        key = (len(slot.meta.classes), slot.embedding)
        if key not in self._shapes:
            self._shapes[key] = _Shape(slot)
        return self._shapes[key]

    @staticmethod
    def _blank(dtype: np.dtype[Any], rows: Sequence[Row], now: float, generation: int) -> NDArray[Any]:
        records = np.zeros(len(rows), dtype)
        records["at"] = now
        records["row_key"] = np.frombuffer(b"".join(row.row_key for row in rows), "V16")
        records["group_key"] = np.frombuffer(b"".join(row.group_key for row in rows), "V8")
        records["generation"] = generation
        return records
