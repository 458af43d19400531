"""Bundles with an exit, judged as they are served.

The exit reads the class off the same pixel as the net. It is sure of bright rows and not of dim ones, and
where flag 12 is bright it is sure of class a, whatever the row is.
"""

import base64
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from guards.material import Material
from policies.bundle import Exit, Golden
from policies.case import Case
from policies.terms import Artefact, Datatype, Finding, TensorSpec, Verdict

Judge = Callable[[str, Case], Verdict]

MISLED = 12
LEAVE = np.zeros((4, 16), np.float32)
LEAVE[range(4), range(4)] = 8.0
LEAVE[0, MISLED] = 30.0
TRUNK = TensorSpec(name="trunk", datatype=Datatype.FP32, shape=(-1, 16))


def with_exit(model: onnx.ModelProto) -> None:
    """Give a net an exit: between the flat row and the hidden layer."""
    graph = model.graph
    graph.initializer.append(numpy_helper.from_array(np.array(1.0, np.float32), "one"))
    graph.initializer.append(numpy_helper.from_array(LEAVE, "leave"))
    flat = next(place for place, node in enumerate(graph.node) if node.name == "flat")
    graph.node[flat + 1].input[0] = "trunk"
    graph.node.insert(flat + 1, helper.make_node("Mul", ["flat", "one"], ["trunk"], name="trunk"))
    graph.node.append(helper.make_node("Gemm", ["trunk", "leave"], ["exit_logits"], name="leave", transB=1))
    graph.output.append(helper.make_tensor_value_info("exit_logits", TensorProto.FLOAT, ["batch", 4]))


def told(golden: Golden, spoil: float = 0.0) -> Golden:
    """Return a golden with what the exit says."""
    x = np.frombuffer(base64.b64decode(golden.input_b64), np.uint8).reshape(golden.rows, 16)
    exits = (x.astype(np.float32) / 255 @ LEAVE.T + np.float32(spoil)).astype("<f4")
    text = base64.b64encode(exits.tobytes()).decode()
    return golden.model_copy(update={"exit_logits_b64": text})


@pytest.fixture
def make(shop: Any, bench: Any) -> Callable[..., Artefact]:
    """Return a maker of bundles with an exit; ``edit`` changes the model, ``about`` what it says."""

    def bundle(edit: Callable[[onnx.ModelProto], None] = lambda _model: None, **about: Any) -> Artefact:
        facts = bench.meta(bench.CANDIDATE, shop.genome)
        facts = {
            "outputs": (
                *facts.outputs,
                TensorSpec(name="exit_logits", datatype=Datatype.FP32, shape=(-1, 4)),
            ),
            "params": facts.params + LEAVE.size,
            "goldens": tuple(told(golden) for golden in facts.goldens),
            "exit": Exit(output="exit_logits", trunk=TRUNK),
        }

        def both(model: onnx.ModelProto) -> None:
            with_exit(model)
            edit(model)

        made: Artefact = shop.bundle(edit=both, **(facts | about))
        return made

    return bundle


def rows(bench: Any, misled: int, dim: int, n: int = 800) -> dict[str, NDArray[Any]]:
    """Return gate arrays: the first ``misled`` rows mislead the exit, the last ``dim`` it is unsure of."""
    x, y = bench.labelled(n, {MISLED: bench.first(misled, n)}, 1)
    x[n - dim :] //= 2
    return {"x": np.concatenate([x, x]), "y": np.concatenate([y, y])}


def off(shop: Any) -> None:
    shop.rule("confidence = 0.98", 'confidence = "off"')


# -- what is judged ------------------------------------------------------------------------------------------


def test_the_floor_is_asked_of_what_clients_get(shop: Any, bench: Any, make: Any, judge: Judge) -> None:
    # 200 of 800 rows mislead the exit, three quarters of them are of another class than the one it names.
    gate = shop.gate(**rows(bench, misled=200, dim=0))
    said = judge("floor", shop.case(bundle=make(), gate=gate))
    assert said.finding is Finding.FAIL, said.reason
    assert said.reason.startswith("accuracy 81.2%")
    off(shop)
    whole = judge("floor", shop.case(bundle=make(), gate=gate))
    assert whole.finding is Finding.PASS, whole.reason
    assert whole.reason.startswith("accuracy 100.0%")


