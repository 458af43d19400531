"""Probation: each answer on each side of each threshold, and how often an equal one is taken for worse."""

from collections.abc import Callable
from math import sqrt
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest

from policies import probation
from policies.clauses import Policy, Probation, ProbationStep
from policies.terms import Arm


def arm(generation: int = 2, **changes: object) -> Arm:
    base = Arm(
        generation=generation,
        requests=800,
        errors=0,
        not_finite=0,
        p50_ms=1.0,
        p99_ms=3.0,
        labels=400,
        correct=370,
    )
    return base.model_copy(update=changes)


@pytest.fixture
def clause(policy: Policy) -> Probation:
    return policy.modification_protocol.probation


@pytest.fixture
def last(clause: Probation) -> ProbationStep:
    return clause.steps[-1]


class TestAnswers:
    @pytest.fixture
    def judge(self, clause: Probation, last: ProbationStep) -> Callable[..., probation.Outcome]:
        def ask(newcomer: Arm, incumbent: Arm | None, elapsed: float = 30.0) -> probation.Outcome:
            return probation.judge(newcomer, incumbent, clause, last, elapsed)

        return ask

    def test_a_better_newcomer_is_confirmed(self, judge: Any) -> None:
        assert judge(arm(), arm(1, correct=300)).decision == "confirm"

    def test_a_worse_newcomer_is_reverted(self, judge: Any) -> None:
        assert judge(arm(correct=300), arm(1)).decision == "revert"

    def test_too_few_requests_or_labels_hold(self, judge: Any, last: ProbationStep) -> None:
        assert judge(arm(requests=last.min_requests - 1), arm(1, correct=300)).decision == "hold"
        few = arm(labels=last.min_labels - 1, correct=last.min_labels - 5)
        assert judge(few, arm(1, correct=300)).decision == "hold"

    def test_without_any_label_it_holds(self, judge: Any) -> None:
        assert judge(arm(labels=0, correct=0), arm(1)).decision == "hold"

    def test_equal_accuracy_on_few_labels_is_not_yet_shown(self, judge: Any) -> None:
        assert judge(arm(correct=320), arm(1, correct=320)).decision == "hold"

    def test_each_step_rules_out_its_own_loss(self, clause: Probation) -> None:
        same = arm(correct=320), arm(1, correct=320)
        told = [probation.judge(*same, clause, step, 30.0).decision for step in clause.steps]
        assert told == ["confirm", "confirm", "hold"]

    def test_undecided_for_too_long_is_a_revert_and_a_page(self, judge: Any, clause: Probation) -> None:
        outcome = judge(arm(requests=10, labels=0, correct=0), arm(1), clause.max_s + 1)
        assert (outcome.decision, outcome.page) == ("revert", True)

    def test_the_first_generation_needs_requests_alone(self, judge: Any) -> None:
        assert judge(arm(1, labels=0, correct=0), None).decision == "confirm"


class TestAtOnce:
    @pytest.fixture
    def judge(self, clause: Probation, last: ProbationStep) -> Callable[..., probation.Outcome]:
        return lambda newcomer, incumbent: probation.judge(newcomer, incumbent, clause, last, 1.0)

    def test_one_answer_that_is_not_finite_reverts_before_any_minimum(self, judge: Any) -> None:
        first = {"requests": 1, "labels": 0, "correct": 0}
        assert judge(arm(**first), arm(1)).decision == "hold"
        outcome = judge(arm(**first, errors=1, not_finite=1), arm(1))
        assert outcome.decision == "revert"
        assert "1 answers that are not finite in 1 requests" in outcome.reason

    def test_an_input_that_undoes_both_is_no_reason_to_revert(self, judge: Any) -> None:
        both = judge(arm(errors=1, not_finite=1), arm(1, errors=1, not_finite=1))
        assert both.decision == judge(arm(), arm(1)).decision != "revert"
        assert judge(arm(errors=1, not_finite=1), arm(1, errors=1)).decision == "revert"

    def test_more_of_them_than_the_incumbent_gives_revert_as_errors_do(self, judge: Any) -> None:
        sick = arm(errors=400, not_finite=400)
        assert judge(sick, arm(1, errors=1, not_finite=1)).decision == "revert"

    def test_errors_revert_before_any_minimum(self, judge: Any) -> None:
        assert judge(arm(requests=3, errors=1, labels=0, correct=0), arm(1)).decision == "revert"

    def test_slow_answers_revert(self, judge: Any, clause: Probation) -> None:
        assert judge(arm(p99_ms=clause.max_p99_ms + 0.1), arm(1)).decision == "revert"

    def test_when_the_incumbent_errs_as_often_in_the_same_window_a_person_is_called(self, judge: Any) -> None:
        outcome = judge(arm(errors=50), arm(1, errors=50))
        assert (outcome.decision, outcome.page) == ("hold", True)

    def test_a_newcomer_that_errs_more_often_than_a_sick_incumbent_is_reverted(self, judge: Any) -> None:
        outcome = judge(arm(errors=400), arm(1, errors=50))
        assert outcome.decision == "revert"
        assert "the incumbent: 50 errors in 800 requests" in outcome.reason

    def test_both_sick_for_too_long_ends_it(self, clause: Probation, last: ProbationStep) -> None:
        outcome = probation.judge(arm(errors=50), arm(1, errors=50), clause, last, clause.max_s + 1)
        assert (outcome.decision, outcome.page) == ("revert", True)


