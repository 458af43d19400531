"""The shared weights: calibration, folding, and that subnets are slices of one another."""

import numpy as np
import pytest
import torch
from torch import Tensor

from policies.errors import TamperError
from policies.terms import Augmentation
from search.budget import Budget
from search.crew import Crew
from search.dataset import Rows
from search.exam import images, outputs, winners_curse
from search.jitter import jitter
from search.supernet import Statistics, Supernet
from search.training import Course, batches, train

_STILL = Augmentation(rotate_deg=0.0, shift_px=0.0, scale=0.0, gain=0.0, noise=0.0)


@pytest.fixture
def net(space) -> Supernet:
    return Supernet(space.blueprint(space.largest), 0)


@pytest.fixture
def pixels(space) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (40, 20, 20), dtype=np.uint8)


def _rows(pixels: np.ndarray) -> Rows:
    return Rows(pixels, np.arange(len(pixels)) % 3)


def test_calibration_gives_what_the_batch_itself_gives(net, space, pixels):
    for genes in (space.largest, space.smallest):
        blueprint = space.blueprint(genes)
        x = images(pixels)
        with torch.no_grad():
            live, _ = net.forward(blueprint, x)
            calibrated, _ = net.forward(blueprint, x, net.calibrate(blueprint, x))
        torch.testing.assert_close(calibrated, live, atol=1e-4, rtol=1e-4)


def test_another_subnets_statistics_do_not_fit(net, space, pixels):
    """The control of the test above: what calibration is for."""
    statistics = net.calibrate(space.blueprint(space.largest), images(pixels))
    blueprint = space.blueprint(space.smallest)
    foreign = Statistics(
        {conv.slot: statistics.mean[conv.slot][: conv.outputs] for conv in blueprint.convs},
        {conv.slot: statistics.variance[conv.slot][: conv.outputs] for conv in blueprint.convs},
    )
    own = net.calibrate(blueprint, images(pixels))
    gap = outputs(net, blueprint, foreign, pixels)[0] - outputs(net, blueprint, own, pixels)[0]
    assert np.abs(gap).max() > 0.05


def test_state_and_load_are_whole_and_refuse_another_shape(net, space):
    other = Supernet(space.blueprint(space.largest), 1)
    other.load(net.state())
    assert all(torch.equal(one, two) for one, two in zip(net.parameters(), other.parameters(), strict=True))
    state = net.state()
    state["classifier.bias"] = torch.zeros(9)
    with pytest.raises(TamperError, match=r"classifier\.bias"):
        other.load(state)
    state = net.state()
    state.pop("stem.weight")
    with pytest.raises(TamperError, match=r"stem\.weight"):
        other.load(state)


def _trained(space, pixels: np.ndarray, threads: int, seed: int = 0) -> Supernet:
    net = Supernet(space.blueprint(space.largest), 0)
    crew = Crew(threads)
    rows = _rows(pixels)
    subnets = (space.blueprint(space.largest), space.blueprint(space.smallest))
    stream = batches(rows, rows.take(np.zeros(0, dtype=np.int64)), 16, _STILL, seed)
    course = Course("train", 6, 2, 0.1, 1.0)
    taken = train(net, stream, lambda _: subnets, course, Budget(100.0, lambda: 0.0), lambda *_: None, crew)
    crew.close()
    assert taken == 6
    return net


def _same(one: Supernet, other: Supernet) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_training_is_the_same_to_the_bit_for_any_number_of_threads(space, pixels):
    alone = _trained(space, pixels, 1)
    assert _same(alone, _trained(space, pixels, 2))
    assert not _same(alone, _trained(space, pixels, 1, seed=1))


