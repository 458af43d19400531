"""A slot: one bundle, proven and warm, under one generation number.

* ``build`` is the only way to make one: digest, metadata, contract, golden outputs, pace, in this order; the
  last also warms it. What fails is refused with the reason; nothing half-proven is ever handed out.
* Called by ``keeper.py`` in a thread of its own; ``Slot.run`` is called by ``engine.py``.
* A slot is immutable; the counters that it points to are not. The same bytes under another generation share
  one session (``renumbered``), and count anew; under their own they count on.

Does not decide who gets traffic, and reads no ONNX: what it knows is in the bundle's metadata.
"""

import base64
import binascii
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from daemon.serving import loading
from daemon.serving.exits import Staged, split
from daemon.serving.loading import ORT_ERRORS
from daemon.serving.pace import UNTRIED, Pace, measure, proven
from daemon.serving.refusals import BundleRefused, ModelFailed
from daemon.serving.stats import Stats
from policies import bundle
from policies.bundle import BundleMeta, Golden
from policies.errors import TamperError
from policies.terms import Datatype, TensorSpec
from policies.terms import Slot as SlotTerm
from policies.wire import is_digest

GOLDEN_ATOL, GOLDEN_RTOL = 1e-3, 1e-3

NUMPY_TYPES: dict[Datatype, np.dtype[Any]] = {
    Datatype.BOOL: np.dtype("?"),
    Datatype.UINT8: np.dtype("u1"),
    Datatype.UINT16: np.dtype("<u2"),
    Datatype.UINT32: np.dtype("<u4"),
    Datatype.UINT64: np.dtype("<u8"),
    Datatype.INT8: np.dtype("i1"),
    Datatype.INT16: np.dtype("<i2"),
    Datatype.INT32: np.dtype("<i4"),
    Datatype.INT64: np.dtype("<i8"),
    Datatype.FP16: np.dtype("<f2"),
    Datatype.FP32: np.dtype("<f4"),
    Datatype.FP64: np.dtype("<f8"),
}

ORT_TYPES: dict[Datatype, str] = {
    Datatype.BOOL: "tensor(bool)",
    Datatype.FP16: "tensor(float16)",
    Datatype.FP32: "tensor(float)",
    Datatype.FP64: "tensor(double)",
}


Outputs = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_] | None]


