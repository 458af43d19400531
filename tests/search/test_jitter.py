"""The jitter that a task allows: no more than that, for each kind of row."""

import numpy as np
import pytest
import torch
from torch import Tensor

from policies.terms import Augmentation
from search.blueprint import Layout
from search.jitter import jitter
from tests.search.worlds import STILL


def _chance(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _allowed(**changed: float) -> Augmentation:
    return Augmentation.model_validate(changed)


def _centre(x: Tensor) -> tuple[float, float]:
    image = x[0, 0]
    down, across = torch.meshgrid(torch.arange(20.0), torch.arange(20.0), indexing="ij")
    mass = float(image.sum())
    return float((image * down).sum()) / mass, float((image * across).sum()) / mass


def test_an_image_moves_and_is_lit_within_what_the_task_allows():
    x = torch.zeros((200, 1, 20, 20))
    x[:, :, 9:11, 9:11] = 0.5
    torch.testing.assert_close(jitter(x, Layout.HW, STILL, _chance()), x, atol=1e-5, rtol=0)
    moved = jitter(x, Layout.HW, _allowed(shift_px=2.0), _chance())
    centres = np.array([_centre(one[None]) for one in moved]) - 9.5
    assert 1.5 < np.abs(centres).max() < 2.05
    peaks = jitter(x, Layout.HW, _allowed(gain=0.2), _chance()).amax(dim=(1, 2, 3))
    assert 0.4 <= peaks.min() < 0.42
    assert 0.58 < peaks.max() <= 0.6


def _angle(x: Tensor) -> float:
    """Return the degrees by which the steepest bar of a batch is turned."""
    height, width = x.shape[2:]
    down, across = torch.meshgrid(
        torch.arange(height) - (height - 1) / 2, torch.arange(width) - (width - 1) / 2, indexing="ij"
    )
    spread = (x * across * across).sum(dim=(1, 2, 3))
    slope = (x * down * across).sum(dim=(1, 2, 3)) / spread
    return float(torch.rad2deg(torch.atan(slope)).abs().max())


@pytest.mark.parametrize(("height", "width"), [(20, 20), (20, 40), (40, 20)])
def test_a_bar_is_turned_by_no_more_than_allowed_also_in_a_picture_that_is_not_square(height, width):
    x = torch.zeros((200, 1, height, width))
    x[:, :, height // 2 - 1 : height // 2 + 1, width // 2 - 8 : width // 2 + 8] = 1.0
    assert 15 < _angle(jitter(x, Layout.HW, _allowed(rotate_deg=20.0), _chance())) < 21


def test_a_window_begins_elsewhere_its_end_comes_round_and_it_is_amplified():
    x = torch.arange(1.0, 33.0).expand(200, 2, 1, 32)
    begun = jitter(x, Layout.CT, _allowed(shift_steps=4), _chance())
    first = begun[:, 0, 0, 0]
    assert set(first.tolist()) == {29.0, 30.0, 31.0, 32.0, 1.0, 2.0, 3.0, 4.0, 5.0}
    assert torch.equal(begun.sort(dim=3).values, x)
    assert torch.equal(begun[:, 0], begun[:, 1])
    loud = jitter(x, Layout.CT, _allowed(gain=0.5), _chance()) / x
    assert 0.5 <= float(loud.min()) < 0.52
    assert 1.48 < float(loud.max()) <= 1.5


def test_a_table_row_is_grained_only():
    x = torch.zeros((400, 6, 1, 1))
    every = _allowed(noise=0.1, gain=0.5, shift_steps=3, rotate_deg=20.0, shift_px=3.0)
    assert float(jitter(x, Layout.F, every, _chance()).std()) == pytest.approx(0.1, rel=0.1)
    assert torch.equal(jitter(x, Layout.F, STILL, _chance()), x)


@pytest.mark.parametrize("layout", list(Layout))
def test_jitter_repeats_under_a_seed_and_leaves_its_argument(layout):
    x = torch.rand((4, 3, 20, 24), generator=_chance(1))
    if layout is Layout.CT:
        x = x[:, :, :1]
    copy = x.clone()
    allowed = _allowed(rotate_deg=6.0, shift_px=1.0, scale=0.06, gain=0.1, noise=0.02, shift_steps=2)
    one, two, three = (jitter(x, layout, allowed, _chance(seed)) for seed in (0, 0, 1))
    assert torch.equal(one, two)
    assert not torch.equal(one, three)
    assert torch.equal(x, copy)
    if layout.pixels:
        assert float(one.min()) >= 0
        assert float(one.max()) <= 1