def test_a_row_that_stays_has_the_whole_nets_answer(shop: Any, bench: Any, make: Any, judge: Judge) -> None:
    # The exit holds every row for class a, but is sure of none.
    x, y = bench.labelled(800, {}, 1)
    x //= 2
    x.reshape(800, 16)[:, MISLED] = 40
    gate = shop.gate(x=np.concatenate([x, x]), y=np.concatenate([y, y]))
    said = judge("floor", shop.case(bundle=make(), gate=gate))
    assert said.finding is Finding.PASS, said.reason
    shop.rule("confidence = 0.98", "confidence = 0.5")
    eager = judge("floor", shop.case(bundle=make(), gate=gate))
    assert eager.finding is Finding.FAIL, eager.reason
    assert eager.reason.startswith("accuracy 25.0%")


@pytest.mark.parametrize("guard", ["incumbent", "baseline", "retention"])
def test_a_loss_by_leaving_counts_against_others(
    guard: str, shop: Any, bench: Any, make: Any, judge: Judge
) -> None:
    gate = shop.gate(**rows(bench, misled=80, dim=100))
    said = judge(guard, shop.case(bundle=make(), gate=gate))
    assert said.finding is Finding.FAIL, said.reason
    assert "-7.5%" in said.reason
    off(shop)
    assert judge(guard, shop.case(bundle=make(), gate=gate)).finding is Finding.PASS


def test_a_class_that_the_exit_sacrifices_is_found(shop: Any, bench: Any, make: Any, judge: Judge) -> None:
    x, y = bench.labelled(800, {}, 1)
    x.reshape(800, 16)[np.flatnonzero(y == 3)[:40], MISLED] = 255
    gate = shop.gate(x=np.concatenate([x, x]), y=np.concatenate([y, y]))
    said = judge("slices", shop.case(bundle=make(), gate=gate))
    assert said.finding is Finding.FAIL, said.reason
    assert "class d" in said.reason
    off(shop)
    assert judge("slices", shop.case(bundle=make(), gate=gate)).finding is Finding.PASS


def test_an_incumbent_with_an_exit_is_judged_as_it_is_served(
    shop: Any, bench: Any, make: Any, judge: Judge
) -> None:
    gate = shop.gate(**rows(bench, misled=80, dim=0))
    said = judge("incumbent", shop.case(incumbent=make(), bundle=shop.bundle(name="plain.onnx"), gate=gate))
    assert said.finding is Finding.PASS, said.reason
    assert "+7.5%" in said.reason


def test_latency_tells_how_many_leave_and_both_times(shop: Any, bench: Any, make: Any, judge: Judge) -> None:
    x = bench.labelled(220, {}, 3)[0]
    x[-50:] //= 2
    case = shop.case(bundle=make(), traffic=shop.arrays("traffic.npz", x=x))
    said = judge("latency", case)
    found = {one.name: (one.value, one.n) for one in said.evidence}
    assert found["exit share"] == (0.75, 200)
    assert found["p50 of rows that left"][1] == 150
    assert found["p50 of rows that stayed"][1] == 50
    assert "exit share 0.75" in said.reason
    off(shop)
    case = shop.case(bundle=make(), traffic=shop.arrays("traffic.npz", x=x))
    assert "exit" not in judge("latency", case).reason


# -- what ships ----------------------------------------------------------------------------------------------


def test_an_honest_exit_passes_what_looks_at_the_file(shop: Any, make: Any, judge: Judge) -> None:
    for guard in ("integrity", "parity", "constraints"):
        said = judge(guard, shop.case(bundle=make()))
        assert said.finding is Finding.PASS, said.reason


