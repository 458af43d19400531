"""What a guard may look at: a case's files, opened once, each checked against its digest.

* Bytes are hashed after they are read and before they are used; the same bytes are judged.
* ONNX is read from memory, so that no path inside a file leads anywhere.
* Arrays are read without pickle, and checked against the task: a gate that does not fit is no gate.
* A bundle with an exit answers as it is served: rows leave at the policy's confidence.
* Answers are computed once a bundle and regime; guards that ask again share them.

It decides nothing.
"""

import io
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from math import log
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from guards import structure
from policies.bundle import Exit
from policies.case import Case
from policies.cut import cut
from policies.errors import TamperError
from policies.terms import Artefact, Datatype
from policies.wire import digest_bytes

# The runtime would report its use to its maker.
ort.disable_telemetry_events()

Array = NDArray[np.generic]
Floats = NDArray[np.float32]

NEW, OLD = 1, 0
"""Regimes: since the change that triggered the search, and before it."""

DTYPES: dict[Datatype, np.dtype[np.generic]] = {
    Datatype.BOOL: np.dtype(np.bool_),
    Datatype.UINT8: np.dtype(np.uint8),
    Datatype.UINT16: np.dtype(np.uint16),
    Datatype.UINT32: np.dtype(np.uint32),
    Datatype.UINT64: np.dtype(np.uint64),
    Datatype.INT8: np.dtype(np.int8),
    Datatype.INT16: np.dtype(np.int16),
    Datatype.INT32: np.dtype(np.int32),
    Datatype.INT64: np.dtype(np.int64),
    Datatype.FP16: np.dtype(np.float16),
    Datatype.FP32: np.dtype(np.float32),
    Datatype.FP64: np.dtype(np.float64),
}

_BATCH = 64


@dataclass(frozen=True)
class Rows:
    """Labelled rows of one regime: ``x`` (n, ...) in the model's input type, ``y`` (n,) int64."""

    x: Array
    y: NDArray[np.int64]


@dataclass(frozen=True)
class Answers:
    """What a model said of the rows of one regime; both (n,) bool. An answer that is not finite is wrong."""

    right: NDArray[np.bool_]
    finite: NDArray[np.bool_]

    @property
    def broken(self) -> int:
        """Return how many answers are not finite."""
        return int(np.count_nonzero(~self.finite))


class Net:
    """One model in the runtime that serves: one thread, as in the data plane.

    Args:
        raw: The whole file.
        leave: Its exit, if it has one; it is then cut in two, as the data plane cuts it.
        confidence: At which a row leaves there, by the policy; None: nobody does.
    """

    def __init__(self, raw: bytes, leave: Exit | None = None, confidence: float | None = None) -> None:
        self._session = _session(raw)
        self._input = self._session.get_inputs()[0].name
        self._leave, self._confidence = leave, confidence
        halves = None if leave is None else cut(raw, leave)
        self._halves = None if halves is None else (_session(halves.head), _session(halves.tail))

    @property
    def leaves(self) -> bool:
        """Tell whether rows may leave it early as it is served."""
        return self._halves is not None and self._confidence is not None

    def run(self, x: Array) -> tuple[Floats, Floats]:
        """Return logits and embedding of the rows ``x`` (n, ...), whole, as if there were no exit."""
        logits, embedding = self._session.run(["logits", "embedding"], {self._input: x})
        return logits, embedding

    def halves(self, x: Array) -> tuple[Floats, Floats, Floats] | None:
        """Return logits, embedding and exit of all rows through both halves; None of a model without."""
        if self._halves is None or self._leave is None:
            return None
        exits, trunk = self._halves[0].run([self._leave.output, self._leave.trunk.name], {self._input: x})
        logits, embedding = self._halves[1].run(["logits", "embedding"], {self._leave.trunk.name: trunk})
        return logits, embedding, exits

    def serve(self, x: Array) -> tuple[Floats, NDArray[np.bool_]]:
        """Return logits (n, classes) as clients get them, and which rows left early (n,)."""
        if self._halves is None or self._leave is None or self._confidence is None:
            return self.run(x)[0], np.zeros(len(x), np.bool_)
        head, tail = self._halves
        logits, trunk = head.run([self._leave.output, self._leave.trunk.name], {self._input: x})
        gone = left(logits, self._confidence)
        if not gone.all():
            logits[~gone], _ = tail.run(["logits", "embedding"], {self._leave.trunk.name: trunk[~gone]})
        return logits, gone

    def logits(self, x: Array) -> Floats:
        """Return the logits (n, classes) of many rows as clients get them, in batches."""
        parts = [self.serve(x[first : first + _BATCH])[0] for first in range(0, len(x), _BATCH)]
        return np.concatenate(parts)


def left(exits: Floats, confidence: float) -> NDArray[np.bool_]:
    """Return which rows are sure enough to leave, (n,); the same steps as in the data plane, to the bit.

    >>> left(np.array([[0.0, 0.0], [3.0, 0.0]], np.float32), 0.9).tolist()
    [False, True]
    """
    # Without a word on what is no number: whoever counts answers that are not finite says so.
    with np.errstate(invalid="ignore"):
        total = np.logaddexp.reduce(exits, axis=1, dtype=np.float64)
    return np.asarray(exits.max(axis=1) >= total + log(confidence))


