"""Who learns at each step."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest

from policies.terms import Brief, Schedule, TriggerKind
from search import founding, plan
from search.blueprint import Blueprint
from search.desk import Desk
from search.lessons import Lessons
from search.training import Course
from tests.search import worlds
from tests.search.worlds import BARS, CLOUDS

_STEPS = 400


@pytest.fixture
def laid(tmp_path) -> Iterator[Callable[..., Desk]]:
    desks: list[Desk] = []

    def lay(**changed: object) -> Desk:
        brief: Brief = worlds.founding_brief(BARS, tmp_path, **changed)
        desks.append(worlds.desk(brief, tmp_path))
        return desks[-1]

    yield lay
    for one in desks:
        one.crew.close()


def _lessons(desk: Desk) -> Lessons:
    course = Course("train", _STEPS, 0, 0.1, 1.0)
    return Lessons(desk, course, desk.space.largest[None], founding.RATE, memory=None)


def test_the_largest_teaches_a_neighbour_a_stranger_and_the_smallest(laid):
    desk = laid()
    space, lessons = desk.space, _lessons(desk)
    for step in range(40):
        first, near, _, last = lessons.subnets(step)
        assert first == space.blueprint(space.largest)
        assert near != first
        assert last == space.blueprint(space.smallest)
    assert len({lessons.subnets(step)[2] for step in range(40)}) > 25


def test_who_learns_is_a_function_of_the_step_and_the_seed(laid):
    one, same, other = (_lessons(laid(seed=seed)) for seed in (5, 5, 6))
    steps = (9, 2, 31, 2)
    assert [one.subnets(step) for step in steps] == [same.subnets(step) for step in steps]
    assert [one.subnets(step) for step in steps] != [other.subnets(step) for step in steps]


def test_neighbours_stay_near_their_centres(laid):
    desk = laid()
    space = desk.space
    centres = space.sample(np.random.default_rng(0), 2)
    course = Course("train", _STEPS, 0, 0.1, 1.0)
    lessons = Lessons(desk, course, centres, 0.0, memory=None)
    found = {lessons.subnets(step)[1] for step in range(40)}
    assert found == {space.blueprint(row) for row in centres}


def test_strangers_come_from_each_stratum_of_cost_in_turn(laid):
    lessons = _lessons(laid())
    found = [[], [], [], [], []]
    for step in range(_STEPS):
        found[step % 5].append(np.log(lessons.subnets(step)[2].macs))
    means = [float(np.mean(one)) for one in found]
    assert means == sorted(means)
    # Even steps on a scale of ratios, not even numbers of samples.
    assert np.diff(means).min() > 0.6 * np.diff(means).mean()


def _spread(macs: np.ndarray) -> float:
    return float(np.log(macs).std())


def test_strangers_are_spread_over_cost_more_evenly_than_plain_samples(laid):
    desk = laid()
    lessons = _lessons(desk)
    strangers = np.array([lessons.subnets(step)[2].macs for step in range(_STEPS)])
    plain = desk.costs.macs(desk.space.sample(np.random.default_rng(0), 2000))
    assert _spread(strangers) > 1.1 * _spread(plain)


def _opened(desk: Desk, blueprint: Blueprint) -> set[str]:
    """Return in which of four ways a network differs from the largest."""
    largest = desk.space.blueprint(desk.space.largest)
    widest = {conv.slot: conv for conv in largest.convs}
    found = set()
    if blueprint.entry != largest.entry:
        found.add("size")
    if {conv.slot for conv in blueprint.convs} != set(widest):
        found.add("depth")
    for conv in blueprint.convs:
        full = widest.get(conv.slot, conv)
        found |= {"kernel"} if conv.kernel != full.kernel else set()
        found |= {"width"} if conv.outputs != full.outputs else set()
    return found


def test_a_shrinking_schedule_opens_kinds_in_order_and_keeps_the_rest_largest(laid):
    desk = laid(schedule=Schedule.SHRINKING)
    lessons = _lessons(desk)
    order = [{"size"}, {"size", "kernel"}, {"size", "kernel", "depth"}, {"size", "kernel", "depth", "width"}]
    for part, opened in enumerate(order):
        first = part * _STEPS // 4
        steps = range(first, first + _STEPS // 4)
        found = [one for step in steps for one in lessons.subnets(step)[1:]]
        assert set().union(*(_opened(desk, one) for one in found)) == opened
    at_once = _lessons(laid())
    every = set().union(*(_opened(desk, one) for step in range(60) for one in at_once.subnets(step)[1:]))
    assert every == order[-1]


def test_a_shrinking_schedule_keeps_to_the_steps_that_are_planned_and_not_to_those_of_the_course(laid):
    """A machine that is slower than it was plans anew; the last kinds must open all the same."""
    desk = laid(schedule=Schedule.SHRINKING)
    lessons = _lessons(desk)

    def opened(steps: range) -> set[str]:
        return set().union(
            *(_opened(desk, one) for step in steps for one in lessons.subnets(step)[1:])  # not the teacher
        )

    late = range(60, 80)
    assert opened(late) == {"size"}
    lessons.pupil.memory = replace(lessons.pupil.memory, planned=80)
    assert opened(late) == {"size", "kernel", "depth", "width"}


def test_a_shrinking_schedule_changes_nothing_in_an_adaptation(laid, tabled, tmp_path):
    """What a parent knows is not locked again; at founding the two schedules differ."""

    def taught(brief: Brief) -> list[tuple[Blueprint, ...]]:
        desk = worlds.desk(brief, tmp_path)
        found = [_lessons(desk).subnets(step) for step in range(20)]
        desk.crew.close()
        return found

    sandwich, shrinking = (
        worlds.child_brief(tabled, CLOUDS, tmp_path, TriggerKind.DATA, schedule=schedule)
        for schedule in (Schedule.SANDWICH, Schedule.SHRINKING)
    )
    assert taught(sandwich) == taught(shrinking)
    pupils = [
        [one.subnets(step)[1:3] for step in range(20)]
        for one in (_lessons(laid(schedule=schedule)) for schedule in Schedule)
    ]
    assert pupils[0] != pupils[1]


def test_the_plan_grows_with_the_budget_and_shrinks_with_the_pace(laid):
    poor, rich = (plan.course(laid(budget_cpu_s=budget)).steps for budget in (15.0, 40.0))
    assert 1 < poor < rich
    assert plan.course(laid(budget_cpu_s=0.5)).steps == 1
    few, many = (plan.looks(laid(budget_cpu_s=budget)) for budget in (0.5, 400.0))
    assert (few, many) == (12, 64)
