"""The two models that every server of the bench serves: ONNX bundles with random weights, the same by seed.

* ``mlp``: 784-512-256-10, 0.54 M parameters; what a server itself costs decides.
* ``conv``: depthwise-separable convolutions, 0.29 M parameters; the runtime decides.
* Both take ``image`` (n, 1, 28, 28) FP32 and give ``logits`` (n, 10) and ``embedding`` (n, 256).
* The file is an Instar bundle, and an ordinary ONNX file to everybody else: all serve the same bytes.
"""

import base64
from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from policies import bundle
from policies.wire import canonical

CLASSES, EMBEDDING, SHAPE = 10, 256, (1, 28, 28)
_GOLDEN_ROWS = 4
# Output channels and stride of each depthwise-separable block, after a stem of 32 channels and stride 2.
_STEM = 32
_BLOCKS = ((64, 1), (128, 1), (128, 2), (128, 1), (256, 1), (256, 1), (256, 2), (256, 1))


class _Sketch:
    """A graph that is being written: its nodes and weights, and the random source of these."""

    def __init__(self, seed: int) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self._rng = np.random.default_rng(seed)

    def weight(self, name: str, shape: tuple[int, ...], fan_in: int) -> str:
        """Add a weight that keeps the variance of what a ReLU follows (He et al., 2015)."""
        array = self._rng.normal(0, (2 / fan_in) ** 0.5, shape).astype(np.float32)
        self.weights.append(numpy_helper.from_array(array, name))
        return name

    def conv(self, name: str, source: str, shape: tuple[int, int, int, int], stride: int, group: int) -> str:
        """Add a convolution of kernel ``shape`` (out, in, k, k) with bias and a ReLU; return its output."""
        kernel = self.weight(f"{name}.w", shape, shape[1] * shape[2] * shape[3])
        bias = self.weight(f"{name}.b", shape[:1], 10_000)
        pads = [shape[2] // 2] * 4
        self.nodes += [
            helper.make_node(
                "Conv", [source, kernel, bias], [f"{name}.c"], pads=pads, strides=[stride] * 2, group=group
            ),
            helper.make_node("Relu", [f"{name}.c"], [name]),
        ]
        return name

    def linear(self, name: str, source: str, fan_in: int, width: int) -> str:
        """Add a linear layer; return its output."""
        weight, bias = (
            self.weight(f"{name}.w", (fan_in, width), fan_in),
            self.weight(f"{name}.b", (width,), 10_000),
        )
        self.nodes.append(helper.make_node("Gemm", [source, weight, bias], [name]))
        return name

    def model(self) -> onnx.ModelProto:
        """Return what was written."""
        value, real = helper.make_tensor_value_info, TensorProto.FLOAT
        outputs = [value("logits", real, ["n", CLASSES]), value("embedding", real, ["n", EMBEDDING])]
        graph = helper.make_graph(
            self.nodes, "bench", [value("image", real, ["n", *SHAPE])], outputs, self.weights
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", bundle.OPSET)], ir_version=9)


def _mlp(seed: int) -> onnx.ModelProto:
    sketch = _Sketch(seed)
    sketch.nodes.append(helper.make_node("Flatten", ["image"], ["flat"]))
    hidden = sketch.linear("h0", "flat", 784, 512)
    sketch.nodes.append(helper.make_node("Relu", [hidden], ["r0"]))
    hidden = sketch.linear("h1", "r0", 512, EMBEDDING)
    sketch.nodes.append(helper.make_node("Relu", [hidden], ["embedding"]))
    sketch.linear("logits", "embedding", EMBEDDING, CLASSES)
    return sketch.model()


def _conv(seed: int) -> onnx.ModelProto:
    sketch = _Sketch(seed)
    source, width = sketch.conv("stem", "image", (_STEM, 1, 3, 3), 2, 1), _STEM
    for place, (wider, stride) in enumerate(_BLOCKS):
        source = sketch.conv(f"d{place}", source, (width, 1, 3, 3), stride, width)
        source = sketch.conv(f"p{place}", source, (wider, width, 1, 1), 1, 1)
        width = wider
    sketch.nodes += [
        helper.make_node("GlobalAveragePool", [source], ["pool"]),
        helper.make_node("Flatten", ["pool"], ["embedding"]),
    ]
    sketch.linear("logits", "embedding", EMBEDDING, CLASSES)
    return sketch.model()


GRAPHS: dict[str, Callable[[int], onnx.ModelProto]] = {"mlp": _mlp, "conv": _conv}


def digit(seed: int) -> NDArray[np.float32]:
    """Return one image (1, 1, 28, 28) of numbers in [0, 1) with four decimals, as clients write them."""
    return np.random.default_rng(seed).random((1, *SHAPE)).round(4).astype(np.float32)


def session(raw: bytes) -> ort.InferenceSession:
    """Return a session of one thread, as every server of the bench has it."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return ort.InferenceSession(raw, options, providers=["CPUExecutionProvider"])


def answer(raw: bytes, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the logits (n, 10) that the runtime gives."""
    (logits,) = session(raw).run(["logits"], {"image": x})
    return np.asarray(logits, np.float32)


def make_bundle(name: str, seed: int = 0) -> bytes:
    """Return the bytes of a bundle.

    Args:
        name: ``mlp`` or ``conv``.
        seed: Of the weights.
    """
    return with_meta(GRAPHS[name](seed), name, seed)


def with_meta(proto: onnx.ModelProto, name: str, seed: int) -> bytes:
    """Return a graph of this module's inputs and outputs as a bundle of model ``name``."""
    x = np.concatenate([digit(seed + row) for row in range(_GOLDEN_ROWS)])
    logits, embedding = session(proto.SerializeToString()).run(["logits", "embedding"], {"image": x})
    blobs = (base64.b64encode(array.tobytes()).decode() for array in (x, logits, embedding))
    golden = dict(zip(("input_b64", "logits_b64", "embedding_b64"), blobs, strict=True), rows=_GOLDEN_ROWS)
    meta = {
        "format": 1,
        "task": name,
        "model": name,
        "genome": {"space": "bench", "genes": [seed]},
        "input": {"name": "image", "datatype": "FP32", "shape": [-1, *SHAPE]},
        "outputs": [
            {"name": "logits", "datatype": "FP32", "shape": [-1, CLASSES]},
            {"name": "embedding", "datatype": "FP32", "shape": [-1, embedding.shape[1]]},
        ],
        "classes": [str(number) for number in range(CLASSES)],
        "brief": "bench",
        "seed": seed,
        "params": params(proto),
        "macs": 1,
        "goldens": [{"kind": "clean", **golden}, {"kind": "probe", **golden}],
    }
    helper.set_model_props(proto, {bundle.KEY: canonical(meta).decode()})
    return bytes(proto.SerializeToString())


def params(proto: onnx.ModelProto) -> int:
    """Return how many numbers the weights have."""
    return sum(int(np.prod(weight.dims)) for weight in proto.graph.initializer)
