"""A network as an ONNX graph, written node by node from a blueprint and its numbers.

* Batch norms are folded into their convolutions; preprocessing is inside, so that what is judged is served.
* Plain operators only, opset and ir version fixed, no dates, no random names: equal weights, equal bytes.
* A convolution over a single position is written as a matrix product.

Writing nodes costs a few milliseconds; tracing through an exporter costs hundreds (measured, see
``benchmarks/search``).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from policies.bundle import OPSET
from policies.terms import Datatype, Precision, TensorSpec
from search.blueprint import Block, Blueprint, Conv, Entry, Layout, Squeeze
from search.rows import FAR, shrink

IR_VERSION = 10

LAST = "logits"
"""Name of the node of the last layer."""

EXIT: Final = "exit_logits"
OUT = "instar.exit"
"""What the names of all nodes begin with that lead out in the middle."""

Array = NDArray[np.float32]
Pair = tuple[Array, Array]


@dataclass(frozen=True)
class Weights:
    """A subnet's numbers.

    Args:
        convs: (weight, bias) of every convolution in order, the batch norm folded in.
        squeezes: (weight, bias) of both layers of every squeeze in order.
        classifier: (weight, bias) of the last layer.
        standard: Mean and 1 / spread of each channel; not used for pixels.
    """

    convs: tuple[Pair, ...]
    squeezes: tuple[tuple[Pair, Pair], ...]
    classifier: Pair
    standard: Pair


@dataclass(frozen=True)
class Way:
    """A way out in the middle of a network: average pool, then one linear layer.

    Args:
        after: Blocks that have run when a row may leave.
        pair: (weight, bias) of its layer.
    """

    after: int
    pair: Pair


class _Graph:
    """Nodes and constants, named by their place; a prefix keeps them apart from a task's own names."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, name: str, value: NDArray[np.generic]) -> str:
        # Written as raw bytes: a list of numbers would take a Python object each.
        array = np.ascontiguousarray(value)
        kind = helper.np_dtype_to_tensor_dtype(array.dtype)
        self.constants.append(
            TensorProto(name=name, dims=array.shape, data_type=kind, raw_data=array.tobytes())
        )
        return name

    def node(self, operator: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(operator, inputs, [output], name=output, **attributes))
        return output

    def gemm(self, pair: Pair, x: str, name: str, output: str) -> str:
        inputs = [x, self.constant(f"{name}.weight", pair[0]), self.constant(f"{name}.bias", pair[1])]
        return self.node("Gemm", inputs, output, transB=1)

    def conv(self, conv: Conv, pair: Pair, x: str, name: str) -> str:
        if conv.dense:
            weight = pair[0].reshape(conv.outputs, conv.inputs)
            y = self.gemm((weight, pair[1]), x, name, f"{name}.conv")
        else:
            inputs = [x, self.constant(f"{name}.weight", pair[0]), self.constant(f"{name}.bias", pair[1])]
            down, across = (side // 2 for side in conv.kernel)
            y = self.node(
                "Conv",
                inputs,
                f"{name}.conv",
                kernel_shape=list(conv.kernel),
                strides=list(conv.stride),
                pads=[down, across, down, across],
            )
        return self.node("Relu", [y], f"{name}.relu") if conv.relu else y

    def weigh(self, pairs: tuple[Pair, Pair], x: str, name: str) -> str:
        y = self.node("GlobalAveragePool", [x], f"{name}.pooled")
        for pair, part in zip(pairs, ("reduce", "expand"), strict=True):
            weight = pair[0][:, :, None, None]
            inputs = [
                y,
                self.constant(f"{name}.{part}.weight", weight),
                self.constant(f"{name}.{part}.bias", pair[1]),
            ]
            y = self.node("Conv", inputs, f"{name}.{part}", kernel_shape=[1, 1])
            if part == "reduce":
                y = self.node("Relu", [y], f"{name}.relu")
        y = self.node("HardSigmoid", [y], f"{name}.share", alpha=1 / 6, beta=0.5)
        return self.node("Mul", [x, y], f"{name}.weighed")

    def block(
        self, block: Block, weights: Iterator[Pair], squeezes: Iterator[tuple[Pair, Pair]], x: str, name: str
    ) -> str:
        y = x
        for index, conv in enumerate(block.convs):
            y = self.conv(conv, next(weights), y, f"{name}.{index}")
        if block.squeeze is not None:
            y = self.weigh(next(squeezes), y, f"{name}.squeeze")
        return self.node("Add", [x, y], f"{name}.add") if block.residual else y

    def leave(self, trunk: str, way: Way, output: str) -> None:
        """Write a way out of a picture in the middle of a network."""
        name = f"{OUT}{way.after}"
        x = self.node("GlobalAveragePool", [trunk], f"{name}.pooled")
        x = self.node("Flatten", [x], f"{name}.flat", axis=1)
        self.gemm(way.pair, x, name, f"{name}.layer")
        # The node is named by its place, so that it is known as a way out; its result by what it is.
        self.nodes[-1].output[0] = output

    def enter(self, entry: Entry, standard: Pair, x: str) -> str:
        """Write what happens to a row first."""
        if entry.layout.pixels:
            x = self.node("Cast", [x], "instar.pixels", to=TensorProto.FLOAT)
            unit = self.constant("instar.unit", np.array(1 / 255, dtype=np.float32))
            x = self.node("Mul", [x, unit], "instar.scaled")
            x = self._axes(entry.layout, x)
            return x if entry.whole else self._resize(entry, x)
        if entry.layout is Layout.CT:
            x = self._latest(entry, x)
        shape = (1, -1) if entry.layout is Layout.F else (1, -1, 1)
        mean = self.constant("instar.mean", standard[0].reshape(shape))
        factor = self.constant("instar.factor", standard[1].reshape(shape))
        x = self.node("Sub", [x, mean], "instar.centred")
        x = self.node("Mul", [x, factor], "instar.scaled")
        ends = [
            self.constant(name, np.array(end, dtype=np.float32))
            for name, end in (("instar.lowest", -FAR), ("instar.highest", FAR))
        ]
        x = self.node("Clip", [x, *ends], "instar.clipped")
        return (
            self.node("Softsign", [x], "instar.squashed")
            if entry.layout is Layout.F
            else self._axes(entry.layout, x)
        )

    def _axes(self, layout: Layout, x: str) -> str:
        if layout is Layout.HWC:
            return self.node("Transpose", [x], "instar.image", perm=[0, 3, 1, 2])
        if layout is Layout.CHW:
            return x
        axis = np.array([2 if layout is Layout.CT else 1], dtype=np.int64)
        return self.node("Unsqueeze", [x, self.constant("instar.axis", axis)], "instar.image")

    def _resize(self, entry: Entry, x: str) -> str:
        down = self.constant("instar.down", shrink(entry.height, entry.to_height))
        across = self.constant("instar.across", shrink(entry.width, entry.to_width).T)
        x = self.node("MatMul", [down, x], "instar.lower")
        return self.node("MatMul", [x, across], "instar.smaller")

    def _latest(self, entry: Entry, x: str) -> str:
        if entry.whole:
            return x
        bounds = (entry.width - entry.to_width, entry.width, 2)
        names = ("instar.first", "instar.last", "instar.steps")
        inputs = [
            self.constant(name, np.array([bound], dtype=np.int64))
            for name, bound in zip(names, bounds, strict=True)
        ]
        return self.node("Slice", [x, *inputs], "instar.latest")

    def model(self, inputs: list[onnx.ValueInfoProto], outputs: list[onnx.ValueInfoProto]) -> onnx.ModelProto:
        graph = helper.make_graph(self.nodes, "instar", inputs, outputs, initializer=self.constants)
        return helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="instar",
        )


