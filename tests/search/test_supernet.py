"""The shared weights: calibration, standardisation, and that subnets are slices of one another."""

import numpy as np
import pytest
import torch

from policies.errors import TamperError
from search.exam import outputs, winners_curse
from search.rows import FAR, shrink
from search.supernet import Statistics, Supernet
from tests.search import worlds
from tests.search.worlds import BARS, CLOUDS, WAVES, World


@pytest.fixture(params=[BARS, WAVES, CLOUDS], ids=lambda world: world.task.modality)
def world(request) -> World:
    return request.param


@pytest.fixture
def net(world) -> Supernet:
    space = world.space()
    return Supernet(space.shapes(), space.entries()[0], 0)


@pytest.fixture
def rows(world, net) -> np.ndarray:
    x, _ = world.law(60, np.random.default_rng(0), False)
    net.standardise(x)
    return x


def test_calibration_gives_what_the_batch_itself_gives(world, net, rows):
    space = world.space()
    for genes in (space.largest, space.smallest, *space.sample(np.random.default_rng(0), 3)):
        blueprint, x = space.blueprint(genes), net.prepare(rows)
        with torch.no_grad():
            live, _ = net.forward(blueprint, x)
            calibrated, _ = net.forward(blueprint, x, net.calibrate(blueprint, x))
        torch.testing.assert_close(calibrated, live, atol=1e-4, rtol=1e-4)


def test_another_subnets_statistics_do_not_fit(net, world, rows):
    """The control of the test above: what calibration is for."""
    space = world.space()
    statistics = net.calibrate(space.blueprint(space.largest), net.prepare(rows))
    genes = space.largest
    genes[[index for index, kind in enumerate(space.kinds) if kind in ("width", "expansion", "kernel")]] = 0
    blueprint = space.blueprint(genes)
    foreign = Statistics(
        {conv.slot: statistics.mean[conv.slot][: conv.outputs] for conv in blueprint.convs},
        {conv.slot: statistics.variance[conv.slot][: conv.outputs] for conv in blueprint.convs},
    )
    own = net.calibrate(blueprint, net.prepare(rows))
    gap = outputs(net, blueprint, foreign, rows)[0] - outputs(net, blueprint, own, rows)[0]
    assert np.abs(gap).max() > 0.05


def test_a_state_is_whole_and_one_of_another_shape_is_refused(net, world, rows):
    space = world.space()
    other = Supernet(space.shapes(), space.entries()[0], 1)
    assert any(
        (one != two).any() for one, two in zip(net.state().values(), other.state().values(), strict=True)
    )
    other.load(net.state())
    assert all(torch.equal(one, other.state()[name]) for name, one in net.state().items())
    torch.testing.assert_close(other.prepare(rows), net.prepare(rows), atol=0, rtol=0)
    with pytest.raises(TamperError, match=r"classifier\.bias"):
        other.load(net.state() | {"classifier.bias": torch.zeros(9)})
    state = net.state()
    state.pop("stem.weight")
    with pytest.raises(TamperError, match=r"stem\.weight"):
        other.load(state)


def test_a_state_and_a_twin_are_copies(net, world, rows):
    state, twin = net.state(), net.twin()
    with torch.no_grad():
        for weight in net.parameters().values():
            weight.add_(1.0)
    torch.testing.assert_close(twin.state()["stem.weight"], state["stem.weight"], atol=0, rtol=0)
    assert not torch.equal(net.state()["stem.weight"], state["stem.weight"])


def test_pixels_are_scaled_and_need_no_learning():
    space = BARS.space()
    net = Supernet(space.shapes(), space.entries()[0], 0)
    x, _ = BARS.law(20, np.random.default_rng(0), False)
    before = net.prepare(x)
    net.standardise(x)
    torch.testing.assert_close(net.prepare(x), before, atol=0, rtol=0)
    assert (float(before.min()), float(before.max())) == (0.0, pytest.approx(200 / 255))


