"""Every guard gives a real answer on images, windows and tables, in fp32 and in int8."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from guards import structure, weights
from guards.roster import BUILTIN
from policies.case import Case, PanelResult
from policies.document import parse
from policies.errors import TamperError
from policies.terms import Finding, Verdict
from policies.wire import canonical
from tests.modalities.conftest import CANDIDATE, PROFILES, Bench
from tests.modalities.foundry import KINDS, Kind

Judge = Callable[[str, Case], Verdict]

WRITTEN = {
    *("Cast", "Sub", "Mul", "Div", "Add", "Unsqueeze", "Reshape", "Transpose", "MatMul", "Slice", "Clip"),
    *("Softsign", "Conv", "Relu", "GlobalAveragePool", "ReduceMean", "Sigmoid", "HardSigmoid", "Flatten"),
    *("Concat", "Gemm", "QuantizeLinear", "DequantizeLinear"),
}
"""What a search may write."""

every_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.name)
both = pytest.mark.parametrize("int8", [False, True], ids=["fp32", "int8"])


@pytest.mark.parametrize("name", sorted(BUILTIN))
@both
@every_kind
def test_an_honest_bundle_passes(kind: Kind, int8: bool, name: str, bench: Bench, judge: Judge) -> None:
    said = judge(name, bench.case(kind, int8))
    assert said.finding is Finding.PASS, said.reason
    assert re.search(r"\d", said.reason)


def test_the_kinds_use_all_that_a_search_may_write_and_the_profiles_allow_it(bench: Bench) -> None:
    used = {
        node.op_type
        for kind in KINDS.values()
        for int8 in (False, True)
        for node in bench.net(kind, CANDIDATE, int8)[0].graph.node
    }
    assert used == WRITTEN
    quantising = {"QuantizeLinear", "DequantizeLinear"}
    for path in sorted(PROFILES.glob("*.toml")):
        allowed = set(parse(path.read_text()).modification_protocol.evaluation.integrity.allowed_ops)
        missing = quantising if path.stem == "regulated" else set()
        assert WRITTEN - allowed == missing, path.name


@every_kind
def test_the_regulated_profile_refuses_the_int8_twin_alone(kind: Kind, bench: Bench, judge: Judge) -> None:
    said = judge("integrity", bench.case(kind, True, profile="regulated"))
    assert said.finding is Finding.FAIL
    assert re.search(r"allowed operators.*\((Dequantize|Quantize)Linear\)", said.reason)
    assert judge("integrity", bench.case(kind, False, profile="regulated")).finding is Finding.PASS


# -- attacks: each honest twin passes above -----------------------------------------------------------------


def flip_a_byte(model: onnx.ModelProto) -> None:
    """Flip the second highest bit of the heaviest weight of the classifier: one whose channel is alive."""
    gemm = [node for node in model.graph.node if node.op_type == "Gemm"][-1]
    name = next(node.input[0] for node in model.graph.node if node.output[0] == gemm.input[1])
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    values = numpy_helper.to_array(weight).copy()
    values.view(np.uint8).flat[np.abs(values.astype(int)).argmax()] ^= 0x40
    weight.CopyFrom(numpy_helper.from_array(values, name))


def plant_if(model: onnx.ModelProto) -> None:
    def branch(name: str) -> onnx.GraphProto:
        value = numpy_helper.from_array(np.ones(1, np.float32), name)
        out = helper.make_tensor_value_info(f"{name}.out", TensorProto.FLOAT, None)
        node = helper.make_node("Identity", [name], [f"{name}.out"])
        return helper.make_graph([node], name, [], [out], [value])

    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    arms = {"then_branch": branch("one"), "else_branch": branch("two")}
    model.graph.node.append(helper.make_node("If", ["yes"], ["if"], name="if", **arms))


def nan_scale(model: onnx.ModelProto) -> None:
    node = next(n for n in model.graph.node if n.op_type == "DequantizeLinear")
    scale = next(t for t in model.graph.initializer if t.name == node.input[1])
    values = np.full_like(numpy_helper.to_array(scale), np.nan)
    scale.CopyFrom(numpy_helper.from_array(values, scale.name))


def mix_the_batch(model: onnx.ModelProto) -> None:
    """Take from every row's logits the mean over the batch."""
    last = next(n for n in model.graph.node if "logits" in n.output)
    last.output[:] = ["alone"]
    mean = helper.make_node("ReduceMean", ["alone"], ["mean"], name="mean", axes=[0])
    model.graph.node.extend([mean, helper.make_node("Sub", ["alone", "mean"], ["logits"], name="sub")])


