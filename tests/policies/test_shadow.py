"""Beside the traffic: what counts mean, on each side of each limit."""

from typing import Any

import pytest

from policies import shadow
from policies.clauses import Policy, Shadow
from policies.shadow import ShadowResult, Times
from policies.terms import Finding

TIMES = Times(p50_ms=1.0, p99_ms=2.0)


@pytest.fixture
def clause(policy: Policy) -> Shadow:
    """Return the example's clause, with the limit that the counts below stand around."""
    return policy.modification_protocol.shadow.model_copy(update={"max_disagreement": 0.7})


def counted(**changes: Any) -> ShadowResult:
    facts: dict[str, Any] = {
        "candidate": "c2",
        "bundle": "sha256:" + "0" * 64,
        "rows": 200,
        "looks": 1,
        "disagreed": 80,
        "errors": 0,
        "not_finite": 0,
        "newcomer": TIMES,
        "incumbent": TIMES,
        "ratio": 1.1,
        "ratio_interval": (1.0, 1.2),
        "wall_s": 4.0,
    }
    return ShadowResult(**(facts | changes))


def test_disagreement_that_drift_explains_passes_and_the_reason_has_the_numbers(clause: Shadow) -> None:
    verdict = shadow.judge(counted(), clause)
    assert verdict.finding is Finding.PASS
    assert verdict.reason == (
        "another answer in 40.0 % of rows [33.5, 46.9], limit 70; "
        "1.10 of the incumbent's time [1.00, 1.20], limit 2; n=200 (MP-7.1)"
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"disagreed": 170},
        {"ratio": 2.5, "ratio_interval": (2.1, 2.9)},
        {"errors": 1},
        {"not_finite": 1},
        {"not_finite": 1, "rows": 1, "looks": 0},
        {"errors": 1, "rows": 1, "looks": 0, "ratio": None, "ratio_interval": None},
    ],
)
def test_what_is_shown_to_be_over_a_limit_fails(clause: Shadow, changes: dict[str, Any]) -> None:
    assert shadow.judge(counted(**changes), clause).finding is Finding.FAIL


@pytest.mark.parametrize(
    "changes",
    [
        {"disagreed": 140},
        {"ratio": 2.0, "ratio_interval": (1.8, 2.2)},
        {"rows": 199, "looks": 0},
        {"ratio": None, "ratio_interval": None},
    ],
)
def test_what_is_not_shown_either_way_is_inconclusive(clause: Shadow, changes: dict[str, Any]) -> None:
    assert shadow.judge(counted(**changes), clause).finding is Finding.INCONCLUSIVE


def test_without_rows_the_reason_says_where_to_look(clause: Shadow) -> None:
    none = counted(
        rows=0, looks=0, disagreed=0, newcomer=None, incumbent=None, ratio=None, ratio_interval=None
    )
    assert "0 of 200 rows came (MP-7.1); is there traffic" in shadow.judge(none, clause).reason


def test_all_looks_together_keep_the_level(clause: Shadow) -> None:
    assert sum(shadow.level(clause, look) for look in range(1, 30)) < clause.alpha
    assert [shadow.look_at(clause, look) for look in (1, 2, 3)] == [200, 400, 800]