@pytest.mark.parametrize("world", [WAVES, CLOUDS], ids=lambda world: world.task.modality)
def test_a_few_huge_readings_do_not_squeeze_the_others_together(world, net):
    rng = np.random.default_rng(0)
    x = (7 + 2 * rng.standard_normal((400, *world.task.input.shape[1:]))).astype(np.float32)
    heavy = x.copy()
    heavy[:8] *= 1e6
    net.standardise(heavy)
    mean, factor = net.standard()
    np.testing.assert_allclose(mean.numpy(), 7, atol=0.5)
    np.testing.assert_allclose(factor.numpy(), 0.5, rtol=0.25)
    # What an ordinary mean and spread would have made of it.
    assert heavy.std() > 1000


@pytest.mark.parametrize("world", [WAVES, CLOUDS], ids=lambda world: world.task.modality)
def test_readings_that_never_change_or_lie_far_out_stay_finite(world, net):
    shape = world.task.input.shape[1:]
    net.standardise(np.full((50, *shape), 4.0, dtype=np.float32))
    still = net.prepare(np.full((3, *shape), 4.0, dtype=np.float32))
    assert (still == 0).all()
    ends = net.prepare(np.stack([np.full(shape, end, dtype=np.float32) for end in (-3e38, 3e38)]))
    assert torch.isfinite(ends).all()
    most = FAR / (1 + FAR) if world is CLOUDS else FAR
    assert (float(ends.min()), float(ends.max())) == (pytest.approx(-most), pytest.approx(most))


@pytest.mark.parametrize("world", [WAVES, CLOUDS], ids=lambda world: world.task.modality)
@pytest.mark.parametrize("size", [3.4e38, 1e-41, 1.0])
def test_rows_at_either_end_of_what_a_float_holds_can_be_standardised(world, net, size):
    shape = world.task.input.shape[1:]
    x = np.full((60, *shape), size, dtype=np.float32)
    x[::2] *= -1
    assert len(np.unique(x)) == 2
    net.standardise(x)
    assert all(torch.isfinite(one).all() for one in net.standard())
    seen = net.prepare(np.concatenate([x, np.zeros((1, *shape), dtype=np.float32)]))
    assert torch.isfinite(seen).all()
    assert (seen[-1] == 0).all()
    # Ordinary readings are not cut by what keeps the others finite.
    assert size != 1.0 or bool((seen[0] < 0).all() and (seen[1] > 0).all())


def test_half_of_the_windows_networks_see_the_latest_half():
    space = WAVES.space()
    net = Supernet(space.shapes(), space.entries()[0], 0)
    x, _ = WAVES.law(20, np.random.default_rng(0), False)
    forgot = x.copy()
    forgot[..., : worlds.STEPS // 2] = 10
    whole, latest = space.largest, space.largest
    latest[space.kinds.index("size")] = 0
    for genes, same in ((latest, True), (whole, False)):
        blueprint = space.blueprint(genes)
        statistics = net.calibrate(blueprint, net.prepare(x))
        answers = [outputs(net, blueprint, statistics, one)[0] for one in (x, forgot)]
        assert np.array_equal(*answers) is same


@pytest.mark.parametrize(("side", "to"), [(20, 15), (64, 48), (21, 16)])
def test_a_smaller_image_is_as_bright_and_in_the_same_place(side, to):
    matrix = shrink(side, to)
    np.testing.assert_allclose(matrix.sum(axis=1), 1, rtol=1e-6)
    assert (matrix.sum(axis=0) > 0).all()
    np.testing.assert_allclose(matrix, matrix[::-1, ::-1], atol=1e-6)


def test_the_winners_curse_grows_with_the_number_of_equal_candidates():
    right = np.random.default_rng(0).random((40, 200)) < 0.8
    few, many = (winners_curse(right[:n], np.random.default_rng(1)) for n in (1, 40))
    assert abs(few) < 0.01
    assert many > 0.03