def test_batches_are_half_old_rows_and_use_each_row_before_any_again(pixels):
    new, old = Rows(pixels, np.zeros(40, dtype=np.int64)), Rows(pixels, np.ones(40, dtype=np.int64))
    stream = batches(new, old, 10, _STILL, 0)
    labels = torch.stack([next(stream)[1] for _ in range(8)])
    assert labels.sum(dim=1).tolist() == [5] * 8
    numbered = Rows(pixels, np.arange(40))
    stream = batches(numbered, numbered.take(np.zeros(0, dtype=np.int64)), 10, _STILL, 0)
    assert sorted(torch.cat([next(stream)[1] for _ in range(4)]).tolist()) == list(range(40))


def test_training_is_shortened_when_steps_cost_more_than_planned(space, pixels):
    used = [0.0]

    def cpu() -> float:
        return used[0]

    def subnets(_step: int):
        used[0] += 1.0
        return (space.blueprint(space.smallest),)

    net, rows = Supernet(space.blueprint(space.largest), 0), _rows(pixels)
    budget = Budget(40.0, cpu)
    stream = batches(rows, rows.take(np.zeros(0, dtype=np.int64)), 8, _STILL, 0)
    taken = train(net, stream, subnets, Course("train", 100, 0, 0.1, 0.5), budget, lambda *_: None, Crew(1))
    assert taken == 20
    assert budget.cut == ["train"]


def _centre(x: Tensor) -> tuple[float, float]:
    image = x[0, 0]
    down, across = torch.meshgrid(torch.arange(20.0), torch.arange(20.0), indexing="ij")
    mass = float(image.sum())
    return float((image * down).sum()) / mass, float((image * across).sum()) / mass


def test_jitter_stays_within_what_the_task_allows():
    x = torch.zeros((200, 1, 20, 20))
    x[:, :, 9:11, 9:11] = 0.5
    still = jitter(x, _STILL, torch.Generator().manual_seed(0))
    torch.testing.assert_close(still, x, atol=1e-5, rtol=0)
    moved = jitter(x, _STILL.model_copy(update={"shift_px": 2.0}), torch.Generator().manual_seed(0))
    centres = np.array([_centre(one[None]) for one in moved]) - 9.5
    assert 1.5 < np.abs(centres).max() < 2.05
    bright = jitter(x, _STILL.model_copy(update={"gain": 0.2}), torch.Generator().manual_seed(0))
    peaks = bright.amax(dim=(1, 2, 3))
    assert 0.4 <= peaks.min() < 0.42
    assert 0.58 < peaks.max() <= 0.6


def test_jitter_turns_a_bar_by_no_more_than_allowed():
    x = torch.zeros((200, 1, 20, 20))
    x[:, :, 9:11, 2:18] = 1.0
    turned = jitter(x, _STILL.model_copy(update={"rotate_deg": 20.0}), torch.Generator().manual_seed(0))
    down, across = torch.meshgrid(torch.arange(20.0) - 9.5, torch.arange(20.0) - 9.5, indexing="ij")
    spread = (turned * across * across).sum(dim=(1, 2, 3))
    angles = torch.rad2deg(torch.atan((turned * down * across).sum(dim=(1, 2, 3)) / spread)).abs()
    assert 15 < float(angles.max()) < 21


def test_jitter_repeats_under_a_seed_and_leaves_its_argument():
    x = torch.rand((4, 1, 20, 20), generator=torch.Generator().manual_seed(1))
    copy = x.clone()
    allowed = Augmentation(rotate_deg=6.0, shift_px=1.0, scale=0.06, gain=0.1, noise=0.02)
    one, two, three = (jitter(x, allowed, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert torch.equal(one, two)
    assert not torch.equal(one, three)
    assert torch.equal(x, copy)
    assert float(one.min()) >= 0
    assert float(one.max()) <= 1


def test_the_winners_curse_grows_with_the_number_of_equal_candidates():
    right = np.random.default_rng(0).random((40, 200)) < 0.8
    few, many = (winners_curse(right[:n], np.random.default_rng(1)) for n in (1, 40))
    assert abs(few) < 0.01
    assert many > 0.03
