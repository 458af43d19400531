"""What the numbers decide: floor, comparisons, slices, latency."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from guards.floor import rows_for
from guards.intervals import share_bounds
from guards.latency import interleave
from guards.material import Material
from guards.roster import BUILTIN
from policies.case import Case
from policies.support import required_rows
from policies.terms import Finding, Verdict

Judge = Callable[[str, Case], Verdict]

N = 800


def wrong_on(shop: Any, bench: Any, **counts: int) -> Any:
    """Return a gate on which the candidate, incumbent or baseline is wrong on so many rows, apart."""
    flags = {"candidate": bench.CANDIDATE, "incumbent": bench.INCUMBENT, "baseline": bench.BASELINE}
    start, masks = 0, {}
    for name, count in counts.items():
        masks[flags[name]] = bench.first(count, N, start)
        start += count
    return shop.gate(wrong=masks)


def value(said: Verdict, name: str) -> float:
    return next(e.value for e in said.evidence if e.name == name)


# -- floor --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "finding"),
    [(80, Finding.PASS), (110, Finding.INCONCLUSIVE), (130, Finding.FAIL)],
)
def test_floor_judges_the_bound_not_the_estimate(
    wrong: int, finding: Finding, shop: Any, bench: Any, judge: Judge
) -> None:
    said = judge("floor", shop.case(gate=wrong_on(shop, bench, candidate=wrong)))
    assert said.finding is finding, said.reason
    assert value(said, "accuracy") == pytest.approx(1 - wrong / N)


def test_floor_says_how_many_rows_would_do(shop: Any, bench: Any, judge: Judge) -> None:
    said = judge("floor", shop.case(gate=wrong_on(shop, bench, candidate=110)))
    assert f"with {rows_for(1 - 110 / N, 0.85, 0.05)} rows" in said.reason


def test_the_rows_that_would_do_are_the_fewest() -> None:
    n = rows_for(0.9, 0.85, 0.05)
    assert n is not None
    assert share_bounds(round(0.9 * n), n, 0.05)[0] > 0.849
    assert rows_for(0.85 + 1e-6, 0.85, 0.05) is None


def test_floor_looks_at_rows_since_the_change_alone(shop: Any, bench: Any, judge: Judge) -> None:
    gate = shop.gate(wrong_before={bench.CANDIDATE: bench.first(N, N)})
    assert judge("floor", shop.case(gate=gate)).finding is Finding.PASS


@pytest.mark.parametrize("name", ["floor", "incumbent", "baseline"])
def test_an_answer_that_is_not_finite_fails(name: str, shop: Any, judge: Judge) -> None:
    from onnx import numpy_helper

    def overflow(model: Any) -> None:
        tensor = next(t for t in model.graph.initializer if t.name == "w2")
        values = numpy_helper.to_array(tensor).copy()
        values[0, 0] = np.inf
        tensor.CopyFrom(numpy_helper.from_array(values, "w2"))

    said = judge(name, shop.case(bundle=shop.bundle(edit=overflow)))
    assert said.finding is Finding.FAIL
    assert "not finite" in said.reason


# -- comparisons --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("other", ["incumbent", "baseline"])
@pytest.mark.parametrize(
    ("candidate", "theirs", "finding", "word"),
    [
        (10, 10, Finding.PASS, "+0.0%"),
        (0, 60, Finding.PASS, "+7.5%"),
        (30, 20, Finding.PASS, "-1.2%"),
        (38, 20, Finding.FAIL, "not shown to be within the margin: -2.2%"),
        (90, 10, Finding.FAIL, "shown worse"),
    ],
)
def test_comparisons_judge_the_difference(
    other: str, candidate: int, theirs: int, finding: Finding, word: str, shop: Any, bench: Any, judge: Judge
) -> None:
    gate = wrong_on(shop, bench, candidate=candidate, **{other: theirs})
    said = judge(other, shop.case(gate=gate))
    assert said.finding is finding, said.reason
    assert word in said.reason
    assert value(said, "difference") == pytest.approx((theirs - candidate) / N)


def test_each_comparison_has_its_own_other(shop: Any, bench: Any, judge: Judge) -> None:
    # The incumbent has crept down with the candidate; the baseline has not.
    masks = {bench.CANDIDATE: bench.first(60, N), bench.INCUMBENT: bench.first(60, N)}
    case = shop.case(gate=shop.gate(wrong=masks))
    assert judge("incumbent", case).finding is Finding.PASS
    assert judge("baseline", case).finding is Finding.FAIL


def test_retention_finds_what_was_forgotten(shop: Any, bench: Any, judge: Judge) -> None:
    case = shop.case(gate=shop.gate(wrong_before={bench.CANDIDATE: bench.first(60, N)}))
    said = judge("retention", case)
    assert said.finding is Finding.FAIL
    assert judge("incumbent", case).finding is Finding.PASS
    assert "of the time before it" in said.reason


@pytest.mark.parametrize("name", ["incumbent", "baseline", "retention"])
def test_too_few_rows_are_inconclusive_with_both_numbers(name: str, shop: Any, judge: Judge) -> None:
    case = shop.case(gate=shop.gate(new=686, old=686))
    limit = getattr(case.policy.modification_protocol.evaluation, name)
    assert required_rows(limit) == 687
    said = judge(name, case)
    assert said.finding is Finding.INCONCLUSIVE
    assert "687" in said.reason
    assert "686" in said.reason
    enough = shop.case(gate=shop.gate(new=687, old=687))
    assert judge(name, enough).finding is Finding.PASS


@pytest.mark.parametrize("name", ["incumbent", "baseline", "retention", "slices"])
def test_nothing_to_compare_with_is_inconclusive(name: str, shop: Any, judge: Judge) -> None:
    said = judge(name, shop.case(founding=True))
    assert said.finding is Finding.INCONCLUSIVE


# -- slices -------------------------------------------------------------------------------------------------


def lost_class(bench: Any, count: int) -> dict[int, Any]:
    """Return masks: the candidate loses rows of class c, and wins elsewhere what it lost there."""
    y = np.arange(N) % 4
    lost = np.isin(np.arange(N), np.flatnonzero(y == 2)[:count])
    won = np.isin(np.arange(N), np.flatnonzero(y != 2)[:count])
    return {bench.CANDIDATE: lost, bench.INCUMBENT: won}


def test_slices_finds_a_class_that_the_mean_hides(shop: Any, bench: Any, judge: Judge) -> None:
    case = shop.case(gate=shop.gate(wrong=lost_class(bench, 40)))
    said = judge("slices", case)
    assert said.finding is Finding.FAIL
    assert "class c -20.0%" in said.reason
    assert "class a" not in said.reason
    assert judge("incumbent", case).finding is Finding.PASS


def test_slices_lets_chance_pass(shop: Any, bench: Any, judge: Judge) -> None:
    said = judge("slices", shop.case(gate=shop.gate(wrong=lost_class(bench, 4))))
    assert said.finding is Finding.PASS
    assert "lowest is class c -2.0%" in said.reason


def test_slices_corrects_for_many_questions(shop: Any, bench: Any, judge: Judge) -> None:
    # Six losses and no win have p = 1/64; alone that is below 5 %, among four classes it is not.
    said = judge("slices", shop.case(gate=shop.gate(wrong=lost_class(bench, 6))))
    assert said.finding is Finding.PASS
    assert value(said, "smallest p") == pytest.approx(4 / 64)


def test_slices_publishes_what_it_could_have_found(shop: Any, judge: Judge) -> None:
    said = judge("slices", shop.case())
    assert value(said, "class c detectable drop") == pytest.approx(0.0688, abs=1e-3)


def test_slices_needs_rows_of_every_class(shop: Any, bench: Any, judge: Judge) -> None:
    x, y = bench.labelled(1600, {}, 5)
    y = np.where(y == 3, 0, y)
    said = judge("slices", shop.case(gate=shop.gate(x=x, y=y)))
    assert said.finding is Finding.INCONCLUSIVE
    assert "d has 0" in said.reason


# -- latency ------------------------------------------------------------------------------------------------


class Clocked:
    """A net that takes the milliseconds it is told to, on a clock of its own; no row leaves it early."""

    leaves = False

    def __init__(self, clock: "Hands", ms: Callable[[int], float]) -> None:
        self.clock = clock
        self.ms = ms
        self.runs = 0

    def serve(self, x: Any) -> None:
        self.clock.now += self.ms(self.runs) / 1000
        self.runs += 1


class Hands:
    """A clock that only nets move."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def timed(case: Case, mine: Callable[[int], float], theirs: Callable[[int], float]) -> Verdict:
    hands = Hands()
    material = Material(case, hands)
    nets = {case.bundle: Clocked(hands, mine), case.incumbent: Clocked(hands, theirs)}
    material.net = nets.__getitem__  # type: ignore[assignment, method-assign]
    return BUILTIN["latency"]().judge(case, material)


