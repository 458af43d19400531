"""How a bundle with an exit is cut in two: the head, up to the exit, and the tail, from the trunk on.

Called by whoever runs the halves: the data plane, the guards that time what is served, the search that weighs
an exit. All cut by this one function, so that what is judged is what is served.

* Both halves are ONNX files made of the bundle's own nodes and constants, byte for byte; nothing is changed
  but which of them are there. The bundle's text stays behind.
* The tail sees the input through the trunk alone. A graph in which it does not is refused.
* Graphs inside nodes are not looked into: the integrity guard lets no such bundle pass.

It works on the wire format, of which it needs a dozen fields, so that a process that serves need not load the
library that writes ONNX: that costs 12 MB and stands in the way of requests for 50 to 130 ms.

Source: https://protobuf.dev/programming-guides/encoding/; field numbers of onnx.proto (IR version 10), which
ONNX promises never to change.

Pure: bytes in, bytes out.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from policies.bundle import Exit
from policies.errors import TamperError
from policies.terms import Datatype, TensorSpec

_GRAPH, _TEXT = 7, 14
_NODE, _CONSTANT, _INPUT, _OUTPUT, _INFO, _GRAPH_TEXT = 1, 5, 11, 12, 13, 16
_NODE_INPUT, _NODE_OUTPUT = 1, 2
_CONSTANT_NAME, _INFO_NAME = 8, 1
_TYPES = {Datatype.FP32: 1, Datatype.UINT8: 2}

_VARINT, _EIGHT, _BYTES, _FOUR = 0, 1, 2, 5
_FIXED = {_EIGHT: 8, _FOUR: 4}
_MOST_VARINT_BYTES = 10


@dataclass(frozen=True)
class Halves:
    """Two ONNX files.

    Args:
        head: From the bundle's input to the exit's logits and the trunk.
        tail: From the trunk to logits and embedding.
    """

    head: bytes
    tail: bytes


@dataclass(frozen=True)
class _Part:
    """One field of a message: its number, its value, and all its bytes as they stand."""

    number: int
    value: bytes | int
    whole: bytes

    def inside(self) -> Iterator["_Part"]:
        """Yield the fields of a message in a message."""
        if isinstance(self.value, int):
            raise TamperError(f"expected a message in field {self.number}, got a number; export it again")
        return _parts(self.value)

    def texts(self, field: int) -> list[str]:
        """Return the texts that stand in a field of a message in a message."""
        try:
            found = [part.value for part in self.inside() if part.number == field]
            return [value.decode() for value in found if isinstance(value, bytes)]
        except UnicodeDecodeError as error:
            raise TamperError(
                f"expected names in the bundle's graph, got {error}; export it again"
            ) from error


@dataclass(frozen=True)
class _Node:
    part: _Part
    inputs: frozenset[str]
    outputs: frozenset[str]


def cut(raw: bytes, leave: Exit) -> Halves:
    """Return a bundle's halves.

    Args:
        raw: The whole file, which a runtime has loaded or a checker has passed.
        leave: What its text says of its exit.

    Raises:
        TamperError: The bytes are no ONNX model, or its exit is not as its text says.
    """
    model = list(_parts(raw))
    around = b"".join(part.whole for part in model if part.number not in (_GRAPH, _TEXT))
    parts = [inner for part in model if part.number == _GRAPH for inner in part.inside()]
    # An empty name stands for an input or output that is left out, and joins nothing.
    nodes = [
        _Node(part, frozenset(part.texts(_NODE_INPUT)) - {""}, frozenset(part.texts(_NODE_OUTPUT)) - {""})
        for part in parts
        if part.number == _NODE
    ]
    inputs, outputs = _infos(parts, _INPUT), _infos(parts, _OUTPUT)
    trunk, rest = leave.trunk.name, [name for name in outputs if name != leave.output]
    inside = any(trunk in node.outputs for node in nodes) and trunk not in outputs
    if not inside or leave.output not in outputs or not rest:
        raise TamperError(
            f"expected a graph with the trunk {trunk!r} inside, the output {leave.output!r} and others, the "
            f"bundle has outputs {', '.join(outputs) or 'of no name'}; export it again"
        )
    head = _needed(nodes, {trunk, leave.output}, set(inputs))
    tail = _needed(nodes, set(rest), {trunk})
    around_trunk = {name for node in tail for name in node.inputs} & set(inputs)
    if around_trunk:
        raise TamperError(
            f"expected the rest of the graph to see the input through the trunk {trunk!r} alone, it reads "
            f"{', '.join(sorted(around_trunk))} too; export the bundle again"
        )
    between = _info(leave.trunk)
    ends = [outputs[leave.output], _field(_OUTPUT, between)]
    return Halves(
        head=around + _graph(parts, head, list(inputs.values()), ends),
        tail=around + _graph(parts, tail, [_field(_INPUT, between)], [outputs[name] for name in rest]),
    )


def _infos(parts: list[_Part], field: int) -> dict[str, bytes]:
    """Return the inputs or outputs of a graph by name, as they stand."""
    return {name: p.whole for p in parts if p.number == field for name in p.texts(_INFO_NAME)}


def _needed(nodes: list[_Node], wanted: set[str], given: set[str]) -> list[_Node]:
    """Return the nodes that make what is wanted from what is given, in their order."""
    missing, kept = wanted - given, []
    for node in reversed(nodes):
        # Nodes stand in the order in which they run, so that one pass backwards finds all.
        if node.outputs & missing:
            kept.append(node)
            missing |= node.inputs - given
    return kept[::-1]


def _graph(parts: list[_Part], nodes: list[_Node], inputs: list[bytes], outputs: list[bytes]) -> bytes:
    """Return a graph of some of the nodes, with the constants that they read."""
    reads = {name for node in nodes for name in node.inputs}
    kept = [node.part.whole for node in nodes]
    for part in parts:
        if part.number == _CONSTANT:
            kept += [part.whole] if reads.intersection(part.texts(_CONSTANT_NAME)) else []
        elif part.number not in (_NODE, _INPUT, _OUTPUT, _INFO, _GRAPH_TEXT):
            kept.append(part.whole)
    return _field(_GRAPH, b"".join([*kept, *inputs, *outputs]))


def _info(spec: TensorSpec) -> bytes:
    """Return a tensor's name and type as the format has them; a dimension of -1 is the batch."""
    sizes = [_field(2, b"batch") if size < 0 else _field(1, size) for size in spec.shape]
    shape = b"".join(_field(1, size) for size in sizes)
    kind = _field(1, _TYPES[spec.datatype]) + _field(2, shape)
    return _field(_INFO_NAME, spec.name.encode()) + _field(2, _field(1, kind))