@dataclass(frozen=True, slots=True)
class Slot:
    """One proven model. ``embedding`` is the width of its embedding output.

    A bundle with an early exit is held as two sessions (``staged``), any other as one (``session``).
    """

    session: Any
    generation: int
    digest: str
    meta: BundleMeta
    embedding: int
    staged: Staged | None = None
    pace: Pace = UNTRIED
    stats: Stats = field(default_factory=Stats)

    @property
    def term(self) -> SlotTerm:
        """What control calls this slot."""
        return SlotTerm(generation=self.generation, bundle=self.digest)

    def renumbered(self, generation: int) -> "Slot":
        """Return the same session under a generation number; the slot itself when it has that number."""
        if generation == self.generation:
            return self
        return replace(self, generation=generation, stats=Stats())

    def run(self, x: NDArray[Any]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return logits ``(n, classes)`` and embedding ``(n, d)`` of a batch, both float32.

        Every row goes through all of the network.

        Raises:
            ModelFailed: The runtime could not run the batch, or its outputs are not of the promised shape.
        """
        return self.answer(x, None)[:2]

    def answer(self, x: NDArray[Any], confidence: float | None) -> Outputs:
        """Return logits, embedding, and who left early ``(n,)``; None for a bundle without an exit.

        Args:
            x: Rows ``(n, ...)`` in the model's input type.
            confidence: At which a row leaves at the exit, with zeros for an embedding; None: none does.

        Raises:
            ModelFailed: As ``run`` says.
        """
        gone: NDArray[np.bool_] | None = None
        try:
            if self.staged is not None:
                logits, embedding, gone = self.staged.run(x, confidence)
            else:
                logits, embedding = self.session.run(["logits", "embedding"], {self.meta.input.name: x})
        except ORT_ERRORS as error:
            raise ModelFailed(
                f"expected generation {self.generation} to run {len(x)} rows, the runtime says: {error}"
            ) from error
        wanted = (len(x), len(self.meta.classes)), (len(x), self.embedding)
        if (logits.shape, embedding.shape) != wanted:
            raise ModelFailed(
                f"expected outputs of shapes {wanted} from generation {self.generation}, "
                f"got {logits.shape} and {embedding.shape}"
            )
        return np.asarray(logits, np.float32), np.asarray(embedding, np.float32), gone


def blob_path(blobs: Path, digest: str) -> Path:
    """Return where a blob lies below the state's ``blobs/`` folder.

    Raises:
        BundleRefused: The text is no digest.

    >>> blob_path(Path("blobs"), "sha256:" + "ab" + "0" * 62).parts[:3]
    ('blobs', 'sha256', 'ab')
    """
    if not is_digest(digest):
        raise BundleRefused(f"expected a digest sha256:<64 hex>, got {digest[:80]!r}")
    hexes = digest.removeprefix("sha256:")
    return blobs / "sha256" / hexes[:2] / hexes[2:]


def build(blobs: Path, model: str, generation: int, digest: str, max_batch: int) -> Slot:
    """Return a proven and warm slot of the bundle named by ``digest``; takes tens of milliseconds.

    Raises:
        BundleRefused: The bytes are missing, altered, of another model, or do not reproduce their goldens.
    """
    with loading.sealed(blob_path(blobs, digest), digest) as memory:
        session = loading.session(memory, digest)
        meta = _meta(session, digest)
        if meta.model != model:
            raise BundleRefused(f"expected a bundle of model {model!r}, {digest} is of {meta.model!r}")
        slot = Slot(session, generation, digest, meta, _check_contract(session, meta, digest))
        if meta.exit is not None:
            # The halves are what serves: nothing else is proven, and the whole is let go.
            slot = replace(slot, session=None, staged=_halves(loading.whole(memory), meta, digest))
    rows = np.concatenate([_check_golden(slot, golden, number) for number, golden in enumerate(meta.goldens)])
    try:
        # The runtime plans memory for every batch size it first meets: this does so before traffic does.
        pace = measure(slot.run, rows, max_batch)
        if slot.staged is not None:
            pace = _exits_pace(slot.staged, pace, rows, max_batch)
        return replace(slot, pace=pace)
    except ModelFailed as error:
        raise BundleRefused(f"{digest}: {error}") from error


def _halves(raw: bytes, meta: BundleMeta, digest: str) -> Staged:
    def load(half: bytes) -> Any:
        with loading.held(half) as memory:
            return loading.session(memory, digest)

    try:
        return split(raw, meta, load)
    except TamperError as error:
        raise BundleRefused(f"expected an exit in {digest} as its text says, got: {error}") from error


def _exits_pace(staged: Staged, pace: Pace, rows: NDArray[Any], most: int) -> Pace:
    """Return the pace of a network that rows leave early: any number may go on, so any must be proven."""
    x = np.ascontiguousarray(rows[np.arange(most) % len(rows)])

    def exits(part: NDArray[Any]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        logits = staged.exit_logits(part)
        return logits, logits

    every = frozenset(range(1, most + 1))
    whole = pace.sizes == every and proven(exits, x, range(2, most + 1)) == every
    return pace if whole else replace(pace, sizes=frozenset({1}))


def _meta(session: Any, digest: str) -> BundleMeta:
    text = session.get_modelmeta().custom_metadata_map.get(bundle.KEY)
    if text is None:
        raise BundleRefused(f"expected metadata {bundle.KEY!r} in {digest}, got none; export it again")
    try:
        return BundleMeta.model_validate_json(text)
    except ValidationError as error:
        raise BundleRefused(f"expected a bundle's metadata in {digest}, got {error}") from error


def _check_contract(session: Any, meta: BundleMeta, digest: str) -> int:
    """Return the embedding's width, once graph and metadata agree on names, types and shapes."""
    outputs = {spec.name: spec for spec in meta.outputs}
    named = ("logits", "embedding") if meta.exit is None else ("logits", "embedding", meta.exit.output)
    if tuple(outputs) != named:
        raise BundleRefused(f"expected outputs {' and '.join(named)} in {digest}, got {tuple(outputs)}")
    wanted = {meta.input.name: meta.input, **outputs}
    graph = {tensor.name: tensor for tensor in (*session.get_inputs(), *session.get_outputs())}
    if set(graph) != set(wanted) or len(session.get_inputs()) != 1:
        raise BundleRefused(f"expected tensors {sorted(wanted)} in {digest}, the graph has {sorted(graph)}")
    for name, spec in wanted.items():
        _check_tensor(graph[name], spec, digest)
    embedding = outputs["embedding"].shape
    if outputs["logits"].shape != (-1, len(meta.classes)) or len(embedding) != 2 or embedding[1] < 1:
        raise BundleRefused(
            f"expected logits (-1, {len(meta.classes)}) and embedding (-1, d) in {digest}, "
            f"got {outputs['logits'].shape} and {embedding}"
        )
    return embedding[1]


def _check_tensor(tensor: Any, spec: TensorSpec, digest: str) -> None:
    wanted_type = ORT_TYPES.get(spec.datatype, f"tensor({spec.datatype.value.lower()})")
    fixed = [dim if isinstance(dim, int) else -1 for dim in tensor.shape]
    same = len(fixed) == len(spec.shape) and all(
        came in (want, -1) for came, want in zip(fixed, spec.shape, strict=True)
    )
    if (
        tensor.type != wanted_type
        or not same
        or spec.shape[:1] != (-1,)
        or min(spec.shape[1:], default=1) < 1
    ):
        raise BundleRefused(
            f"expected tensor {spec.name} as {wanted_type} {spec.shape} in {digest}, "
            f"the graph has {tensor.type} {tensor.shape}"
        )


def _array(text: str, dtype: np.dtype[Any], shape: tuple[int, ...], where: str) -> NDArray[Any]:
    try:
        return np.frombuffer(base64.b64decode(text, validate=True), dtype).reshape(shape)
    except (binascii.Error, ValueError) as error:
        raise BundleRefused(f"expected base64 of {dtype} {shape} in {where}, got {error}") from error


def _check_golden(slot: Slot, golden: Golden, number: int) -> NDArray[Any]:
    """Return a golden's input, once the slot reproduces its outputs."""
    where = f"golden {number} ({golden.kind}) of {slot.digest}"
    spec, rows = slot.meta.input, golden.rows
    x = _array(golden.input_b64, NUMPY_TYPES[spec.datatype], (rows, *spec.shape[1:]), where)
    try:
        came = slot.run(x)
    except ModelFailed as error:
        raise BundleRefused(f"{where}: {error}") from error
    float32 = np.dtype("<f4")
    wanted = (
        _array(golden.logits_b64, float32, (rows, len(slot.meta.classes)), where),
        _array(golden.embedding_b64, float32, (rows, slot.embedding), where),
    )
    compared = list(zip(("logits", "embedding"), wanted, came, strict=True))
    if slot.staged is not None and golden.exit_logits_b64 is not None:
        want = _array(golden.exit_logits_b64, float32, wanted[0].shape, where)
        compared.append((slot.staged.output, want, slot.staged.exit_logits(x)))
    for name, want, got in compared:
        gap = np.abs(want - got)
        # NaN compares false with everything, so a graph that answers NaN fails here too.
        if not (gap <= GOLDEN_ATOL + GOLDEN_RTOL * np.abs(want)).all():
            raise BundleRefused(
                f"expected {name} of {where} within {GOLDEN_ATOL:g} + {GOLDEN_RTOL:g} of the number, "
                f"got a gap of {float(gap.max()):.3g}; export it again"
            )
    return x
