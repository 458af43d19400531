"""What an ONNX file is made of, read without running it: tensors, nodes, graphs, its own text.

* Every walk goes into every nested graph, function and attribute, so that nothing hides a level deeper.
* Parsing is protobuf alone: no path is followed, no operator runs.

Pure over bytes; ``integrity`` decides, ``weights`` counts.
"""

from collections.abc import Iterator

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, numpy_helper
from pydantic import ValidationError

from policies.bundle import KEY, BundleMeta
from policies.errors import TamperError
from policies.wire import parse_canonical

_GRAPHS = (AttributeProto.GRAPH, AttributeProto.GRAPHS)
_FLOATING = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16)


def parse(raw: bytes) -> ModelProto:
    """Read a model.

    Raises:
        TamperError: The bytes are not an ONNX model.
    """
    try:
        model = onnx.load_model_from_string(raw)
    except DecodeError as error:
        raise TamperError(f"expected an ONNX model, got bytes that do not parse: {error}") from error
    if not model.HasField("graph"):
        raise TamperError("expected an ONNX model with a graph, got none")
    return model


def read_meta(model: ModelProto) -> BundleMeta:
    """Read what a bundle says of itself.

    Raises:
        TamperError: The text is missing, doubled, not canonical or not of the contract.
    """
    texts = [prop.value for prop in model.metadata_props if prop.key == KEY]
    if len(texts) != 1:
        raise TamperError(f"expected one metadata text {KEY}, got {len(texts)}")
    raw = texts[0].encode()
    parse_canonical(raw, f"metadata {KEY}")
    try:
        return BundleMeta.model_validate_json(raw)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, fault["loc"]))
        raise TamperError(f"expected metadata {KEY} of format 1, got {where}: {fault['msg']}") from error


def graphs(model: ModelProto) -> Iterator[GraphProto]:
    """Yield the graph and every graph nested in it; functions hold nodes, not graphs, but may nest them."""
    waiting = [model.graph]
    waiting += [graph for function in model.functions for graph in _nested(function.node)]
    while waiting:
        graph = waiting.pop()
        yield graph
        waiting += _nested(graph.node)


def nodes(model: ModelProto) -> Iterator[NodeProto]:
    """Yield every node, wherever it is nested."""
    for graph in graphs(model):
        yield from graph.node
    for function in model.functions:
        yield from function.node


def tensors(model: ModelProto) -> Iterator[TensorProto]:
    """Yield every tensor that the file carries: initialisers, sparse parts, attributes of nodes."""
    for graph in graphs(model):
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)
    for node in nodes(model):
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for sparse in (*attribute.sparse_tensors, attribute.sparse_tensor):
                yield from (sparse.values, sparse.indices)


def external(tensor: TensorProto) -> bool:
    """Tell whether a tensor's data lie outside the file, or claim to."""
    return tensor.data_location == TensorProto.EXTERNAL or len(tensor.external_data) > 0


def is_floating(tensor: TensorProto) -> bool:
    """Tell whether a tensor holds floating-point numbers."""
    return tensor.data_type in _FLOATING


def has_graph(node: NodeProto) -> bool:
    """Tell whether a node carries a graph of its own: control flow, by whatever name."""
    return any(a.type in _GRAPHS or a.HasField("g") or len(a.graphs) > 0 for a in node.attribute)


def floats(model: ModelProto) -> Iterator[tuple[str, NDArray[np.generic]]]:
    """Yield name and values of every floating-point tensor that is in the file."""
    for tensor in tensors(model):
        if is_floating(tensor) and not external(tensor):
            yield tensor.name or "unnamed", numpy_helper.to_array(tensor)


def _nested(nodes_: "list[NodeProto]") -> list[GraphProto]:
    found = []
    for node in nodes_:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                found.append(attribute.g)
            found += attribute.graphs
    return found