# -- the wire format --------------------------------------------------------------------------------------


def _parts(raw: bytes) -> Iterator[_Part]:
    """Yield the fields of a message.

    >>> [(part.number, part.value) for part in _parts(bytes([8, 150, 1, 18, 2, 104, 105]))]
    [(1, 150), (2, b'hi')]
    """
    at = 0
    while at < len(raw):
        began = at
        key, at = _varint(raw, at)
        number, kind = key >> 3, key & 7
        if kind == _VARINT:
            value, at = _varint(raw, at)
            yield _Part(number, value, raw[began:at])
            continue
        if kind == _BYTES:
            size, at = _varint(raw, at)
        elif kind in _FIXED:
            size = _FIXED[kind]
        else:
            raise TamperError(
                f"expected an ONNX model, got wire type {kind} at byte {began}; export it again"
            )
        if at + size > len(raw):
            raise TamperError(f"expected {size} bytes in field {number}, got {len(raw) - at}; fetch it again")
        at += size
        yield _Part(number, raw[at - size : at], raw[began:at])


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    """Return a number of variable length, and where it ends."""
    value = 0
    for place, byte in enumerate(raw[at : at + _MOST_VARINT_BYTES]):
        value |= (byte & 127) << (7 * place)
        if byte < 128:
            return value, at + place + 1
    raise TamperError(f"expected a number at byte {at}, the file ends or the number does not; fetch it again")


def _field(number: int, value: bytes | int) -> bytes:
    """Return one field.

    >>> _field(1, 150) + _field(2, b"hi")
    b'\\x08\\x96\\x01\\x12\\x02hi'
    """
    if isinstance(value, int):
        return _number(number << 3 | _VARINT) + _number(value)
    return _number(number << 3 | _BYTES) + _number(len(value)) + value


def _number(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])
