"""Newcomer and incumbent on the same rows, with models and a stopwatch of the test's own."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from daemon.serving.refusals import ModelFailed
from daemon.shadow import contest as room
from daemon.shadow.contest import Contest
from daemon.shadow.pairs import Pair
from policies.shadow import ShadowCase
from policies.terms import Finding
from tests.shadow.conftest import CLAUSE


class Watch:
    """A stopwatch that only models move."""

    def __init__(self) -> None:
        self.now = 0.0
        self.ran: list[str] = []

    def __call__(self) -> float:
        return self.now


class Model:
    """Answers with its input turned by so many classes, after so many seconds; fails or breaks on demand."""

    def __init__(self, name: str, watch: Watch, turned: int = 0, seconds: float = 0.001) -> None:
        self._name, self._watch, self._turned, self._seconds = name, watch, turned, seconds
        self.runs = 0
        self.fails: Callable[[int], bool] = lambda _run: False
        self.breaks: Callable[[int], bool] = lambda _run: False

    def run(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        self.runs += 1
        self._watch.now += self._seconds
        self._watch.ran.append(self._name)
        if self.fails(self.runs):
            raise ModelFailed("expected an answer, got none")
        logits = np.roll(x, self._turned, axis=1)
        return (np.full_like(logits, np.nan) if self.breaks(self.runs) else logits), x


class Round:
    """A contest over random rows."""

    def __init__(self, case: ShadowCase, **newcomer: Any) -> None:
        self.watch = Watch()
        self.newcomer = Model("newcomer", self.watch, **newcomer)
        self.incumbent = Model("incumbent", self.watch)
        self.contest = Contest(case, self.newcomer, self.incumbent, self.watch)
        self._rng = np.random.default_rng(3)

    def run(self, rows: int) -> tuple[int, Finding | None]:
        """Run rows until a verdict stands; return how many there were, and the finding."""
        for row in range(1, rows + 1):
            x = self._rng.normal(size=4).astype(np.float32)
            verdict = self.contest.take(Pair(x, int(x.argmax())))
            if verdict is not None:
                return row, verdict.finding
        return rows, None


def test_a_newcomer_that_agrees_passes_at_the_first_look(make_case: Any) -> None:
    assert Round(make_case()).run(100) == (CLAUSE.rows, Finding.PASS)


def test_a_newcomer_that_turns_every_answer_fails_at_the_first_look(make_case: Any) -> None:
    beside = Round(make_case(), turned=1)
    assert beside.run(100) == (CLAUSE.rows, Finding.FAIL)
    assert beside.contest.result().disagreed == CLAUSE.rows


def test_what_is_not_shown_is_looked_at_again_at_twice_the_rows(make_case: Any) -> None:
    near = CLAUSE.model_copy(update={"max_p50_ratio": 1.0})
    beside = Round(make_case(clause=near), seconds=0.001)
    beside.newcomer._seconds, beside.incumbent._seconds = 0.001, 0.001
    jitter = np.random.default_rng(1).uniform(0.0005, 0.0015, 5000)
    run = beside.newcomer.run

    def shaky(x: np.ndarray) -> Any:
        beside.newcomer._seconds = float(jitter[beside.newcomer.runs])
        return run(x)

    beside.newcomer.run = shaky  # type: ignore[method-assign]
    rows, finding = beside.run(100)
    assert (rows, finding) == (100, None)
    result = beside.contest.result()
    assert (result.looks, result.rows) == (2, 80), "what it tells is the last look's, not a peek between two"


def test_a_slow_newcomer_fails_by_the_ratio_of_the_same_rows(make_case: Any) -> None:
    tight = CLAUSE.model_copy(update={"max_p50_ratio": 2.0})
    beside = Round(make_case(clause=tight), seconds=0.003)
    assert beside.run(100) == (CLAUSE.rows, Finding.FAIL)
    result = beside.contest.result()
    assert result.ratio == pytest.approx(3.0)
    assert result.newcomer is not None
    assert result.newcomer.p50_ms == pytest.approx(3.0)


def test_a_neighbour_that_slows_every_other_run_hits_both_alike(
    make_case: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: a contest in which the newcomer always goes first would call it slower."""

    def ratio() -> float:
        beside = Round(make_case())
        for model in (beside.newcomer, beside.incumbent):
            run = model.run

            def slowed(x: np.ndarray, run: Any = run) -> Any:
                beside.watch.now += 0.002 * (len(beside.watch.ran) % 2 == 0)
                return run(x)

            model.run = slowed  # type: ignore[method-assign]
        beside.run(CLAUSE.rows)
        found = beside.contest.result().ratio_interval
        assert found is not None
        return found[0]

    assert ratio() <= 1.0
    monkeypatch.setattr(Contest, "_newcomer_first", lambda self: True)
    assert ratio() > 2.0


def test_one_answer_that_is_not_finite_ends_it_at_once(make_case: Any) -> None:
    beside = Round(make_case())
    beside.newcomer.breaks = lambda run: run == room._WARM_RUNS + 7
    assert beside.run(100) == (7, Finding.FAIL)
    assert beside.contest.result().not_finite == 1


def test_rows_that_it_cannot_answer_end_it_once_they_are_too_many(make_case: Any) -> None:
    few = CLAUSE.model_copy(update={"max_error_share": 0.05})
    beside = Round(make_case(clause=few))
    beside.newcomer.fails = lambda run: run > room._WARM_RUNS and run % 2 == 0
    rows, finding = beside.run(100)
    assert finding is Finding.FAIL
    assert rows < CLAUSE.rows
    assert beside.contest.result().errors == 3, "two of forty are allowed"


def test_an_incumbent_that_fails_gives_no_time_and_is_not_held_against_the_newcomer(make_case: Any) -> None:
    beside = Round(make_case())
    beside.incumbent.fails = lambda _run: True
    assert beside.run(CLAUSE.rows) == (CLAUSE.rows, None)
    result = beside.contest.result()
    assert (result.errors, result.ratio, result.incumbent) == (0, None, None)