def _session(raw: bytes) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(raw, options, providers=["CPUExecutionProvider"])


class Material:
    """The opened files of one case.

    Args:
        case: Which files, and what they must fit.
        clock: Returns seconds that never go back; for timing.
    """

    def __init__(self, case: Case, clock: Callable[[], float]) -> None:
        self._case = case
        self.clock = clock
        self.raw = cache(_read)
        self._net = cache(self._load)
        self._answers = cache(self._answer)

    def net(self, artefact: Artefact) -> Net:
        """Return a bundle, loaded from the bytes that were hashed, with the exit that the policy allows.

        Raises:
            TamperError: The bytes are not there, not those of the digest, or their text is none.
        """
        return self._net(artefact)

    def _load(self, artefact: Artefact) -> Net:
        raw = self.raw(artefact)
        leave = structure.read_meta(structure.parse(raw)).exit
        return Net(raw, leave, self._case.policy.modification_protocol.exits.threshold)

    def rows(self, regime: int) -> Rows:
        """Return the labelled rows of a regime; perhaps none.

        Raises:
            TamperError: The gate is missing, is another one, or does not fit the task.
        """
        return self._gate[regime]

    def answers(self, artefact: Artefact, regime: int) -> Answers:
        """Return what a bundle said of the rows of a regime.

        Raises:
            TamperError: As ``net`` and ``rows``.
        """
        return self._answers(artefact, regime)

    @cached_property
    def traffic(self) -> Array:
        """Return recorded inputs (n, ...) in arrival order.

        Raises:
            TamperError: The file is missing, is another one, or does not fit the task.
        """
        arrays = _arrays(self.raw(self._case.traffic), ("x",), "traffic")
        self._check_inputs(arrays["x"], "traffic")
        return arrays["x"]

    @cached_property
    def _gate(self) -> dict[int, Rows]:
        arrays = _arrays(self.raw(self._case.gate), ("x", "y", "group", "regime"), "gate")
        x, y, group, regime = (arrays[name] for name in ("x", "y", "group", "regime"))
        self._check_inputs(x, "gate")
        classes = len(self._case.task.classes)
        for name, array in (("y", y), ("group", group), ("regime", regime)):
            if array.shape != (len(x),):
                raise TamperError(f"gate: expected {name} of shape ({len(x)},), got {array.shape}")
        if y.dtype.kind not in "iu" or (len(y) and not (y.min() >= 0 and y.max() < classes)):
            raise TamperError(f"gate: expected labels in 0..{classes - 1} as integers, got others")
        if not np.isin(regime, (OLD, NEW)).all():
            raise TamperError("gate: expected regimes 0 and 1, got others")
        found = {}
        for wanted in (OLD, NEW):
            here = regime == wanted
            if len({key.tobytes() for key in group[here]}) != np.count_nonzero(here):
                # The intervals count independent rows; near-duplicates would make them too narrow.
                raise TamperError(f"gate: expected one row a group in regime {wanted}, a group has several")
            found[wanted] = Rows(x[here], y[here].astype(np.int64))
        return found

    def _check_inputs(self, x: Array, where: str) -> None:
        spec = self._case.task.input
        expected = DTYPES[spec.datatype]
        if x.dtype != expected or (len(x) and x.shape[1:] != spec.shape[1:]):
            raise TamperError(
                f"{where}: expected rows {spec.shape[1:]} {expected}, got {x.shape[1:]} {x.dtype}"
            )
        if x.dtype.kind == "f" and not np.isfinite(x).all():
            raise TamperError(f"{where}: expected finite inputs, got others")

    def _answer(self, artefact: Artefact, regime: int) -> Answers:
        rows = self.rows(regime)
        if not len(rows.x):
            nothing = np.zeros(0, np.bool_)
            return Answers(nothing, nothing)
        logits = self.net(artefact).logits(rows.x)
        finite = np.asarray(np.isfinite(logits).all(axis=1))
        chosen = np.where(finite[:, None], logits, 0.0).argmax(axis=1)
        return Answers(finite & (chosen == rows.y), finite)


def _read(artefact: Artefact) -> bytes:
    try:
        raw = Path(artefact.path).read_bytes()
    except OSError as error:
        raise TamperError(f"expected {artefact.digest} at {artefact.path}, got {error}") from error
    found = digest_bytes(raw)
    if found != artefact.digest:
        raise TamperError(
            f"expected {artefact.digest} at {artefact.path}, got {found}: the file was changed after it was "
            "named; export it again"
        )
    return raw


def _arrays(raw: bytes, names: tuple[str, ...], where: str) -> dict[str, Array]:
    try:
        with np.load(io.BytesIO(raw), allow_pickle=False) as archive:
            found = {name: archive[name] for name in names if name in archive.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, AttributeError) as error:
        raise TamperError(f"{where}: expected an .npz of plain arrays, got {error}") from error
    missing = [name for name in names if name not in found]
    if missing:
        raise TamperError(f"{where}: expected arrays {', '.join(names)}, missing {', '.join(missing)}")
    return found
