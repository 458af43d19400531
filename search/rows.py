"""How rows are laid out: from a task's shape to (n, channels, height, width), and to another size.

The same numbers resize in training and in the shipped graph: two constant matrices, so that both agree.
"""

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from search.blueprint import Entry, Layout

FAR = 1000.0
"""Spreads from the middle beyond which a reading counts as this far."""


def axes(x: Tensor, layout: Layout) -> Tensor:
    """Return rows (n, ...) as (n, channels, height, width)."""
    match layout:
        case Layout.HW:
            return x[:, None]
        case Layout.HWC:
            return x.permute(0, 3, 1, 2)
        case Layout.CHW:
            return x
        case Layout.CT:
            return x[:, :, None]
        case Layout.F:
            return x[:, :, None, None]


def resized(x: Tensor, entry: Entry) -> Tensor:
    """Return rows (n, c, h, w) at the size that the first block sees."""
    if entry.whole:
        return x
    if entry.layout is Layout.CT:
        return x[..., -entry.to_width :]
    down = torch.from_numpy(shrink(entry.height, entry.to_height))
    across = torch.from_numpy(shrink(entry.width, entry.to_width))
    small = down @ x @ across.T
    return small.contiguous(memory_format=torch.channels_last)


@lru_cache(maxsize=32)
def shrink(side: int, to: int) -> NDArray[np.float32]:
    """Return the matrix (to, side) that makes a side smaller: each new pixel is a tent over old ones.

    >>> shrink(4, 2).tolist()
    [[0.4285714328289032, 0.4285714328289032, 0.1428571492433548, 0.0], \
[0.0, 0.1428571492433548, 0.4285714328289032, 0.4285714328289032]]
    """
    ratio = side / to
    centres = (np.arange(to) + 0.5) * ratio - 0.5
    # The tent is as wide as the step, so that no pixel is passed over.
    weights = np.maximum(0.0, 1 - np.abs(np.arange(side)[None] - centres[:, None]) / ratio)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), dtype=np.float32)
