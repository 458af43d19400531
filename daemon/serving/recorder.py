"""The recorder: turns answered and refused requests into telemetry records and samples.

* One telemetry record a row of every request; one record for a request that never reached a model, with
  generation 0 when none was chosen, and zeros where the model would have spoken.
* Samples only of rows that reached the model, as many as the sampler allows.
* Before the first model is loaded there is no layout, so nothing is recorded; the counters still count.
* A request costs a list entry here. Records are made of many entries at once, by whoever comes when
  ``MOST_KEPT_ROWS`` or ``MOST_KEPT_BYTES`` are kept, or else by the spool's thread: what is kept stays small,
  whatever the thread does. The thread makes a few at a time and sleeps in between, since the event loop
  waits for the interpreter meanwhile.

Called by ``engine.py`` and the fronts; hands bytes to the spool and never waits for a disk.
"""

import threading
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from daemon.serving.sampler import Sampler
from daemon.serving.slot import NUMPY_TYPES, Slot
from daemon.serving.spool import Layout, Spool
from policies.clock import Clock
from policies.telemetry import OUTCOMES, Field, group_key, row_keys, sample_fields, telemetry_fields
from policies.terms import TensorSpec

_COLOUR_LAST, _COLOURS = 4, 3
_LARGEST = float(np.finfo(np.float32).max)
_NARROW = 1e15
"""Squares of smaller numbers, summed over any input that fits into a request, fit into float32."""

MOST_KEPT_ROWS = 256
MOST_KEPT_BYTES = 4 << 20
FEW_ROWS = 32
"""Of which the spool's thread makes records before it sleeps: about a sixth of a millisecond."""
PAUSE_S = 0.0005

OUTCOME_CODES = {name: code for code, name in enumerate(OUTCOMES)}


def dtype_of(fields: Sequence[Field]) -> np.dtype[Any]:
    """Return the packed record type of a layout.

    >>> dtype_of(telemetry_fields(10, 4)).itemsize
    120
    """
    return np.dtype([(name, kind, shape) for name, kind, shape in fields])


