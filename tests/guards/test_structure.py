"""Attacks on the file: each is stopped by the guard that should, and its benign twin passes (the battery)."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from policies.bundle import KEY
from policies.case import Case
from policies.terms import Datatype, Finding, Genome, TensorSpec, Verdict
from policies.wire import canonical

Judge = Callable[[str, Case], Verdict]
Edit = Callable[[onnx.ModelProto], None]


def initializer(model: onnx.ModelProto, name: str) -> onnx.TensorProto:
    return next(tensor for tensor in model.graph.initializer if tensor.name == name)


def external_weights(model: onnx.ModelProto) -> None:
    tensor = initializer(model, "w1")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "../secret.bin"


def external_in_attribute(model: onnx.ModelProto) -> None:
    tensor = numpy_helper.from_array(np.ones(1, np.float32), "hidden")
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "/secret.bin"
    model.graph.node.append(helper.make_node("Constant", [], ["c"], name="c", value=tensor))


def branch(name: str) -> onnx.GraphProto:
    constant = numpy_helper.from_array(np.ones(1, np.float32), name)
    out = helper.make_tensor_value_info(f"{name}.out", TensorProto.FLOAT, None)
    return helper.make_graph(
        [helper.make_node("Identity", [name], [f"{name}.out"])], name, [], [out], [constant]
    )


def add_if(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    node = helper.make_node(
        "If", ["yes"], ["if"], name="if", then_branch=branch("one"), else_branch=branch("two")
    )
    model.graph.node.append(node)


def external_in_branch(model: onnx.ModelProto) -> None:
    add_if(model)
    tensor = model.graph.node[-1].attribute[0].g.initializer[0]
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "../secret.bin"


def add_loop(model: onnx.ModelProto) -> None:
    state = [
        helper.make_tensor_value_info("i", TensorProto.INT64, []),
        helper.make_tensor_value_info("go", TensorProto.BOOL, []),
    ]
    out = [helper.make_tensor_value_info("on", TensorProto.BOOL, [])]
    body = helper.make_graph([helper.make_node("Identity", ["go"], ["on"])], "body", state, out)
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    model.graph.node.append(helper.make_node("Loop", ["", "yes"], [], name="loop", body=body))


def forbidden(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Sign", ["scaled"], ["sign"], name="sign"))


def custom_node(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Relu", ["scaled"], ["r"], name="r", domain="evil"))


def custom_import(model: onnx.ModelProto) -> None:
    model.opset_import.append(helper.make_opsetid("evil", 1))


def function(model: onnx.ModelProto) -> None:
    node = helper.make_node("Relu", ["x"], ["y"])
    model.functions.append(
        helper.make_function("evil", "F", ["x"], ["y"], [node], [helper.make_opsetid("", 17)])
    )


def sparse(model: onnx.ModelProto) -> None:
    values = numpy_helper.from_array(np.ones(1, np.float32), "sparse")
    indices = numpy_helper.from_array(np.zeros(1, np.int64), "indices")
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [4]))


def training(model: onnx.ModelProto) -> None:
    model.training_info.add()


def nan_weight(model: onnx.ModelProto) -> None:
    spoil(model, "w1", np.nan)


def huge_weight(model: onnx.ModelProto) -> None:
    """Spoil a weight so that only bright inputs overflow."""
    spoil(model, "w1", 3e38)
    spoil(model, "w2", 3e38)


def spoil(model: onnx.ModelProto, name: str, value: float) -> None:
    tensor = initializer(model, name)
    values = numpy_helper.to_array(tensor).copy()
    values.flat[0] = value
    tensor.CopyFrom(numpy_helper.from_array(values, name))


def invalid(model: onnx.ModelProto) -> None:
    model.graph.node[1].input[0] = "nowhere"


def second_input(model: onnx.ModelProto) -> None:
    model.graph.input.append(helper.make_tensor_value_info("w2", TensorProto.FLOAT, [4, 8]))


def other_input_name(model: onnx.ModelProto) -> None:
    model.graph.input[0].name = model.graph.node[0].input[0] = "picture"


def fixed_batch(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1


def third_output(model: onnx.ModelProto) -> None:
    model.graph.output.append(helper.make_tensor_value_info("raw", TensorProto.FLOAT, ["batch", 8]))


def no_meta(model: onnx.ModelProto) -> None:
    del model.metadata_props[:]


def two_metas(model: onnx.ModelProto) -> None:
    model.metadata_props.add(key=KEY, value="{}")


def loose_meta(model: onnx.ModelProto) -> None:
    model.metadata_props[0].value = " " + model.metadata_props[0].value


def batch_dependent(model: onnx.ModelProto) -> None:
    """Normalise over the batch: a row's answer leaks into its neighbours'."""
    model.graph.node[5].output[0] = "alone"
    model.graph.node.extend(
        [
            helper.make_node("ReduceMean", ["alone"], ["mean"], name="mean", axes=[0]),
            helper.make_node("Sub", ["alone", "mean"], ["logits"], name="sub"),
        ]
    )


ATTACKS: dict[str, tuple[Edit, str]] = {
    "external data": (external_weights, "points outside it"),
    "external data in an attribute": (external_in_attribute, "points outside it"),
    "external data in a branch": (external_in_branch, "points outside it"),
    "If": (add_if, r"control flow.*\(If\)"),
    "Loop": (add_loop, r"control flow.*\(Loop\)"),
    "forbidden operator": (forbidden, r"allowed operators.*\(Sign\)"),
    "custom domain in a node": (custom_node, "'evil'"),
    "custom domain imported": (custom_import, "imports 'evil'"),
    "function": (function, "defines 'F'"),
    "sparse tensor": (sparse, "sparse"),
    "training graph": (training, "training graph"),
    "invalid graph": (invalid, "the checker says"),
    "NaN weight": (nan_weight, "1 of 128 in 'w1' are not"),
    "infinite on bright inputs": (huge_weight, "expected finite logits"),
    "second input": (second_input, "expected graph inputs image"),
    "input of another name": (other_input_name, "expected graph inputs image"),
    "fixed batch": (fixed_batch, "expected graph inputs image"),
    "third output": (third_output, "expected graph outputs logits"),
    "no metadata": (no_meta, "expected one metadata text instar.bundle, got 0"),
    "two metadata texts": (two_metas, "duplicate keys in metadata_props"),
    "metadata not canonical": (loose_meta, "another spelling"),
}


@pytest.mark.parametrize("attack", sorted(ATTACKS))
def test_integrity_refuses(attack: str, shop: Any, judge: Judge) -> None:
    edit, reason = ATTACKS[attack]
    said = judge("integrity", shop.case(bundle=shop.bundle(edit=edit)))
    assert said.finding is Finding.FAIL
    assert re.search(reason, said.reason), said.reason


def test_integrity_refuses_a_row_that_depends_on_its_batch(shop: Any, judge: Judge) -> None:
    said = judge("integrity", shop.case(bundle=shop.bundle(edit=batch_dependent)))
    assert said.finding is Finding.FAIL
    assert "not to depend on its batch" in said.reason


ABOUT: dict[str, tuple[dict[str, Any], str]] = {
    "another genome": ({"genome": Genome(space="image", genes=(9, 9, 9, 9))}, "expected genome"),
    "other classes": ({"classes": ("b", "a", "c", "d")}, "expected 4 classes"),
    "another task": ({"task": "dials"}, "it says dials"),
    "another type": (
        {"input": TensorSpec(name="image", datatype=Datatype.FP32, shape=(-1, 4, 4))},
        "expected input",
    ),
}


@pytest.mark.parametrize("lie", sorted(ABOUT))
def test_integrity_refuses_a_text_that_says(lie: str, shop: Any, judge: Judge) -> None:
    changes, reason = ABOUT[lie]

    def rewrite(model: onnx.ModelProto) -> None:
        from guards.structure import read_meta

        told = read_meta(model).model_copy(update=changes)
        helper.set_model_props(model, {KEY: canonical(told).decode()})

    said = judge("integrity", shop.case(bundle=shop.bundle(edit=rewrite)))
    assert said.finding is Finding.FAIL
    assert reason in said.reason


@pytest.mark.parametrize("raw", [b"", b"not a model", b"\x08\x0a"])
def test_integrity_refuses_bytes_that_are_no_model(raw: bytes, shop: Any, judge: Judge) -> None:
    said = judge("integrity", shop.case(bundle=shop.file("junk.onnx", raw)))
    assert said.finding is Finding.FAIL
    assert "expected an ONNX model" in said.reason


def test_parity_fails_logits_that_moved(shop: Any, judge: Judge) -> None:
    def nudge(model: onnx.ModelProto) -> None:
        spoil(model, "w2", 1.1)

    said = judge("parity", shop.case(bundle=shop.bundle(edit=nudge)))
    assert said.finding is Finding.FAIL
    assert "leave the trained network's" in said.reason


def test_parity_fails_a_branch_that_shows_on_probes_alone(shop: Any, bench: Any, judge: Judge) -> None:
    # Goldens of another net stand for a planted branch: clean agrees, the probe does not.
    lie = (bench.golden("clean", bench.CANDIDATE, 1), bench.golden("probe", bench.INCUMBENT, 2))
    said = judge("parity", shop.case(bundle=shop.bundle(goldens=lie)))
    assert said.finding is Finding.FAIL
    assert "probe by" in said.reason
    assert "clean by" not in said.reason


def test_parity_needs_both_kinds(shop: Any, bench: Any, judge: Judge) -> None:
    one = bench.golden("clean", bench.CANDIDATE, 1)
    said = judge("parity", shop.case(bundle=shop.bundle(goldens=(one, one))))
    assert said.finding is Finding.INCONCLUSIVE


def test_parity_fails_answers_that_are_not_finite(shop: Any, bench: Any, judge: Judge) -> None:
    said = judge("parity", shop.case(bundle=shop.bundle(edit=nan_weight)))
    assert said.finding is Finding.FAIL


@pytest.mark.parametrize("text", ["!!", "AAAA"])
def test_parity_fails_goldens_that_do_not_decode(text: str, shop: Any, bench: Any, judge: Judge) -> None:
    good = bench.golden("probe", bench.CANDIDATE, 2)
    broken = good.model_copy(update={"kind": "clean", "logits_b64": text})
    said = judge("parity", shop.case(bundle=shop.bundle(goldens=(broken, good))))
    assert said.finding is Finding.FAIL
    assert "golden logits" in said.reason


@pytest.mark.parametrize(
    ("old", "new"),
    [("max_params = 400000", "max_params = 167"), ("max_size_bytes = 2000000", "max_size_bytes = 500")],
)
def test_constraints_fails_what_is_too_large(old: str, new: str, shop: Any, judge: Judge) -> None:
    shop.rule(old, new)
    assert judge("constraints", shop.case()).finding is Finding.FAIL


def test_constraints_passes_what_just_fits(shop: Any, judge: Judge) -> None:
    shop.rule("max_params = 400000", "max_params = 168")
    said = judge("constraints", shop.case())
    assert said.finding is Finding.PASS
    assert [e.value for e in said.evidence if e.name == "params"] == [168]


def test_constraints_counts_what_hides_in_an_attribute(shop: Any, judge: Judge) -> None:
    def hide(model: onnx.ModelProto) -> None:
        tensor = numpy_helper.from_array(np.ones(50, np.float32), "hidden")
        model.graph.node.append(helper.make_node("Constant", [], ["c"], name="c", value=tensor))

    said = judge("constraints", shop.case(bundle=shop.bundle(edit=hide)))
    assert said.finding is Finding.FAIL
    assert "holds 218 parameters and declares 168" in said.reason