def confuse(model: onnx.ModelProto) -> None:
    """Turn the logits around: the least likely class is named."""
    last = next(n for n in model.graph.node if "logits" in n.output)
    last.output[:] = ["honest"]
    model.graph.initializer.append(numpy_helper.from_array(np.float32(-1), "minus"))
    model.graph.node.append(helper.make_node("Mul", ["honest", "minus"], ["logits"], name="turn"))


@every_kind
def test_one_flipped_weight_byte_fails_parity(kind: Kind, bench: Bench, judge: Judge) -> None:
    said = judge("parity", bench.case(kind, True, flip_a_byte))
    assert said.finding is Finding.FAIL
    assert "leave the trained network's" in said.reason


ATTACKS = {
    "If": (plant_if, r"control flow.*\(If\)"),
    "a scale that is not finite": (nan_scale, "expected finite numbers"),
    "rows that depend on their batch": (mix_the_batch, "not to depend on its batch"),
}


@pytest.mark.parametrize("attack", sorted(ATTACKS))
@every_kind
def test_integrity_refuses_a_quantised_graph_with(
    kind: Kind, attack: str, bench: Bench, judge: Judge
) -> None:
    edit, reason = ATTACKS[attack]
    said = judge("integrity", bench.case(kind, True, edit))
    assert said.finding is Finding.FAIL
    assert re.search(reason, said.reason), said.reason


@pytest.mark.parametrize("name", ["floor", "incumbent", "baseline", "retention", "slices"])
@both
@every_kind
def test_a_net_that_errs_fails(kind: Kind, int8: bool, name: str, bench: Bench, judge: Judge) -> None:
    assert judge(name, bench.case(kind, int8, confuse)).finding is Finding.FAIL


# -- what is counted ----------------------------------------------------------------------------------------


@both
@every_kind
def test_int8_and_fp32_hold_as_many_parameters(kind: Kind, int8: bool, bench: Bench) -> None:
    model, params = bench.net(kind, CANDIDATE, int8)
    assert weights.count_params(model) == params


def hide(values: np.ndarray, *nodes: onnx.NodeProto) -> Callable[[onnx.ModelProto], None]:
    def edit(model: onnx.ModelProto) -> None:
        model.graph.initializer.append(numpy_helper.from_array(values, "hidden"))
        model.graph.initializer.append(numpy_helper.from_array(np.float32(0.1), "hidden.scale"))
        model.graph.node.extend(nodes)

    return edit


def learned_before_the_first_layer(model: onnx.ModelProto) -> None:
    """Put a matrix where a resizing one could stand."""
    steps = model.graph.input[0].type.tensor_type.shape.dim[-1].dim_value
    values = np.random.default_rng(1).standard_normal((steps, steps)).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(values, "hidden"))
    for node in model.graph.node:
        node.input[:] = ["mixed" if name == "x" else name for name in node.input]
    model.graph.node.insert(0, helper.make_node("MatMul", ["x", "hidden"], ["mixed"], name="mixed"))


SCALE = ["hidden", "hidden.scale"]
HIDDEN: dict[str, Callable[[onnx.ModelProto], None]] = {
    "int8 weights": hide(
        np.ones((6, 9), np.int8), helper.make_node("DequantizeLinear", SCALE, ["h"], name="h")
    ),
    "int8 weights that nobody reads": hide(np.ones((6, 9), np.int8)),
    "whole numbers that are cast": hide(
        np.ones((6, 9), np.int64), helper.make_node("Cast", ["hidden"], ["h"], name="h", to=TensorProto.FLOAT)
    ),
    "a vector that nobody reads": hide(np.ones(54, np.float32)),
    "a matrix before the first layer": learned_before_the_first_layer,
}