def row_shape(entry: Entry) -> tuple[int, ...]:
    """Return the shape of one row as it is served."""
    match entry.layout:
        case Layout.HW:
            return entry.height, entry.width
        case Layout.HWC:
            return entry.height, entry.width, entry.channels
        case Layout.CHW:
            return entry.channels, entry.height, entry.width
        case Layout.CT:
            return entry.channels, entry.width
        case Layout.F:
            return (entry.channels,)


def exit_names(ways: Sequence[Way]) -> list[str]:
    """Return what the outputs of ways out are called: one is the exit, several are told apart."""
    return [EXIT] if len(ways) == 1 else [f"{OUT}{way.after}.logits" for way in ways]


def trunk_of(blueprint: Blueprint, after: int) -> TensorSpec:
    """Return the tensor that the first ``after`` blocks end in, as it is handed on."""
    block = blueprint.blocks[after - 1]
    last, index = block.convs[-1], len(block.convs) - 1
    end = "add" if block.residual else "squeeze.weighed" if block.squeeze else f"{index}.conv"
    if end == f"{index}.conv" and last.relu:
        end = f"{index}.relu"
    name, shape = f"instar.block{after - 1}.{end}", (-1, last.outputs, last.height, last.width)
    if blueprint.precision is Precision.INT8:
        # Cut between quantising and dequantising, both halves keep their fast kernels.
        return TensorSpec(name=f"{name}_QuantizeLinear_Output", datatype=Datatype.UINT8, shape=shape)
    return TensorSpec(name=name, datatype=Datatype.FP32, shape=shape)


