"""Training: the same bits on any machine, from any moment on; and what it does when it goes wrong."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from policies.errors import PermanentError
from search.batches import Batch, Batches
from search.blueprint import Blueprint, Layout
from search.budget import Budget
from search.crew import Crew
from search.dataset import Rows
from search.supernet import Supernet
from search.training import SNAPSHOT_EVERY, Course, Memory, Pupil
from tests.search import worlds
from tests.search.worlds import CLOUDS, STILL, WAVES, World

_SIZE = 16


def _rows(world: World, n: int, seed: int = 0) -> Rows:
    return Rows(*world.law(n, np.random.default_rng(seed), False))


def _batches(world: World, net: Supernet, new: Rows, old: Rows | None = None, **changed: Any) -> Batches:
    fields: dict[str, Any] = {
        "net": net,
        "new": new,
        "old": new.take(np.zeros(0, dtype=np.int64)) if old is None else old,
        "memory": None,
        "layout": world.space().entries()[0].layout,
        "augmentation": world.task.augmentation,
        "size": _SIZE,
        "seed": 0,
    }
    return Batches(**(fields | changed))


@dataclass
class Lesson:
    """A supernet, its rows, and who learns: the largest teaches two others."""

    world: World
    course: Course
    threads: int = 1
    seed: int = 0
    wrap: Callable[[Batches], Any] = lambda batches: batches
    kept: list[tuple[Memory, dict[str, Tensor]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        space, rows = self.world.space(), _rows(self.world, 200)
        self.net = Supernet(space.shapes(), space.entries()[0], 0)
        self.net.standardise(rows.x)
        self.crew = Crew(self.threads)
        ends = (space.blueprint(space.largest), space.blueprint(space.smallest))
        between = [space.blueprint(row) for row in space.sample(np.random.default_rng(1), 5)]

        def subnets(step: int) -> tuple[Blueprint, ...]:
            return (*ends, between[step % len(between)])

        batches = self.wrap(_batches(self.world, self.net, rows, seed=self.seed))
        self.pupil = Pupil(self.net, batches, subnets, self.course, self.crew)

    def train(self, cpu: Callable[[], float] = worlds.standing, total_s: float = 100.0) -> int:
        budget = Budget(total_s, cpu)
        try:
            return self.pupil.train(
                budget,
                lambda *_: None,
                lambda pupil: self.kept.append((pupil.memory, pupil.tensors())),
            )
        finally:
            self.crew.close()


def _course(steps: int, **changed: Any) -> Course:
    return replace(Course("train", steps, 5, 0.1, 0.5), **changed)


def _same(one: Supernet, other: Supernet) -> bool:
    return all(torch.equal(tensor, other.state()[name]) for name, tensor in one.state().items())


@pytest.mark.parametrize("world", [WAVES, CLOUDS], ids=lambda world: world.task.modality)
def test_training_is_the_same_to_the_bit_for_any_number_of_threads(world):
    lessons = [Lesson(world, _course(12), threads, seed) for threads, seed in ((1, 0), (2, 0), (1, 1))]
    assert [lesson.train() for lesson in lessons] == [12] * 3
    alone, two, other = (lesson.net for lesson in lessons)
    assert _same(alone, two)
    assert not _same(alone, other)


def test_the_largest_learns_alone_while_it_warms_up():
    one, other = (Lesson(CLOUDS, _course(6, warm=warm)) for warm in (6, 0))
    before = one.net.state()
    one.train()
    other.train()
    # Of a table, the largest uses all of every slot, so the smallest has no weights of its own; a window's
    # early way out is the smallest's alone.
    assert not _same(one.net, other.net)
    assert not torch.equal(one.net.state()["stem.weight"], before["stem.weight"])
    waves = Lesson(WAVES, _course(6, warm=6))
    early = waves.net.state()["head.early.weight"]
    waves.train()
    assert torch.equal(waves.net.state()["head.early.weight"], early)
    taught = Lesson(WAVES, _course(6, warm=0))
    taught.train()
    assert not torch.equal(taught.net.state()["head.early.weight"], early)


@pytest.mark.parametrize("world", [WAVES, CLOUDS], ids=lambda world: world.task.modality)
def test_a_training_that_was_broken_off_ends_with_the_bits_of_an_unbroken_one(world):
    steps = SNAPSHOT_EVERY + 12
    whole = Lesson(world, _course(steps))
    whole.train()
    memory, tensors = whole.kept[-1]
    assert memory.step == SNAPSHOT_EVERY
    again, other = Lesson(world, _course(steps)), Lesson(world, _course(steps), seed=1)
    for lesson in (again, other):
        lesson.pupil.restore(memory, tensors)
        assert lesson.train() == steps
    assert _same(whole.net, again.net)
    assert whole.pupil.memory == again.pupil.memory
    assert not _same(whole.net, other.net)


def test_a_training_without_its_momentum_ends_elsewhere():
    """The control of the test above: what a checkpoint must hold beside the weights."""
    whole = Lesson(CLOUDS, _course(SNAPSHOT_EVERY + 5))
    whole.train()
    memory, tensors = whole.kept[-1]
    again = Lesson(CLOUDS, _course(SNAPSHOT_EVERY + 5))
    again.pupil.restore(
        memory, {name: one for name, one in tensors.items() if not name.startswith("momentum.")}
    )
    again.train()
    assert not _same(whole.net, again.net)


class _Poisoned:
    """Batches of which one is bad, the first time that it is asked for, or always."""

    def __init__(
        self, batches: Batches, at: int, change: Callable[[Batch], Batch], *, always: bool = False
    ) -> None:
        self._batches, self._at, self._change, self._always = batches, at, change, always
        self.asked: list[int] = []

    def at(self, step: int) -> Batch:
        batch = self._batches.at(step)
        bad = step == self._at and (self._always or step not in self.asked)
        self.asked.append(step)
        return self._change(batch) if bad else batch


def _without_numbers(batch: Batch) -> Batch:
    return Batch(batch.x * math.nan, batch.y, batch.memory)


def _wrongly_labelled(batch: Batch) -> Batch:
    return Batch(batch.x, (batch.y + 1) % 3, batch.memory)


@pytest.mark.parametrize("change", [_without_numbers, _wrongly_labelled])
def test_a_loss_that_leaves_its_path_sends_training_back_at_half_the_rate_and_on(change):
    bad = SNAPSHOT_EVERY + 17
    poisoned: list[_Poisoned] = []

    def wrap(batches: Batches) -> _Poisoned:
        poisoned.append(_Poisoned(batches, bad, change))
        return poisoned[0]

    lesson = Lesson(CLOUDS, _course(80), wrap=wrap)
    assert lesson.train() == 80
    assert (lesson.pupil.memory.rollbacks, lesson.pupil.memory.scale) == (1, 0.5)
    assert poisoned[0].asked == [*range(bad + 1), *range(SNAPSHOT_EVERY, 80)]
    assert all(torch.isfinite(one).all() for one in lesson.net.state().values())
    calm = Lesson(CLOUDS, _course(80))
    calm.train()
    assert (calm.pupil.memory.rollbacks, calm.pupil.memory.scale) == (0, 1.0)
    # Until the last snapshot both went the same way.
    for name, one in calm.kept[1][1].items():
        assert torch.equal(one, lesson.kept[1][1][name])
    assert not _same(calm.net, lesson.net)


def test_a_step_that_never_works_is_refused_and_leaves_weights_that_are_numbers():
    lesson = Lesson(
        CLOUDS,
        _course(80),
        wrap=lambda batches: _Poisoned(batches, 60, _without_numbers, always=True),
    )
    with pytest.raises(PermanentError, match="left its path 8 times, last at step 60"):
        lesson.train()
    assert all(torch.isfinite(one).all() for one in lesson.net.state().values())


def test_a_steady_course_goes_back_with_its_average_too():
    plain, spiked = (
        Lesson(
            CLOUDS,
            _course(60, warm=0, steady=True),
            wrap=lambda batches, at=at: _Poisoned(batches, at, _without_numbers),
        )
        for at in (10_000, 55)
    )
    for lesson in (plain, spiked):
        lesson.train()
    assert spiked.pupil.memory.rollbacks == 1
    at_the_snapshot = plain.kept[1][1]
    for name in ("average.stem.weight", "stem.weight", "momentum.stem.weight"):
        assert torch.equal(at_the_snapshot[name], spiked.kept[1][1][name])
    gap = spiked.pupil.averaged().state()["stem.weight"] - plain.pupil.averaged().state()["stem.weight"]
    assert torch.isfinite(gap).all()
    assert gap.abs().max() > 0


def test_a_wild_beginning_is_no_spike():
    lesson = Lesson(CLOUDS, _course(30), wrap=lambda batches: _Poisoned(batches, 20, _wrongly_labelled))
    lesson.train()
    assert lesson.pupil.memory.rollbacks == 0


def test_a_steady_course_follows_its_weights_with_an_average_and_leaves_them_alone():
    lesson = Lesson(CLOUDS, _course(1, warm=0, steady=True))
    before = lesson.net.state()
    lesson.train()
    after, average = lesson.net.state(), lesson.pupil.averaged().state()
    # A young average moves fast: four fifths of the way at the first step.
    torch.testing.assert_close(
        average["stem.weight"], before["stem.weight"].lerp(after["stem.weight"], 0.8), atol=1e-7, rtol=1e-5
    )
    assert not torch.equal(average["stem.weight"], after["stem.weight"])
    assert _same(lesson.net, lesson.net.twin())
    longer = [Lesson(CLOUDS, _course(30, warm=0, steady=True), threads) for threads in (1, 2)]
    for one in longer:
        one.train()
    assert _same(*(one.pupil.averaged() for one in longer))


def test_the_plan_is_shortened_when_steps_cost_more_than_planned():
    taken, cuts = [], []
    for cost_s in (1.0, 0.01):
        used = [0.0]

        def dear(batches: Batches, used: list[float] = used, cost_s: float = cost_s) -> Any:
            def slow(batch: Batch) -> Batch:
                used[0] += cost_s
                return batch

            return _Every(batches, slow)

        lesson = Lesson(CLOUDS, _course(100), wrap=dear)
        budget = Budget(40.0, lambda used=used: used[0])
        taken.append(lesson.pupil.train(budget, lambda *_: None, lambda _: None))
        cuts.append(budget.cut)
        lesson.crew.close()
    assert taken == [20, 100]
    assert cuts == [["train"], []]


class _Every:
    """Batches that all pass through a function."""

    def __init__(self, batches: Batches, function: Callable[[Batch], Batch]) -> None:
        self._batches, self._function = batches, function

    def at(self, step: int) -> Batch:
        return self._function(self._batches.at(step))


# -- batches ----------------------------------------------------------------------------------------------


@pytest.fixture
def table() -> Supernet:
    space = CLOUDS.space()
    return Supernet(space.shapes(), space.entries()[0], 0)


def _equal(one: Batch, other: Batch) -> bool:
    return torch.equal(one.x, other.x) and torch.equal(one.y, other.y)


def test_a_batch_is_a_function_of_its_number_and_the_seed():
    space, rows = WAVES.space(), _rows(WAVES, 50)
    net = Supernet(space.shapes(), space.entries()[0], 0)
    first, second, other = (_batches(WAVES, net, rows, seed=seed) for seed in (0, 0, 1))
    order: Sequence[int] = (7, 0, 3, 90, 7, 4)
    shuffled = {step: first.at(step) for step in order}
    for step in sorted(set(order)):
        assert _equal(shuffled[step], second.at(step))
        assert not _equal(shuffled[step], other.at(step))


@pytest.mark.parametrize("n", [40, 23, 5])
def test_each_row_is_used_before_any_is_used_again(table, n):
    rows = Rows(_rows(CLOUDS, n).x, np.arange(n))
    batches = _batches(CLOUDS, table, rows, size=10)
    used = torch.cat([batches.at(step).y for step in range(n)]).tolist()
    for deck in range(10):
        assert sorted(used[deck * n : (deck + 1) * n]) == list(range(n))
    assert used[:n] != used[n : 2 * n]


def test_batches_are_half_old_rows_which_come_last_with_what_the_parent_said_of_them(table):
    new = Rows(_rows(CLOUDS, 40).x, np.zeros(40, dtype=np.int64))
    old = Rows(_rows(CLOUDS, 30, seed=1).x, np.ones(30, dtype=np.int64))
    memory = torch.arange(90.0).reshape(30, 3)
    batches = _batches(CLOUDS, table, new, old, memory=memory, augmentation=STILL, size=11)
    prepared = table.prepare(old.x)
    for step in range(8):
        batch = batches.at(step)
        assert batch.y.tolist() == [0] * 6 + [1] * 5
        for row, said in zip(batch.x[-5:], batch.memory, strict=True):
            at = int(said[0]) // 3
            assert torch.equal(row, prepared[at])
    assert _batches(CLOUDS, table, new).at(0).memory is None
    assert Layout.F is CLOUDS.space().entries()[0].layout
