"""Cutting a bundle in two at its trunk."""

from contextlib import suppress

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.utils import Extractor

from policies.bundle import Exit
from policies.cut import Halves, cut
from policies.errors import TamperError
from policies.terms import Datatype, TensorSpec

SIDE, WIDTH, CLASSES = 4, 6, 3
LEAVE = Exit(output="exit_logits", trunk=TensorSpec(name="trunk", datatype=Datatype.FP32, shape=(-1, WIDTH)))


def network(*, around: bool = False, kind: int = TensorProto.FLOAT) -> onnx.ModelProto:
    """Return a network with an exit; ``around``: its end sees the input beside the trunk."""
    rng = np.random.default_rng(0)
    arrays = {
        "unit": np.array(1 / 255, np.float32),
        "into": rng.normal(size=(SIDE * SIDE, WIDTH)).astype(np.float32),
        "leave": rng.normal(size=(WIDTH, CLASSES)).astype(np.float32),
        "middle": rng.normal(size=(WIDTH, WIDTH)).astype(np.float32),
        "half": np.array(0.5, np.float32),
        "out": rng.normal(size=(WIDTH, CLASSES)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Cast", ["image"], ["cast"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["cast", "unit"], ["scaled"]),
        helper.make_node("Flatten", ["scaled"], ["flat"], axis=1),
        helper.make_node("MatMul", ["flat", "into"], ["raw"]),
        helper.make_node("Relu", ["raw"], ["positive"]),
        helper.make_node("Mul", ["positive", "half"], ["trunk"]),
        helper.make_node("MatMul", ["trunk", "middle"], ["mixed"]),
        helper.make_node("Mul", ["mixed", "half"], ["embedding"]),
        helper.make_node("MatMul", ["embedding", "out"], ["plain"]),
        helper.make_node("Identity", ["plain"], ["logits"]),
        helper.make_node("MatMul", ["trunk", "leave"], ["exit_logits"]),
    ]
    if around:
        nodes[9:10] = [
            helper.make_node("ReduceMean", ["flat"], ["mean"], axes=[1], keepdims=1),
            helper.make_node("Add", ["plain", "mean"], ["logits"]),
        ]
    graph = helper.make_graph(
        nodes,
        "cut",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", SIDE, SIDE])],
        [
            helper.make_tensor_value_info(name, kind, ["batch", width])
            for name, width in (("logits", CLASSES), ("embedding", WIDTH), ("exit_logits", CLASSES))
        ],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
        value_info=[helper.make_tensor_value_info("trunk", TensorProto.FLOAT, ["batch", WIDTH])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    helper.set_model_props(model, {"instar.bundle": "x" * 1000})
    return model


def run(raw: bytes, names: list[str], feed: dict[str, np.ndarray]) -> list[np.ndarray]:
    session = ort.InferenceSession(raw, providers=["CPUExecutionProvider"])
    return [np.asarray(one) for one in session.run(names, feed)]


def halves() -> Halves:
    return cut(network().SerializeToString(), LEAVE)


def test_the_halves_answer_as_the_whole() -> None:
    raw, rows = network().SerializeToString(), np.random.default_rng(1).integers(0, 256, (5, SIDE, SIDE))
    x = rows.astype(np.uint8)
    names = ["logits", "embedding", "exit_logits"]
    whole = run(raw, names, {"image": x})
    two = cut(raw, LEAVE)
    exits, trunk = run(two.head, ["exit_logits", "trunk"], {"image": x})
    ends = run(two.tail, ["logits", "embedding"], {"trunk": trunk})
    for one, other in zip(whole, [*ends, exits], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)


def test_the_halves_are_valid_and_hold_what_they_need_alone() -> None:
    two = halves()
    head, tail = (onnx.load_model_from_string(raw) for raw in (two.head, two.tail))
    for model in (head, tail):
        onnx.checker.check_model(model, full_check=True)
        assert not model.metadata_props
    held = [{tensor.name for tensor in model.graph.initializer} for model in (head, tail)]
    assert held == [{"unit", "into", "half", "leave"}, {"middle", "half", "out"}]


def test_the_halves_are_those_of_the_library_that_writes_onnx() -> None:
    oracle = Extractor(network())
    wanted = [
        oracle.extract_model(["image"], ["exit_logits", "trunk"]),
        oracle.extract_model(["trunk"], ["logits", "embedding"]),
    ]
    two = halves()
    for raw, other in zip((two.head, two.tail), wanted, strict=True):
        mine = onnx.load_model_from_string(raw)
        assert [node.output[0] for node in mine.graph.node] == [node.output[0] for node in other.graph.node]
        assert {info.name for info in mine.graph.output} == {info.name for info in other.graph.output}


def test_what_a_node_leaves_out_joins_it_to_no_other() -> None:
    model = network()
    nodes = {node.output[0]: node for node in model.graph.node}
    # The head's node gives no mask, and the tail's wants no lower bound: both have the empty name.
    nodes["positive"].op_type = "Dropout"
    nodes["positive"].output.append("")
    nodes["embedding"].op_type = "Clip"
    del nodes["embedding"].input[1:]
    nodes["embedding"].input.extend(["", "half"])
    raw = model.SerializeToString()
    x = np.zeros((2, SIDE, SIDE), np.uint8)
    two = cut(raw, LEAVE)
    trunk = run(two.head, ["trunk"], {"image": x})[0]
    np.testing.assert_allclose(
        run(raw, ["logits"], {"image": x})[0], run(two.tail, ["logits"], {"trunk": trunk})[0], rtol=1e-6
    )


def test_a_trunk_in_int8_is_named_as_such() -> None:
    leave = LEAVE.model_copy(update={"trunk": LEAVE.trunk.model_copy(update={"datatype": Datatype.UINT8})})
    tail = onnx.load_model_from_string(cut(network().SerializeToString(), leave).tail)
    assert tail.graph.input[0].type.tensor_type.elem_type == TensorProto.UINT8


def test_an_end_that_sees_the_input_beside_the_trunk_is_refused() -> None:
    with pytest.raises(TamperError, match=r"through the trunk 'trunk' alone, it reads image too"):
        cut(network(around=True).SerializeToString(), LEAVE)


@pytest.mark.parametrize("name", ["image", "nowhere", "logits", "into"])
def test_a_trunk_that_is_none_is_refused(name: str) -> None:
    leave = LEAVE.model_copy(update={"trunk": LEAVE.trunk.model_copy(update={"name": name})})
    with pytest.raises(TamperError, match=f"expected a graph with the trunk '{name}' inside"):
        cut(network().SerializeToString(), leave)


def test_a_graph_without_the_exit_is_refused() -> None:
    model = network()
    del model.graph.output[2]
    with pytest.raises(TamperError, match=r"the output 'exit_logits' and others, .* logits, embedding;"):
        cut(model.SerializeToString(), LEAVE)


def test_a_file_that_ends_early_is_refused() -> None:
    raw = network().SerializeToString()
    with pytest.raises(TamperError, match="expected"):
        cut(raw[:-7], LEAVE)


@given(st.binary(max_size=200))
@settings(max_examples=300, deadline=None)
def test_bytes_of_any_kind_are_refused_and_nothing_else(raw: bytes) -> None:
    with pytest.raises(TamperError):
        cut(raw, LEAVE)


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_an_altered_byte_gives_halves_or_a_refusal(data: st.DataObject) -> None:
    raw = bytearray(network().SerializeToString())
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    with suppress(TamperError):
        assert isinstance(cut(bytes(raw), LEAVE), Halves)
