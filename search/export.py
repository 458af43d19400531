"""The ONNX bundle: a subnet as one file, written node by node.

* Batch norms are folded into their convolutions; preprocessing is inside, so that what is judged is served.
* Plain operators only, opset and ir version fixed, no dates, no random names: equal weights, equal bytes.
* Its metadata (``policies.bundle.BundleMeta``) carries goldens that the unfolded network computed, so that
  a mistake in folding or in writing shows when the file is run.

Writing nodes costs about 5 ms; tracing through an exporter costs hundreds (measured, see facts).
"""

import base64
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from policies.bundle import KEY, OPSET, BundleMeta, Golden
from policies.terms import Brief, Datatype, Genome, TensorSpec
from policies.wire import canonical
from search.blueprint import Block, Blueprint, Conv

IR_VERSION = 10
GOLDEN_ROWS = 8

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Weights:
    """A subnet's numbers: (weight, bias) of every convolution in order, and of the classifier."""

    convs: tuple[tuple[Array, Array], ...]
    classifier: tuple[Array, Array]


class _Graph:
    """Nodes and constants, named by their place; a prefix keeps them apart from a task's own names."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, name: str, value: NDArray[np.generic]) -> str:
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def node(self, operator: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(operator, inputs, [output], name=output, **attributes))
        return output

    def conv(self, conv: Conv, weights: tuple[Array, Array], x: str, name: str) -> str:
        inputs = [
            x,
            self.constant(f"{name}.weight", weights[0]),
            self.constant(f"{name}.bias", weights[1]),
        ]
        pad = conv.kernel // 2
        y = self.node(
            "Conv",
            inputs,
            f"{name}.conv",
            kernel_shape=[conv.kernel, conv.kernel],
            strides=[conv.stride, conv.stride],
            pads=[pad, pad, pad, pad],
        )
        return self.node("Relu", [y], f"{name}.relu") if conv.relu else y

    def block(self, block: Block, weights: list[tuple[Array, Array]], x: str, name: str) -> str:
        y = x
        for index, (conv, pair) in enumerate(zip(block.convs, weights, strict=True)):
            y = self.conv(conv, pair, y, f"{name}.{index}")
        return self.node("Add", [x, y], f"{name}.add") if block.residual else y

    def model(self, inputs: list[onnx.ValueInfoProto], outputs: list[onnx.ValueInfoProto]) -> onnx.ModelProto:
        graph = helper.make_graph(self.nodes, "instar", inputs, outputs, initializer=self.constants)
        return helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="instar",
        )


def network_model(blueprint: Blueprint, weights: Weights, input_name: str) -> onnx.ModelProto:
    """Return the whole network, from UINT8 pixels to logits and embedding, without metadata."""
    graph = _Graph()
    x = graph.node("Cast", [input_name], "instar.pixels", to=TensorProto.FLOAT)
    x = graph.node(
        "Mul", [x, graph.constant("instar.unit", np.array(1 / 255, dtype=np.float32))], "instar.scaled"
    )
    x = graph.node(
        "Unsqueeze", [x, graph.constant("instar.channel", np.array([1], dtype=np.int64))], "instar.image"
    )
    rest = list(weights.convs)
    for index, block in enumerate(blueprint.blocks):
        count = len(block.convs)
        x = graph.block(block, rest[:count], x, f"instar.block{index}")
        rest = rest[count:]
    x = graph.node("GlobalAveragePool", [x], "instar.pooled")
    x = graph.node("Flatten", [x], "embedding", axis=1)
    weight, bias = weights.classifier
    parts = [
        x,
        graph.constant("instar.classifier.weight", weight),
        graph.constant("instar.classifier.bias", bias),
    ]
    graph.node("Gemm", parts, "logits", transB=1)
    pixels = helper.make_tensor_value_info(
        input_name, TensorProto.UINT8, ["batch", blueprint.height, blueprint.width]
    )
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", blueprint.classes])
    embedding = helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", blueprint.embedding])
    return graph.model([pixels], [logits, embedding])


def block_model(block: Block, rng: np.random.Generator) -> onnx.ModelProto:
    """Return one block alone with random weights, to be timed."""
    graph = _Graph()
    pairs = [random_pair(conv, rng) for conv in block.convs]
    graph.node("Identity", [graph.block(block, pairs, "x", "block")], "y")
    first, last = block.convs[0], block.convs[-1]
    shape = [1, first.inputs, first.height * first.stride, first.width * first.stride]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, last.outputs, "height", "width"])
    return graph.model([x], [y])


def random_weights(blueprint: Blueprint, rng: np.random.Generator) -> Weights:
    """Return weights of the right shapes, for a network that is only timed or weighed."""
    classifier = rng.standard_normal((blueprint.classes, blueprint.embedding)).astype(np.float32)
    pairs = tuple(random_pair(conv, rng) for conv in blueprint.convs)
    return Weights(pairs, (classifier, np.zeros(blueprint.classes, dtype=np.float32)))


def random_pair(conv: Conv, rng: np.random.Generator) -> tuple[Array, Array]:
    """Return one convolution's weight and bias at a natural scale (tiny numbers would be timed wrongly)."""
    fan_in = conv.inputs * conv.kernel**2
    weight = rng.standard_normal((conv.outputs, conv.inputs, conv.kernel, conv.kernel)) / np.sqrt(fan_in)
    return weight.astype(np.float32), np.zeros(conv.outputs, dtype=np.float32)


def bundle_bytes(model: onnx.ModelProto, meta: BundleMeta) -> bytes:
    """Return the file: the network with its metadata."""
    helper.set_model_props(model, {KEY: canonical(meta).decode()})
    raw: bytes = model.SerializeToString(deterministic=True)
    return raw


def bundle_meta(
    brief: Brief, genome: Genome, blueprint: Blueprint, goldens: tuple[Golden, ...]
) -> BundleMeta:
    """Return what a bundle says of itself."""
    return BundleMeta(
        format=1,
        task=brief.task.name,
        model=brief.task.model,
        genome=genome,
        input=brief.task.input,
        outputs=(
            TensorSpec(name="logits", datatype=Datatype.FP32, shape=(-1, blueprint.classes)),
            TensorSpec(name="embedding", datatype=Datatype.FP32, shape=(-1, blueprint.embedding)),
        ),
        classes=brief.task.classes,
        brief=brief.id,
        seed=brief.seed,
        params=blueprint.params,
        macs=blueprint.macs,
        goldens=goldens,
    )


def golden(
    kind: str, x: NDArray[np.uint8], logits: NDArray[np.float32], embedding: NDArray[np.float32]
) -> Golden:
    """Return inputs (n, h, w) and the outputs that the unfolded network gave for them."""
    return Golden(
        kind="clean" if kind == "clean" else "probe",
        rows=len(x),
        input_b64=_base64(x),
        logits_b64=_base64(logits.astype("<f4")),
        embedding_b64=_base64(embedding.astype("<f4")),
    )


def probes(height: int, width: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Return eight inputs that no camera takes: constants, extremes, a checkerboard, ramps, noise."""
    down, across = np.mgrid[0:height, 0:width]
    images = [
        np.zeros((height, width)),
        np.full((height, width), 255),
        np.full((height, width), 128),
        (down + across) % 2 * 255,
        down * 255 // (height - 1),
        across * 255 // (width - 1),
        rng.integers(0, 256, (height, width)),
        (rng.random((height, width)) < 0.02) * 255,
    ]
    return np.stack(images).astype(np.uint8)


def _base64(array: NDArray[np.generic]) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()
