"""The intake: records from outside, put into the spool as instar-serve would put them.

* All or nothing: every record is checked against its generation's own bundle before any is written.
* A batch speaks of one generation, so that it is one write of one layout.
* Durable when ``take`` returns: samples first (the store takes each row once), then the telemetry, both
  synced; ``once`` makes a batch that is sent again one batch, also over a kill.
* Bounded: a batch fits one write, and no more is taken than the monitors have had the turns to read.
  Beyond that the client is told when to come again.
* Rows carry the moment of their arrival: a client's clock decides nothing here.

Called by the console's route, in threads; ``begun`` and ``read`` are called around a turn.
"""

import base64
import binascii
import hashlib
import logging
import os
import sqlite3
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from daemon.control.targets.proofs import Proof, Proofs
from daemon.outside.once import Once, sync
from daemon.outside.records import Busy, Record
from daemon.serving.recorder import OUTCOME_CODES, dtype_of, summary
from daemon.serving.slot import NUMPY_TYPES
from daemon.serving.spool import SEGMENTS_A_KIND, Layout, Spool, segment_number
from policies.errors import TemporaryError
from policies.telemetry import Field, group_key, row_key, sample_fields, telemetry_fields

log = logging.getLogger(__name__)

SPOOL_BYTES = 256 << 20
MOST_BYTES = SPOOL_BYTES // 2 // SEGMENTS_A_KIND // 2
"""What the spool writes at once; a batch's telemetry is not larger."""
MOST_UNREAD_BYTES = SPOOL_BYTES // 2 // 2
"""Of either kind: half of what the spool keeps of it."""


@dataclass(frozen=True)
class Block:
    """Records as they lie in a segment."""

    layout: Layout
    rows: NDArray[Any]

    @property
    def size_bytes(self) -> int:
        """What they take in the segment."""
        return int(self.rows.nbytes)