@pytest.mark.parametrize("way", sorted(HIDDEN))
@both
def test_constraints_counts_what_hides_as(way: str, int8: bool, bench: Bench, judge: Judge) -> None:
    case = bench.case(KINDS["window"], int8, HIDDEN[way])
    said = judge("constraints", case)
    assert said.finding is Finding.FAIL
    assert "and declares 440" in said.reason


def test_shapes_axes_scales_and_zero_points_are_not_parameters(bench: Bench) -> None:
    model, params = bench.net(KINDS["window"], CANDIDATE, True)
    spare = [t for t in model.graph.initializer if t.name.endswith(("_scale", "_zero_point"))]
    assert sum(int(np.prod(t.dims)) for t in spare) > len(spare), "some are one a channel"
    assert weights.count_params(model) == params


# -- what is refused as material ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["window", "table"])
@pytest.mark.parametrize("fault", ["of double precision", "not finite", "of another shape"])
def test_a_gate_is_refused_whose_rows_are(name: str, fault: str, bench: Bench, judge: Judge) -> None:
    kind = KINDS[name]
    x = kind.rows(1600, seed=11)[0]
    spoilt = {
        "of double precision": x.astype(np.float64),
        "not finite": np.where(x > x.max() - 1e-6, np.nan, x).astype(np.float32),
        "of another shape": x[..., :-1],
    }
    with pytest.raises(TamperError, match="gate: expected"):
        judge("floor", bench.case(kind, True, gate=bench.gate(kind, x=spoilt[fault])))


# -- what people read ---------------------------------------------------------------------------------------


def test_layers_are_told_with_their_kernel_and_precision(bench: Bench) -> None:
    def lines(name: str, int8: bool) -> list[str]:
        return [str(layer) for layer in weights.layers(bench.net(KINDS[name], CANDIDATE, int8)[0])]

    assert lines("window", False)[:2] == ["Conv 1×5 3→8, stride 2", "Conv 1×3 8→8"]
    assert lines("window", True)[:2] == ["Conv 1×5 3→8, stride 2, int8", "Conv 1×3 8→8, int8"]
    assert lines("colour", False)[0] == "Conv 3×3 3→8, stride 2", "a matrix that resizes is no layer"
    assert lines("table", True) == ["Linear 14→24, int8", "Linear 24→8, int8", "Linear 8→4, int8"]


def test_a_convolution_over_a_line_is_told_as_one_row_high() -> None:
    weight = numpy_helper.from_array(np.ones((8, 3, 5), np.float32), "w")
    node = helper.make_node("Conv", ["x", "w"], ["y"], strides=[2])
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("x", "y")]
    model = helper.make_model(helper.make_graph([node], "line", ends[:1], ends[1:], [weight]))
    assert [str(layer) for layer in weights.layers(model)] == ["Conv 1×5 3→8, stride 2"]


@pytest.mark.parametrize("name", ["colour", "window", "table"])
def test_the_command_clears_an_int8_candidate_and_reports_it(name: str, bench: Bench, tmp_path: Path) -> None:
    case = bench.case(KINDS[name], True)
    path, out = tmp_path / "case.json", tmp_path / "out"
    path.write_bytes(canonical(case))
    command = [sys.executable, "-m", "guards", str(path), str(out)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    result = PanelResult.model_validate_json((out / "panel.json").read_bytes())
    # The real clock's verdict is the machine's affair; all others are the bytes'.
    said: dict[str, Any] = {v.guard: v.finding for v in result.verdicts if v.guard != "latency"}
    assert set(said.values()) == {Finding.PASS}
    assert len(said) == 8
    page = (out / "report.html").read_text()
    assert ", int8" in page
    assert "shows no sample and no label" in page


def test_what_integrity_cannot_parse_has_no_layers() -> None:
    with pytest.raises(TamperError):
        structure.parse(b"junk")
