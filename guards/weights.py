"""Which numbers of a graph were learned, and the layers that they make.

* A number counts wherever it hides: in an initialiser that nobody reads, in a nested graph, in an attribute,
  in whole numbers that become weights.
* A quantised weight counts by its elements, as it did before it was quantised. Scales, zero points, shapes
  and axes describe other numbers and do not count.
* Nor does what only prepares the input: a shift and a scale no larger than one row of it, and the matrices
  that resize it. A matrix resizes when it leaves an even picture even; one that was learned does not.
* A tensor of one number is a constant; some writers give it a dimension.

``constraints`` counts, the report draws. Pure over the parsed model; nothing is run.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import prod

import numpy as np
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, numpy_helper

from guards import structure

_ARGUMENTS: dict[str, tuple[int, ...]] = {
    "Clip": (1, 2),
    "DequantizeLinear": (1, 2),
    "QuantizeLinear": (1, 2),
    "ReduceSum": (1,),
    "Reshape": (1,),
    "Slice": (1, 2, 3, 4),
    "Squeeze": (1,),
    "Unsqueeze": (1,),
}
"""Places of inputs that say how, not what."""

_SHAPING = frozenset(
    ("Cast", "Clip", "Concat", "DequantizeLinear", "Flatten", "QuantizeLinear", "Reshape", "Slice")
) | frozenset(("Softsign", "Squeeze", "Transpose", "Unsqueeze"))
_SHIFTING = frozenset(("Add", "Div", "Mul", "Sub"))
_UNEVEN = 0.01

Names = dict[str, TensorProto]
"""Constants by every name that they go by."""


@dataclass(frozen=True)
class Layer:
    """One layer with weights, for people: operator, kernel, channels in and out, stride, and whether int8."""

    operator: str
    kernel: tuple[int, ...]
    inputs: int
    outputs: int
    stride: int
    int8: bool = False

    def __str__(self) -> str:
        kernel = self.kernel if len(self.kernel) > 1 else (1, *self.kernel)
        side = f" {'×'.join(map(str, kernel))}" if max(kernel) > 1 else ""
        step = f", stride {self.stride}" if self.stride > 1 else ""
        return f"{self.operator}{side} {self.inputs}→{self.outputs}{step}{', int8' if self.int8 else ''}"


def count_params(model: ModelProto) -> int:
    """Return how many learned numbers a file holds."""
    graph = model.graph
    names = _names(graph)
    preparing = _preparing(graph, names)
    # A constant counts when anything takes it for a number; one that nothing reads hides, and counts too.
    read, counts = set(), set()
    for place, node in enumerate(graph.node):
        for at, name in enumerate(node.input):
            if name in names and not _is_alias(node, at):
                read.add(names[name].name)
                if place not in preparing and at not in _ARGUMENTS.get(node.op_type, ()):
                    counts.add(names[name].name)
    held = (t for t in graph.initializer if t.name in counts or t.name not in read)
    return (
        _numbers(held)
        + _numbers(_floating(structure.tensors(model)))
        - _numbers(_floating(graph.initializer))
    )


def layers(model: ModelProto) -> list[Layer]:
    """Return the layers with weights, in the order in which they run."""
    names = _names(model.graph)
    preparing = _preparing(model.graph, names)
    found = []
    for place, node in enumerate(model.graph.node):
        weight = names.get(node.input[1]) if len(node.input) > 1 else None
        if weight is None or place in preparing:
            continue
        shape, int8 = tuple(weight.dims), not structure.is_floating(weight)
        settings = {a.name: a for a in node.attribute}
        if node.op_type == "Conv" and len(shape) > 2:
            found.append(_conv(shape, settings, int8))
        elif node.op_type in ("Gemm", "MatMul") and len(shape) == 2:
            turned = "transB" in settings and settings["transB"].i == 1
            inputs, outputs = (shape[1], shape[0]) if turned else shape
            found.append(Layer("Linear", (1,), inputs, outputs, 1, int8))
    return found


def _floating(tensors: Iterable[TensorProto]) -> Iterator[TensorProto]:
    return (tensor for tensor in tensors if structure.is_floating(tensor))


def _numbers(tensors: Iterable[TensorProto]) -> int:
    return sum(size for tensor in tensors if (size := prod(tensor.dims)) > 1)


def _conv(shape: tuple[int, ...], settings: dict[str, AttributeProto], int8: bool) -> Layer:
    strides = settings["strides"].ints if "strides" in settings else (1,)
    groups = settings["group"].i if "group" in settings else 1
    return Layer("Conv", shape[2:], shape[1] * groups, shape[0], max(strides), int8)


def _names(graph: GraphProto) -> Names:
    """Return every constant by its name, and by that of its dequantised form."""
    names = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in names:
            names[node.output[0]] = names[node.input[0]]
    return names


def _is_alias(node: NodeProto, at: int) -> bool:
    # A constant that is dequantised is read where its dequantised form is.
    return node.op_type == "DequantizeLinear" and at == 0


def _preparing(graph: GraphProto, names: Names) -> set[int]:
    """Return the places of the nodes between the input and the first layer with weights."""
    raw = {info.name for info in graph.input}
    row = max((_row_size(info) for info in graph.input), default=1)
    found = set()
    for place, node in enumerate(graph.node):
        given = {name for name in node.input if name and name not in names}
        if given and given <= raw and _prepares(node, names, row):
            found.add(place)
            raw.update(node.output)
    return found


def _prepares(node: NodeProto, names: Names, row: int) -> bool:
    if node.op_type in _SHAPING:
        return all(at in _ARGUMENTS.get(node.op_type, ()) for at, _tensor in _constants(node, names))
    if node.op_type in _SHIFTING:
        return all(prod(tensor.dims) <= row for _at, tensor in _constants(node, names))
    return node.op_type == "MatMul" and all(_resizes(t, 1 - at) for at, t in _constants(node, names))


def _constants(node: NodeProto, names: Names) -> Iterator[tuple[int, TensorProto]]:
    return ((at, names[name]) for at, name in enumerate(node.input) if name in names)


def _resizes(tensor: TensorProto, axis: int) -> bool:
    """Tell whether a matrix, summed over ``axis``, makes an even picture of an even one; padding is zero."""
    if len(tensor.dims) != 2 or not structure.is_floating(tensor) or structure.external(tensor):
        return False
    sums = np.abs(numpy_helper.to_array(tensor).astype(np.float64).sum(axis=axis))
    kept = sums[sums > 0]
    return len(kept) > 1 and bool(kept.max() - kept.min() <= _UNEVEN * kept.max())


def _row_size(info: ValueInfoProto) -> int:
    """Return the numbers of one row of an input; its first dimension is the batch."""
    return prod(max(1, dim.dim_value) for dim in info.type.tensor_type.shape.dim[1:])