@pytest.mark.parametrize(
    ("mine", "theirs", "finding"),
    [
        (10.0, 10.0, Finding.PASS),
        (14.9, 10.0, Finding.PASS),
        (15.1, 10.0, Finding.FAIL),
        (26.0, 26.0, Finding.FAIL),
    ],
)
def test_latency_judges_p99_and_the_ratio(mine: float, theirs: float, finding: Finding, shop: Any) -> None:
    said = timed(shop.case(), lambda _run: mine, lambda _run: theirs)
    assert said.finding is finding, said.reason
    assert value(said, "ratio") == pytest.approx(mine / theirs)


def test_latency_forgives_a_busy_machine_not_a_slow_row(shop: Any) -> None:
    # One run in seven is struck: a row's best is clean. Three rows in a hundred are slow on every run
    # (after 20 runs to warm up).
    struck = timed(shop.case(), lambda run: 90.0 if run % 7 == 0 else 1.0, lambda _run: 1.0)
    assert struck.finding is Finding.PASS, struck.reason
    slow = timed(shop.case(), lambda run: 90.0 if (run - 20) // 3 % 33 == 0 else 1.0, lambda _run: 1.0)
    assert slow.finding is Finding.FAIL, slow.reason


def test_latency_takes_turns() -> None:
    hands, order = Hands(), []

    class Named(Clocked):
        def __init__(self, name: str) -> None:
            super().__init__(hands, lambda _run: 1.0)
            self.name = name

        def serve(self, x: Any) -> None:
            order.append(self.name)
            super().serve(x)

    interleave([Named("a"), Named("b")], np.zeros((4, 1)), hands)  # type: ignore[list-item]
    pairs = ["".join(order[place : place + 2]) for place in range(0, len(order), 2)]
    assert set(pairs) == {"ab", "ba"}
    assert abs(pairs[4:].count("ab") - pairs[4:].count("ba")) <= 1


def test_latency_stands_alone_at_founding(shop: Any, judge: Judge) -> None:
    said = judge("latency", shop.case(founding=True))
    assert said.finding is Finding.PASS
    assert "incumbent" not in said.reason


def test_latency_needs_recorded_rows(shop: Any, judge: Judge) -> None:
    said = judge("latency", shop.case(traffic=shop.traffic(199)))
    assert said.finding is Finding.INCONCLUSIVE
    assert "200" in said.reason
    assert "199" in said.reason