class Intake:
    """One task's intake.

    Args:
        model: The model that the records speak of.
        proofs: What is known of bundles.
        bundle_of: The digest of a generation's bundle; None when there never was such a generation.
        live: The live generation, or the one on its way; 0 when there is none.
        spool: The spool's folder, written by nobody else.
        ledger: The file of the batches that were taken.
        turn_s: Seconds between two turns.
    """

    def __init__(
        self,
        model: str,
        proofs: Proofs,
        bundle_of: Callable[[int], str | None],
        live: Callable[[], int],
        spool: Path,
        ledger: Path,
        turn_s: float,
    ) -> None:
        self._model, self._proofs, self._bundle_of, self._live = model, proofs, bundle_of, live
        self._folder, self._turn_s = spool, turn_s
        spool.mkdir(parents=True, exist_ok=True)
        # Before the spool opens: what a kill left is ended in the segments that it lies in.
        self._once = Once(ledger, spool)
        self._spool = Spool(spool, SPOOL_BYTES, self._lose)
        self._lock = threading.Lock()
        self._lost_rows = 0
        self._owed: str | None = None
        self._unread: dict[str, int] = {"telemetry": 0, "samples": 0}

    def take(self, key: str, records: list[Record], at: float) -> tuple[int, bool]:
        """Spool a batch; return how many records it has, and whether it was taken before.

        Raises:
            ValueError: A record does not fit, or the key stands for another batch.
            PermanentError: The generation's bundle does not prove itself.
            Busy: Too much is unread.
            TemporaryError: The disk refuses.
        """
        digest = hashlib.sha256(msgspec.json.encode(records)).hexdigest()
        with self._lock:
            self._settle()
            known = self._once.taken(key)
            if known is not None:
                if known[0] != digest:
                    raise ValueError(f"expected the batch that was taken under key {key!r}, got another one")
                return known[1], True
            proof = self._proof(records)
            blocks = self._made(records, proof, at)
            self._check_room(blocks)
            self._put(key, digest, blocks)
        return len(records), False

    def begun(self) -> dict[str, int]:
        """Return what is unread as a turn begins."""
        with self._lock:
            return dict(self._unread)

    def read(self, begun: dict[str, int]) -> None:
        """Note that a turn has read what was unread when it began."""
        with self._lock:
            self._unread = {kind: size - begun[kind] for kind, size in self._unread.items()}

    def close(self) -> None:
        """Close the spool."""
        with self._lock:
            self._spool.close()
            self._once.close()

    # -- records ----------------------------------------------------------------------------------------

    def _proof(self, records: list[Record]) -> Proof:
        """Return what is known of the one generation that a batch speaks of."""
        first = next((record.generation for record in records if record.generation), 0)
        for place, record in enumerate(records):
            if record.generation not in (0, first):
                raise ValueError(
                    f"expected records[{place}].generation to be {first} as before it, got "
                    f"{record.generation}; send a batch for each generation"
                )
        generation = first or self._live()
        digest = self._bundle_of(generation) if generation else None
        if digest is None:
            place = next((i for i, r in enumerate(records) if r.generation), 0)
            raise ValueError(
                f"expected records[{place}].generation to be one that is or was served, got {generation}"
            )
        return self._proofs.of(digest)

    def _made(self, records: list[Record], proof: Proof, at: float) -> list[Block]:
        """Return the samples of the records that bring their input, and the telemetry of all."""
        spec, width = proof.meta.input, proof.embedding
        classes, dtype = len(proof.meta.classes), NUMPY_TYPES[spec.datatype]
        telemetry = self._block("telemetry", telemetry_fields(classes, width), len(records))
        made = telemetry.rows
        made["at"] = at
        made["row_key"] = np.frombuffer(b"".join(row_key(r.id, 0, 1) for r in records), "V16")
        made["group_key"] = np.frombuffer(b"".join(group_key(r.group or r.id) for r in records), "V8")
        for name in ("generation", "batch", "latency_ms"):
            made[name] = [getattr(record, name) for record in records]
        made["outcome"] = [OUTCOME_CODES[record.outcome] for record in records]
        inputs: dict[int, NDArray[Any]] = {}
        for place, record in enumerate(records):
            if record.outcome != "ok":
                continue
            where = f"records[{place}]"
            made["logits"][place] = _numbers(record.logits, classes, f"{where}.logits")
            made["embedding"][place] = _numbers(record.embedding, width, f"{where}.embedding")
            if record.input_b64 is None:
                made["summary"][place] = _numbers(record.summary, 5, f"{where}.summary")
            else:
                inputs[place] = _input(record.input_b64, dtype, spec.shape[1:], f"{where}.input_b64")
        samples = self._block("samples", sample_fields(dtype.str, spec.shape[1:]), len(inputs))
        if inputs:
            kept, x = list(inputs), np.stack(list(inputs.values()))
            made["summary"][kept] = summary(x)
            for name in ("at", "row_key", "group_key", "generation"):
                samples.rows[name] = made[name][kept]
            samples.rows["input"] = x
        return [samples, telemetry]

    def _block(self, kind: str, fields: list[Field], rows: int) -> Block:
        dtype = dtype_of(fields)
        return Block(Layout(kind, self._model, tuple(fields), dtype.itemsize), np.zeros(rows, dtype))

    # -- writing ----------------------------------------------------------------------------------------

    def _check_room(self, blocks: list[Block]) -> None:
        for block in blocks:
            kind, size = block.layout.kind, block.size_bytes
            if size > MOST_BYTES:
                raise ValueError(
                    f"expected at most {MOST_BYTES} bytes of {kind}, got {size}; "
                    f"send at most {MOST_BYTES // block.layout.record_bytes} records at once"
                )
            if self._unread[kind] + size > MOST_UNREAD_BYTES:
                raise Busy(
                    f"expected at most {MOST_UNREAD_BYTES} unread bytes of {kind}, there are "
                    f"{self._unread[kind]}; send the batch again after the next turn",
                    self._turn_s,
                )

    def _put(self, key: str, digest: str, blocks: list[Block]) -> None:
        telemetry = blocks[-1]
        try:
            self._once.begin(key, digest, len(telemetry.rows), telemetry.size_bytes)
        except sqlite3.Error as error:
            raise TemporaryError(f"expected to note the batch {key!r}, got {error}", 5.0) from error
        try:
            for block in blocks:
                if len(block.rows):
                    self._write(block)
        except OSError as error:
            self._once.forget(key)
            raise TemporaryError(f"expected to write the spool {self._folder}, got {error}", 5.0) from error
        for block in blocks:
            self._unread[block.layout.kind] += block.size_bytes
        self._owed = key
        self._settle()

    def _settle(self) -> None:
        """Note that the latest batch lies in the spool; before that nothing else is taken, nor it again."""
        if self._owed is None:
            return
        try:
            self._once.done(self._owed)
        except sqlite3.Error as error:
            raise TemporaryError(f"expected to note the batch {self._owed!r}, got {error}", 5.0) from error
        self._owed = None

    def _write(self, block: Block) -> None:
        kind, first = block.layout.kind, self._latest(block.layout.kind)
        self._lost_rows = 0
        self._spool.append(block.layout, block.rows.tobytes())
        self._spool.flush(last=True)
        if self._lost_rows:
            raise OSError(f"{self._lost_rows} rows of {kind} were not written")
        for path in self._folder.glob(f"{kind}-*.seg"):
            number = segment_number(path.name, kind)
            if number is not None and number >= first:
                sync(path)
        sync(self._folder, os.O_RDONLY | os.O_DIRECTORY)

    def _latest(self, kind: str) -> int:
        names = (path.name for path in self._folder.glob(f"{kind}-*.seg"))
        return max((number for name in names if (number := segment_number(name, kind))), default=0)

    def _lose(self, _kind: str, rows: int) -> None:
        self._lost_rows += rows


def _numbers(values: list[float] | None, width: int, where: str) -> NDArray[np.float32]:
    if values is None or len(values) != width:
        raise ValueError(f"expected {width} numbers in {where}, got {len(values or ())}")
    with np.errstate(over="ignore"):
        array = np.asarray(values, np.float64).astype(np.float32)
    if not np.isfinite(array).all():
        raise ValueError(f"expected numbers in {where} that a float32 holds")
    return array


def _input(text: str, dtype: np.dtype[Any], shape: tuple[int, ...], where: str) -> NDArray[Any]:
    wanted = dtype.itemsize * int(np.prod(shape))
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"expected base64 in {where}, got {error}") from error
    if len(raw) != wanted:
        raise ValueError(f"expected {wanted} bytes of {dtype} {shape} in {where}, got {len(raw)}")
    x = np.frombuffer(raw, dtype).reshape(shape)
    if dtype.kind == "f" and not np.isfinite(x).all():
        raise ValueError(f"expected finite numbers in {where}")
    return x