def network_model(
    blueprint: Blueprint, weights: Weights, input_name: str, ways: Sequence[Way] = ()
) -> onnx.ModelProto:
    """Return the whole network in full precision, from a raw row to logits and embedding, without metadata.

    With ways out it has outputs ``exit_names`` beside these: one to be served, or several to be weighed.
    """
    graph = _Graph()
    entry = blueprint.entry
    x = graph.enter(entry, weights.standard, input_name)
    convs, squeezes = iter(weights.convs), iter(weights.squeezes)
    ends = []
    for index, block in enumerate(blueprint.blocks):
        ends.append(x := graph.block(block, convs, squeezes, x, f"instar.block{index}"))
    if blueprint.convs[-1].dense:
        # The last product is the embedding already; a node that only renames is one node too many.
        graph.nodes[-1].output[0] = x = "embedding"
    else:
        x = graph.node("GlobalAveragePool", [x], "instar.pooled")
        x = graph.node("Flatten", [x], "embedding", axis=1)
    graph.gemm(weights.classifier, x, "instar.classifier", LAST)
    kind = TensorProto.UINT8 if entry.layout.pixels else TensorProto.FLOAT
    rows = helper.make_tensor_value_info(input_name, kind, ["batch", *row_shape(entry)])
    widths = {LAST: blueprint.classes, "embedding": blueprint.embedding}
    for way, output in zip(ways, exit_names(ways), strict=True):
        graph.leave(ends[way.after - 1], way, output)
        widths[output] = blueprint.classes
    outputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", width])
        for name, width in widths.items()
    ]
    return graph.model([rows], outputs)


def block_model(block: Block, rng: np.random.Generator) -> onnx.ModelProto:
    """Return one block alone with random weights, to be timed."""
    graph = _Graph()
    pairs = iter([random_pair(conv, rng) for conv in block.convs])
    squeezes = iter([] if block.squeeze is None else [random_squeeze(block.squeeze, rng)])
    graph.node("Identity", [graph.block(block, pairs, squeezes, "x", "block")], "y")
    first, last = block.convs[0], block.convs[-1]
    if first.dense:
        came, left = [1, first.inputs], [1, last.outputs]
    else:
        came = [1, first.inputs, first.height * first.stride[0], first.width * first.stride[1]]
        left = [1, last.outputs, last.height, last.width]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, came)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, left)
    return graph.model([x], [y])


def entry_model(entry: Entry) -> onnx.ModelProto:
    """Return a way in alone, to be timed."""
    graph = _Graph()
    standard = np.zeros(entry.channels, np.float32), np.ones(entry.channels, np.float32)
    graph.node("Identity", [graph.enter(entry, standard, "x")], "y")
    kind = TensorProto.UINT8 if entry.layout.pixels else TensorProto.FLOAT
    x = helper.make_tensor_value_info("x", kind, [1, *row_shape(entry)])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    return graph.model([x], [y])


def random_weights(blueprint: Blueprint, rng: np.random.Generator) -> Weights:
    """Return weights of the right shapes, for a network that is only timed or weighed."""
    classifier = rng.standard_normal((blueprint.classes, blueprint.embedding)).astype(np.float32)
    channels = blueprint.entry.channels
    return Weights(
        convs=tuple(random_pair(conv, rng) for conv in blueprint.convs),
        squeezes=tuple(
            random_squeeze(block.squeeze, rng) for block in blueprint.blocks if block.squeeze is not None
        ),
        classifier=(classifier, np.zeros(blueprint.classes, dtype=np.float32)),
        standard=(np.zeros(channels, np.float32), np.ones(channels, np.float32)),
    )


def random_pair(conv: Conv, rng: np.random.Generator) -> Pair:
    """Return one convolution's weight and bias at a natural scale (tiny numbers would be timed wrongly)."""
    fan_in = conv.inputs * conv.kernel[0] * conv.kernel[1]
    weight = rng.standard_normal((conv.outputs, conv.inputs, *conv.kernel)) / np.sqrt(fan_in)
    return weight.astype(np.float32), np.zeros(conv.outputs, dtype=np.float32)


def random_squeeze(squeeze: Squeeze, rng: np.random.Generator) -> tuple[Pair, Pair]:
    """Return weight and bias of a squeeze's two layers."""
    reduce = rng.standard_normal((squeeze.hidden, squeeze.channels)) / np.sqrt(squeeze.channels)
    expand = rng.standard_normal((squeeze.channels, squeeze.hidden)) / np.sqrt(squeeze.hidden)
    return (
        (reduce.astype(np.float32), np.zeros(squeeze.hidden, dtype=np.float32)),
        (expand.astype(np.float32), np.zeros(squeeze.channels, dtype=np.float32)),
    )
