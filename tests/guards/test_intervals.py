"""Bounds against closed forms, brute force and simulation."""

from math import sqrt
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.stats import beta, binomtest

from guards.intervals import Paired, share_bounds
from guards.signtest import detectable_drop, holm, worse_p


@given(st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
@settings(max_examples=60, deadline=None)
def test_share_bounds_are_those_of_clopper_and_pearson(counts: tuple[int, int]) -> None:
    good, n = counts
    lower, upper = share_bounds(good, n, 0.05)
    assert lower == pytest.approx(beta.ppf(0.05, good, n - good + 1) if good else 0.0, abs=1e-12)
    assert upper == pytest.approx(beta.ppf(0.95, good + 1, n - good) if good < n else 1.0, abs=1e-12)


def brute_score(b: int, c: int, n: int, delta: float) -> float:
    """Return the score statistic with the nuisance share found by maximising the likelihood."""

    def cost(q: float) -> float:
        p, rest = q + delta, 1 - 2 * q - delta
        parts = ((b, p), (c, q), (n - b - c, rest))
        return -sum(k * np.log(max(v, 1e-300)) for k, v in parts if k)

    low, high = max(0.0, -delta), (1 - delta) / 2
    q = minimize_scalar(cost, bounds=(low, high), method="bounded", options={"xatol": 1e-12}).x
    return float((b - c - n * delta) / sqrt(n * (2 * q + delta * (1 - delta))))


@pytest.mark.parametrize(("b", "c", "n"), [(12, 3, 60), (3, 12, 60), (40, 41, 800), (1, 0, 44), (0, 9, 100)])
@pytest.mark.parametrize("delta", [-0.2, -0.03, 0.0, 0.11])
def test_tangos_closed_form_is_the_maximum_of_the_likelihood(b: int, c: int, n: int, delta: float) -> None:
    assert Paired(b, c, n).score(delta) == pytest.approx(brute_score(b, c, n, delta), rel=1e-4, abs=1e-4)


@given(st.integers(20, 500), st.floats(0, 0.5), st.floats(0, 0.5), st.sampled_from([0.01, 0.05, 0.2]))
@settings(max_examples=80, deadline=None)
def test_bounds_are_where_the_score_meets_the_quantile(n: int, b: float, c: float, alpha: float) -> None:
    paired = Paired(int(b * n), int(c * n), n)
    lower, upper = paired.bounds(alpha)
    assert lower <= paired.difference <= upper
    z = NormalDist().inv_cdf(1 - alpha)
    if lower > -0.999:
        assert paired.score(lower) == pytest.approx(z, abs=1e-5)
    if upper < 0.999:
        assert paired.score(upper) == pytest.approx(-z, abs=1e-5)


def test_no_discordance_gives_the_closed_form() -> None:
    z = NormalDist().inv_cdf(0.95)
    assert Paired(0, 0, 200).bounds(0.05)[0] == pytest.approx(-(z**2) / (200 + z**2), abs=1e-9)


def test_the_lower_bound_keeps_its_level_on_the_edge_of_the_margin() -> None:
    # A candidate that is worse by exactly the margin may pass in 5 % of the cases, not more.
    rng = np.random.default_rng(11)
    margin, discordance, n = 0.03, 0.10, 700
    lost, won = (discordance + margin) / 2, (discordance - margin) / 2
    draws = rng.multinomial(n, [won, lost, 1 - won - lost], size=1500)
    passed = np.mean([Paired(int(b), int(c), n).bounds(0.05)[0] > -margin for b, c, _rest in draws])
    assert 0.03 < passed < 0.068


def test_the_planned_rows_give_the_planned_power() -> None:
    from policies.clauses import NonInferiority
    from policies.support import required_rows

    n = required_rows(NonInferiority(clause="MP-1", margin=0.03, alpha=0.05, power=0.8, discordance=0.10))
    rng = np.random.default_rng(12)
    draws = rng.multinomial(n, [0.05, 0.05, 0.90], size=1000)
    passed = np.mean([Paired(int(b), int(c), n).bounds(0.05)[0] > -0.03 for b, c, _rest in draws])
    assert 0.75 < passed < 0.87


@pytest.mark.parametrize("counts", [(0, 0, 0), (-1, 0, 5), (4, 2, 5)])
def test_impossible_counts_are_refused(counts: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="expected counts"):
        Paired(*counts)


@given(st.integers(0, 60), st.integers(0, 60))
@settings(max_examples=60, deadline=None)
def test_the_sign_test_is_binomial(won: int, lost: int) -> None:
    wanted = binomtest(lost, won + lost, alternative="greater").pvalue if won + lost else 1.0
    assert worse_p(won, lost) == pytest.approx(wanted, rel=1e-9)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
@settings(deadline=None)
def test_holm_never_lowers_a_p_value_and_keeps_the_order(values: list[float]) -> None:
    adjusted = holm(values)
    assert all(a >= p and a <= 1.0 for a, p in zip(adjusted, values, strict=True))
    order = sorted(range(len(values)), key=lambda i: values[i])
    assert [adjusted[i] for i in order] == sorted(adjusted)


def test_a_drop_is_found_as_often_as_promised() -> None:
    n, alpha, questions, discordance = 400, 0.05, 10, 0.15
    drop = detectable_drop(n, alpha, questions, 0.8, discordance)
    rng = np.random.default_rng(13)
    lost, won = (discordance + drop) / 2, (discordance - drop) / 2
    draws = rng.multinomial(n, [won, lost, 1 - won - lost], size=600)
    found = np.mean([worse_p(int(b), int(c)) <= alpha / questions for b, c, _rest in draws])
    assert 0.7 < found < 0.9
