"""A foundry: small real nets for every kind of input, each with an int8 twin, rows that it can tell apart.

* A net has seeded random features; its classifier is fitted in one step, so that it is right on nearly all
  rows. The nets of two seeds differ, and both are good.
* The five kinds together use every operator that a search may write.
* The twin is made as a search makes it: static quantisation, QDQ, uint8 activations, int8 weights a channel.
"""

import base64
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from policies.bundle import KEY, BundleMeta, Golden
from policies.terms import Augmentation, Datatype, Genome, Modality, Task, TensorSpec
from policies.wire import canonical

CLASSES = ("a", "b", "c", "d")
WIDTH = 8
"""Of the embedding."""

Array = NDArray[Any]


@dataclass(frozen=True)
class Kind:
    """A kind of input: its name, modality, type and the shape of one row."""

    name: str
    modality: Modality
    datatype: Datatype
    row: tuple[int, ...]

    @property
    def spec(self) -> TensorSpec:
        return TensorSpec(name="x", datatype=self.datatype, shape=(-1, *self.row))

    @property
    def task(self) -> Task:
        return Task(
            name=self.name,
            modality=self.modality,
            model=self.name,
            input=self.spec,
            classes=CLASSES,
            group_parameter="group",
            sources=(),
            augmentation=Augmentation(),
        )

    def rows(self, n: int, seed: int) -> tuple[Array, NDArray[np.int64]]:
        """Return rows and labels, classes in turn: every class has a brightness or a height of its own."""
        rng = np.random.default_rng(seed)
        y = np.arange(n, dtype=np.int64) % len(CLASSES)
        means = np.random.default_rng(5).permutation(len(CLASSES) * 4).reshape(len(CLASSES), 4) / 16
        axis = {"grey": None, "colour": -1, "planes": 1, "window": 1, "table": 1}[self.name]
        level = np.linspace(0, 1, len(CLASSES))[y]
        shape = [n, *[1] * len(self.row)]
        if axis is None:
            base = np.broadcast_to(level.reshape(shape), (n, *self.row))
        else:
            width = self.row[axis if axis < 0 else axis - 1]
            shape[axis] = width
            base = np.broadcast_to(means[y][:, np.arange(width) % 4].reshape(shape), (n, *self.row))
        if self.datatype is Datatype.UINT8:
            return np.clip(40 + 150 * base + rng.normal(0, 12, base.shape), 0, 255).astype(np.uint8), y
        return (10 * base + rng.normal(0, 0.6, base.shape)).astype(np.float32), y


KINDS = {
    kind.name: kind
    for kind in (
        Kind("grey", Modality.IMAGE, Datatype.UINT8, (12, 12)),
        Kind("colour", Modality.IMAGE, Datatype.UINT8, (16, 16, 3)),
        Kind("planes", Modality.IMAGE, Datatype.UINT8, (3, 12, 12)),
        Kind("window", Modality.WINDOW, Datatype.FP32, (3, 40)),
        Kind("table", Modality.TABLE, Datatype.FP32, (7,)),
    )
}