def summary(x: NDArray[Any]) -> NDArray[np.float32]:
    """Return mean, deviation, minimum, maximum and mean step along the last axis of each row, ``(n, 5)``.

    Where the last axis holds the three colours of a picture, steps are taken along its width.

    >>> summary(np.array([[0, 2, 4]], np.uint8)).tolist()
    [[2.0, 1.632993221282959, 0.0, 4.0, 2.0]]
    """
    flat = x.reshape(len(x), -1)
    if x.dtype == np.float64:
        # What no record holds; their squares would overflow.
        flat = np.clip(flat, -_LARGEST, _LARGEST)
    low, high = flat.min(axis=1), flat.max(axis=1)
    # Eight times as quick as float64. A sensor at the end of its scale would overflow there, its row would
    # count as unusable; an integer of four bytes does not fit.
    narrow = x.dtype.itemsize == 1 or (
        x.dtype == np.float32 and max(float(-low.min()), float(high.max())) < _NARROW
    )
    exact = np.float32 if narrow else np.float64
    flat = flat.astype(exact, copy=False)
    size = flat.shape[1]
    told = np.zeros((len(x), 5), exact)
    told[:, 0] = mean = flat.mean(axis=1)
    # All that is as large as the input is made once, and in whole rows: short inner loops are most of the
    # time that numpy takes here.
    scratch = np.subtract(flat, mean[:, np.newaxis])
    told[:, 1] = np.sqrt(np.einsum("ij,ij->i", scratch, scratch) / size)
    told[:, 2], told[:, 3] = low, high
    colour = x.ndim == _COLOUR_LAST and x.shape[-1] == _COLOURS
    step = _COLOURS if colour else 1
    line = x.shape[-2] * _COLOURS if colour else x.shape[-1]
    if x.ndim > 1 and line > step:
        apart = scratch[:, : size - step]
        np.abs(np.subtract(flat[:, step:], flat[:, :-step], out=apart), out=apart)
        for place in range(line - step, line):
            # From the end of a line to the beginning of the next is no step.
            apart[:, place::line] = 0
        told[:, 4] = apart.sum(axis=1) / (size // line * (line - step))
    return told if narrow else np.clip(told, -_LARGEST, _LARGEST).astype(np.float32)


class Told(NamedTuple):
    """What a record says of a request beside numbers of the model."""

    id: str
    group: str
    rows: int
    outcome: str
    latency_ms: float


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


class _Entry(NamedTuple):
    """Requests that were told the same moment: those of a run, or one that never ran (``x`` is None)."""

    slot: Slot
    generation: int
    told: list[Told]
    batch: int
    at: float
    x: NDArray[Any] | None
    logits: NDArray[np.float32] | None
    embedding: NDArray[np.float32] | None
    gone: NDArray[np.bool_] | None


class Recorder:
    """Keeps what happened until ``gather`` turns it into records; used by several threads."""

    def __init__(self, spool: Spool, sampler: Sampler, clock: Clock) -> None:
        self._spool, self._sampler, self._clock = spool, sampler, clock
        self._shapes: dict[tuple[TensorSpec, int, int], _Shape] = {}
        self._kept: list[_Entry] = []
        self._kept_rows = self._kept_bytes = 0
        self._lock = threading.Lock()
        self._gathering = threading.Lock()

    def answered(
        self,
        slot: Slot,
        told: list[Told],
        x: NDArray[Any],
        logits: NDArray[np.float32],
        embedding: NDArray[np.float32],
        gone: NDArray[np.bool_] | None,
    ) -> None:
        """Record a run of ``slot``; the arrays have as many rows as ``told`` has in sum.

        ``gone`` tells which rows left early; None for a network without an exit.
        """
        now = self._clock.now()
        self._keep(_Entry(slot, slot.generation, told, len(x), now, x, logits, embedding, gone))

    def unanswered(self, layout_of: Slot | None, generation: int, told: Told, batch: int) -> None:
        """Record a request without any answer: refused before the model, or failed inside it."""
        if layout_of is not None:
            entry = _Entry(layout_of, generation, [told], batch, self._clock.now(), None, None, None, None)
            self._keep(entry)

    def gather(self, most_rows: int = MOST_KEPT_ROWS) -> None:
        """Turn what was kept first into records, in order: entries until they have so many rows."""
        # Two may come at once: the second one waits, so that records stay in order.
        with self._gathering:
            with self._lock:
                taken = self._take(most_rows)
            start = 0
            try:
                while start < len(taken):
                    end = start + 1
                    while end < len(taken) and _alike(taken[start], taken[end]):
                        end += 1
                    self._write(taken[start:end])
                    start = end
            except Exception:
                self._spool.drop("telemetry", sum(map(_rows, taken[start:])))
                raise

    def gather_gently(self) -> None:
        """Turn everything that is kept now into records; the spool's thread does, before it writes."""
        rows = self._kept_rows
        while rows > 0:
            self.gather(FEW_ROWS)
            rows -= FEW_ROWS
            if rows > 0:
                time.sleep(PAUSE_S)

    def _take(self, most_rows: int) -> list[_Entry]:
        rows = size = end = 0
        while end < len(self._kept) and rows < most_rows:
            entry = self._kept[end]
            rows += _rows(entry)
            size += _bytes(entry)
            end += 1
        taken, self._kept = self._kept[:end], self._kept[end:]
        self._kept_rows -= rows
        self._kept_bytes -= size
        return taken

    def _keep(self, entry: _Entry) -> None:
        with self._lock:
            self._kept.append(entry)
            self._kept_rows += _rows(entry)
            self._kept_bytes += _bytes(entry)
            full = self._kept_rows >= MOST_KEPT_ROWS or self._kept_bytes >= MOST_KEPT_BYTES
        if full:
            self.gather()

    def _write(self, entries: list[_Entry]) -> None:
        slot = entries[0].slot
        shape = self._shape(slot)
        # Column by column, since a request costs here what its columns cost.
        told = [each for entry in entries for each in entry.told]
        ids, groups, counts, outcomes, latencies_ms = zip(*told, strict=True)
        keys = row_keys(ids, counts)
        records = np.zeros(len(keys), shape.record)
        records["row_key"] = np.frombuffer(b"".join(keys), "V16")
        records["group_key"] = np.repeat(np.frombuffer(b"".join(map(group_key, groups)), "V8"), counts)
        records["generation"] = entries[0].generation
        rows = [_rows(entry) for entry in entries]
        records["at"] = np.repeat([entry.at for entry in entries], rows)
        records["batch"] = np.repeat([entry.batch for entry in entries], rows)
        records["outcome"] = np.repeat([OUTCOME_CODES[outcome] for outcome in outcomes], counts)
        records["latency_ms"] = np.repeat(latencies_ms, counts)
        ran = [(entry.x, entry.logits, entry.embedding) for entry in entries if entry.x is not None]
        if ran:
            x, logits, embedding = (_joined(column) for column in zip(*ran, strict=True))
            records["logits"], records["embedding"], records["summary"] = logits, embedding, summary(x)
            if entries[0].gone is not None:
                records["exit"] = _joined(tuple(entry.gone for entry in entries))
        self._spool.append(shape.telemetry, records.tobytes())
        if ran:
            self._sample(shape, records, keys, x)

    def _sample(self, shape: "_Shape", records: NDArray[Any], keys: list[bytes], x: NDArray[Any]) -> None:
        keep = self._sampler.keep(float(records["at"][-1]), keys, shape.sample.itemsize)
        if keep:
            samples = np.zeros(len(keep), shape.sample)
            for name in ("at", "row_key", "group_key", "generation"):
                samples[name] = records[name][keep]
            samples["input"] = x[keep]
            self._spool.append(shape.samples, samples.tobytes())

    def _shape(self, slot: Slot) -> _Shape:
        key = slot.meta.input, len(slot.meta.classes), slot.embedding
        if key not in self._shapes:
            self._shapes[key] = _Shape(slot)
        return self._shapes[key]


class Silence:
    """A recorder that records nothing: monitors see no traffic, and no sample is kept."""

    def answered(
        self,
        slot: Slot,
        told: list[Told],
        x: NDArray[Any],
        logits: NDArray[np.float32],
        embedding: NDArray[np.float32],
        gone: NDArray[np.bool_] | None,
    ) -> None:
        """Forget a run."""

    def unanswered(self, layout_of: Slot | None, generation: int, told: Told, batch: int) -> None:
        """Forget a request."""

    def gather_gently(self) -> None:
        """Have nothing to gather."""


def _rows(entry: _Entry) -> int:
    return entry.told[0].rows if entry.x is None else len(entry.x)


def _bytes(entry: _Entry) -> int:
    return 0 if entry.x is None else entry.x.nbytes


def _alike(first: _Entry, other: _Entry) -> bool:
    return (
        first.slot.digest == other.slot.digest
        and first.generation == other.generation
        and (first.x is None) == (other.x is None)
    )


def _joined(arrays: tuple[Any, ...]) -> NDArray[Any]:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