def test_an_exit_that_is_not_the_trained_ones_fails_parity(
    shop: Any, bench: Any, make: Any, judge: Judge
) -> None:
    facts = bench.meta(bench.CANDIDATE, shop.genome)
    lie = tuple(told(golden, spoil) for golden, spoil in zip(facts.goldens, (0.0, 0.1), strict=True))
    said = judge("parity", shop.case(bundle=make(goldens=lie)))
    assert said.finding is Finding.FAIL
    assert "probe by 0.1" in said.reason


def test_an_exit_that_is_counted_in_no_size_fails(shop: Any, bench: Any, make: Any, judge: Judge) -> None:
    few = bench.meta(bench.CANDIDATE, shop.genome).params
    said = judge("constraints", shop.case(bundle=make(params=few)))
    assert said.finding is Finding.FAIL
    assert said.reason == f"the file holds {few + LEAVE.size} parameters and declares {few}"


def hidden(model: onnx.ModelProto) -> None:
    """Take the exit out of the graph's outputs."""
    del model.graph.output[2]


def around(model: onnx.ModelProto) -> None:
    """Let the end see the input beside the trunk."""
    node = next(node for node in model.graph.node if node.name == "hidden")
    node.input[0] = "flat"


def of_the_batch(model: onnx.ModelProto) -> None:
    """Let the exit of a row depend on the rows beside it."""
    node = next(node for node in model.graph.node if node.name == "leave")
    node.output[0] = "alone"
    model.graph.node.append(helper.make_node("ReduceMean", ["alone"], ["mean"], axes=[0], keepdims=1))
    model.graph.node.append(helper.make_node("Sub", ["alone", "mean"], ["exit_logits"]))


def unending(model: onnx.ModelProto) -> None:
    """Let the exit answer infinity for an extreme input."""
    node = next(node for node in model.graph.node if node.name == "leave")
    node.output[0] = "small"
    model.graph.initializer.append(numpy_helper.from_array(np.array(3e38, np.float32), "huge"))
    model.graph.node.append(helper.make_node("Mul", ["small", "huge"], ["exit_logits"]))


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (hidden, "expected graph outputs logits FP32"),
        (around, "through the trunk 'trunk' alone, it reads image too"),
        (of_the_batch, "expected exit logits of a row not to depend on its batch"),
        (unending, "expected finite exit logits"),
    ],
)
def test_an_exit_that_is_not_what_it_says_fails_integrity(
    edit: Callable[[onnx.ModelProto], None], reason: str, shop: Any, make: Any, judge: Judge
) -> None:
    said = judge("integrity", shop.case(bundle=make(edit)))
    assert said.finding is Finding.FAIL
    assert reason in said.reason


@pytest.mark.parametrize(
    ("trunk", "reason"),
    [
        (TRUNK.model_copy(update={"name": "nowhere"}), "expected a graph with the trunk 'nowhere' inside"),
        (TRUNK.model_copy(update={"shape": (-1, 15)}), "expected a model that the runtime runs"),
        (TRUNK.model_copy(update={"datatype": Datatype.UINT8}), "expected a model that the runtime runs"),
    ],
)
def test_a_trunk_that_is_not_what_it_says_fails_integrity(
    trunk: TensorSpec, reason: str, shop: Any, make: Any, judge: Judge
) -> None:
    said = judge("integrity", shop.case(bundle=make(exit=Exit(output="exit_logits", trunk=trunk))))
    assert said.finding is Finding.FAIL
    assert reason in said.reason


def test_the_halves_answer_for_all_rows_whoever_would_leave(shop: Any, bench: Any, make: Any) -> None:
    case = shop.case(bundle=make())
    net = Material(case, bench.ticking()).net(case.bundle)
    x = bench.labelled(6, {}, 4)[0]
    logits, embedding, exits = net.halves(x) or pytest.fail("expected halves")
    whole = net.run(x)
    np.testing.assert_allclose(logits, whole[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(embedding, whole[1], rtol=1e-5, atol=1e-6)
    assert exits.shape == (6, 4)