@dataclass
class Draft:
    """A graph that is being drawn, with seeded weights."""

    rng: np.random.Generator
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: dict[str, Array] = field(default_factory=dict)
    params: int = 0

    def constant(self, value: Array) -> str:
        name = f"k{len(self.constants)}"
        self.constants[name] = value
        return name

    def node(self, operator: str, inputs: list[str], output: str = "", **settings: Any) -> str:
        output = output or f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [output], name=f"n.{output}", **settings))
        return output

    def learned(self, *shape: int) -> str:
        fan_in = max(1, int(np.prod(shape[1:])))
        self.params += int(np.prod(shape))
        return self.constant((self.rng.standard_normal(shape) * (2 / fan_in) ** 0.5).astype(np.float32))

    def conv(self, x: str, outputs: int, inputs: int, kernel: tuple[int, ...], stride: int) -> str:
        pads = [k // 2 for k in kernel] * 2
        strides = [stride if k > 1 else 1 for k in kernel]
        weights = [self.learned(outputs, inputs, *kernel), self.learned(outputs)]
        return self.node("Conv", [x, *weights], kernel_shape=list(kernel), pads=pads, strides=strides)

    def gemm(self, x: str, outputs: int, inputs: int, output: str = "") -> str:
        weights = [self.learned(outputs, inputs), self.learned(outputs)]
        return self.node("Gemm", [x, *weights], output, transB=1)

    def ints(self, *values: int) -> str:
        return self.constant(np.array(values, np.int64))

    def gated(self, x: str, gate: str, whole: tuple[int, ...]) -> str:
        """Squeeze and excite: each channel times what the mean of all of them says."""
        mean = self.node("ReduceMean", [x], axes=list(whole), keepdims=0)
        hidden = self.node("Relu", [self.gemm(mean, 4, WIDTH)])
        share = self.node(gate, [self.gemm(hidden, WIDTH, 4)])
        return self.node("Mul", [x, self.node("Unsqueeze", [share, self.ints(*whole)])])


def resizing(before: int, after: int) -> Array:
    """Return the matrix (before, after) that resizes a line by linear interpolation."""
    place = (np.arange(after) + 0.5) * before / after - 0.5
    near = np.abs(np.arange(before)[:, None] - np.clip(place, 0, before - 1)[None])
    matrix: Array = np.maximum(0.0, 1.0 - near).astype(np.float32)
    return matrix


def trunk(kind: Kind, draft: Draft) -> str:
    """Draw everything up to the embedding."""
    if kind.modality is Modality.TABLE:
        return _table(kind, draft)
    if kind.modality is Modality.WINDOW:
        return _window(kind, draft)
    scaled = draft.node("Mul", [draft.node("Cast", ["x"], to=1), draft.constant(np.float32(1 / 255))])
    channels = 1 if kind.name == "grey" else 3
    if kind.name == "grey":
        picture = draft.node("Reshape", [scaled, draft.ints(-1, 1, *kind.row)])
    elif kind.name == "colour":
        turned = draft.node("Transpose", [scaled], perm=[0, 3, 1, 2])
        across = draft.node("MatMul", [turned, draft.constant(resizing(16, 12))])
        picture = draft.node("MatMul", [draft.constant(np.ascontiguousarray(resizing(16, 12).T)), across])
    else:
        picture = scaled
    mean = draft.constant(np.full((channels, 1, 1), 0.4, np.float32))
    even = draft.node("Sub", [picture, mean])
    even = draft.node("Div", [even, draft.constant(np.full((channels, 1, 1), 0.25, np.float32))])
    first = draft.node("Relu", [draft.conv(even, WIDTH, channels, (3, 3), 2)])
    second = draft.gated(draft.conv(first, WIDTH, WIDTH, (3, 3), 1), "HardSigmoid", (2, 3))
    joined = draft.node("Relu", [draft.node("Add", [first, second])])
    return draft.node("Flatten", [draft.node("GlobalAveragePool", [joined])], "embedding", axis=1)


def _window(kind: Kind, draft: Draft) -> str:
    channels, steps = kind.row
    cut = draft.node("Slice", ["x", draft.ints(0), draft.ints(steps - 4), draft.ints(2)])
    mean = draft.constant(np.full((channels, 1), 4.0, np.float32))
    even = draft.node("Div", [draft.node("Sub", [cut, mean]), draft.constant(np.float32(3.0))])
    wide = draft.node("Unsqueeze", [draft.node("Softsign", [even]), draft.ints(2)])
    first = draft.node("Relu", [draft.conv(wide, WIDTH, channels, (1, 5), 2)])
    second = draft.gated(draft.conv(first, WIDTH, WIDTH, (1, 3), 1), "Sigmoid", (2, 3))
    joined = draft.node("Relu", [draft.node("Add", [first, second])])
    return draft.node("Flatten", [draft.node("GlobalAveragePool", [joined])], "embedding", axis=1)


def _table(kind: Kind, draft: Draft) -> str:
    (features,) = kind.row
    shift = draft.constant(np.full(features, 4.0, np.float32))
    even = draft.node("Mul", [draft.node("Sub", ["x", shift]), draft.constant(np.full(features, 0.3, "f4"))])
    ends = [draft.constant(np.float32(end)) for end in (-4.0, 4.0)]
    clipped = draft.node("Clip", [even, *ends])
    both = draft.node("Concat", [clipped, draft.node("Softsign", [clipped])], axis=1)
    hidden = draft.node("Relu", [draft.gemm(both, 24, 2 * features)])
    return draft.node("Relu", [draft.gemm(hidden, WIDTH, 24)], "embedding")


def net(kind: Kind, seed: int) -> tuple[onnx.ModelProto, int]:
    """Return a net that is right on nearly all rows of its kind, and how many learned numbers it has."""
    draft = Draft(np.random.default_rng(seed))
    trunk(kind, draft)
    x, y = kind.rows(400, seed=99)
    bare = _model(kind, draft, ["embedding"])
    (embedding,) = session(bare).run(["embedding"], {"x": x})
    known = np.concatenate([embedding, np.ones((len(x), 1), np.float32)], axis=1).astype(np.float64)
    wanted = 4.0 * np.eye(len(CLASSES))[y] - 2.0
    fitted = np.linalg.solve(known.T @ known + 1e-3 * np.eye(WIDTH + 1), known.T @ wanted)
    weight, bias = fitted[:-1].T.astype(np.float32), fitted[-1].astype(np.float32)
    names = [draft.constant(np.ascontiguousarray(weight)), draft.constant(bias)]
    draft.node("Gemm", ["embedding", *names], "logits", transB=1)
    return _model(kind, draft, ["logits", "embedding"]), draft.params + weight.size + bias.size


def _model(kind: Kind, draft: Draft, outputs: list[str]) -> onnx.ModelProto:
    widths = {"logits": len(CLASSES), "embedding": WIDTH}
    floats = TensorProto.FLOAT
    given = floats if kind.datatype is Datatype.FP32 else TensorProto.UINT8
    graph = helper.make_graph(
        draft.nodes,
        "net",
        [helper.make_tensor_value_info("x", given, ["batch", *kind.row])],
        [helper.make_tensor_value_info(name, floats, ["batch", widths[name]]) for name in outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in draft.constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)


def session(model: onnx.ModelProto) -> ort.InferenceSession:
    """Return a net in the runtime, on one thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


class _Rows(CalibrationDataReader):  # type: ignore[misc]  # it ships no types
    def __init__(self, x: Array) -> None:
        self._left: Iterator[dict[str, Array]] = iter([{"x": x}])

    def get_next(self) -> dict[str, Array] | None:
        return next(self._left, None)


def quantised(kind: Kind, model: onnx.ModelProto, folder: Path) -> onnx.ModelProto:
    """Return the int8 twin of a net."""
    path = folder / f"{kind.name}.int8.onnx"
    ready = onnx.load_from_string(model.SerializeToString())
    # Without this mark the quantiser advises, on the root logger, to prepare the model first.
    ready.metadata_props.add(key="onnx.quant.pre_process", value="onnxruntime.quant")
    quantize_static(
        ready,
        str(path),
        _Rows(kind.rows(200, seed=98)[0]),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        op_types_to_quantize=["Conv", "Gemm", "Add", "Relu", "GlobalAveragePool"],
    )
    made = onnx.load_model_from_string(path.read_bytes())
    del made.metadata_props[:]
    return made


def told(kind: Kind, model: onnx.ModelProto, params: int, genome: Genome) -> onnx.ModelProto:
    """Write a bundle's text into a net: goldens are what this very graph answers."""
    goldens = []
    run = session(model).run
    rng = np.random.default_rng(3)
    odd = rng.uniform(0, 255, (6, *kind.row)).astype("u1" if kind.datatype is Datatype.UINT8 else "f4")
    for name, x in (("clean", kind.rows(8, seed=97)[0]), ("probe", odd)):
        logits, embedding = run(["logits", "embedding"], {"x": x})
        goldens.append(
            Golden(
                kind=name, rows=len(x), input_b64=b64(x), logits_b64=b64(logits), embedding_b64=b64(embedding)
            )
        )
    about = BundleMeta(
        format=1,
        task=kind.name,
        model=kind.name,
        genome=genome,
        input=kind.spec,
        outputs=(
            TensorSpec(name="logits", datatype=Datatype.FP32, shape=(-1, len(CLASSES))),
            TensorSpec(name="embedding", datatype=Datatype.FP32, shape=(-1, WIDTH)),
        ),
        classes=CLASSES,
        brief="search-1",
        seed=1,
        params=params,
        macs=1000,
        goldens=tuple(goldens),
    )
    whole = onnx.load_from_string(model.SerializeToString())
    helper.set_model_props(whole, {KEY: canonical(about).decode()})
    return whole


def b64(array: Array) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()