# -- looking every second ---------------------------------------------------------------------------------

LIVES = 600
RATE = 100
SECONDS = 150


def fixed(newcomer: Arm, incumbent: Arm, _planned: int, alpha: float) -> tuple[float, float]:
    """The rule that lost: an interval for one look, at every look."""
    n1, n2 = newcomer.labels + 2, incumbent.labels + 2
    p1, p2 = (newcomer.correct + 1) / n1, (incumbent.correct + 1) / n2
    width = NormalDist().inv_cdf(1 - alpha) * sqrt(p1 * (1 - p1) / n1 + p2 * (1 - p2) / n2)
    return p1 - p2 - width, p1 - p2 + width


def ends(clause: Probation, step: ProbationStep, newcomer: float, incumbent: float) -> dict[str, float]:
    """Return how often a step ends how, when it is looked at every second and labels come at once.

    Args:
        clause: Its clause.
        step: The step.
        newcomer: Accuracy of the newcomer.
        incumbent: Accuracy of the incumbent.
    """
    rng = np.random.default_rng(20261124)
    share = rng.binomial(RATE, step.share, (LIVES, SECONDS))
    counts = np.stack(
        [share, RATE - share, rng.binomial(share, newcomer), rng.binomial(RATE - share, incumbent)]
    )
    told = {"confirm": 0, "revert": 0, "hold": 0}
    for life in counts.cumsum(axis=2).transpose(1, 2, 0).tolist():
        decision = "hold"
        for ours, theirs, right, theirs_right in life:
            arms = (
                arm(requests=ours, labels=ours, correct=right),
                arm(1, requests=theirs, labels=theirs, correct=theirs_right),
            )
            decision = probation.judge(*arms, clause, step, 1.0).decision
            if decision != "hold":
                break
        told[decision] += 1
    return {decision: count / LIVES for decision, count in told.items()}


@pytest.fixture
def alone(clause: Probation) -> Probation:
    """A clause whose one step has the whole level, so that nothing is hidden by sharing it."""
    step = clause.steps[1].model_copy(
        update={"min_requests": 50, "min_labels": 50, "max_accuracy_loss": 0.02}
    )
    return clause.model_copy(update={"steps": (step,)})


@pytest.mark.parametrize("share", [0.05, 0.5])
@pytest.mark.parametrize("accuracy", [0.7, 0.95])
def test_an_equal_newcomer_is_reverted_no_more_often_than_alpha_however_often_one_looks(
    alone: Probation, accuracy: float, share: float
) -> None:
    step = alone.steps[0].model_copy(update={"share": share})
    assert ends(alone, step, accuracy, accuracy)["revert"] <= alone.alpha


def test_an_equal_newcomer_is_confirmed_once_there_are_labels_enough(alone: Probation) -> None:
    told = ends(alone, alone.steps[0], 0.95, 0.95)
    assert told["confirm"] > 0.95


def test_the_rule_of_a_fixed_look_would_be_noticed(alone: Probation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probation, "difference", fixed)
    assert ends(alone, alone.steps[0], 0.7, 0.7)["revert"] > 2 * alone.alpha


def test_a_newcomer_that_loses_what_the_step_must_rule_out_is_confirmed_no_more_often_than_alpha(
    alone: Probation, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss = alone.steps[0].max_accuracy_loss
    assert ends(alone, alone.steps[0], 0.9 - loss, 0.9)["confirm"] <= alone.alpha
    monkeypatch.setattr(probation, "difference", fixed)
    assert ends(alone, alone.steps[0], 0.9 - loss, 0.9)["confirm"] > 2 * alone.alpha


def test_a_much_worse_newcomer_is_still_found_out(alone: Probation) -> None:
    assert ends(alone, alone.steps[0], 0.7, 0.9)["revert"] == 1.0


def test_all_steps_share_one_alpha(clause: Probation, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []
    monkeypatch.setattr(probation, "difference", lambda *a: (asked.append(a[3]), (0.0, 0.0))[1])
    for step in clause.steps:
        probation.judge(arm(), arm(1), clause, step, 1.0)
    assert sum(asked) == pytest.approx(clause.alpha)
