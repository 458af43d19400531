"""The exam: how well a subnet really does on the rows of role search.

* Before it is examined, a subnet's batch norms are calibrated: the statistics of another are worthless.
* A subnet in int8 is quantised as it would ship, and answers through the runtime.
* It looks at new and at old rows, and keeps which rows were right: luck in choosing the best is measured on
  them (``winners_curse``).
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from search.blueprint import Blueprint
from search.dataset import Rows
from search.supernet import Statistics, Supernet

_BATCH = 256
_Z95_ONE_SIDED = 1.644854


@dataclass(frozen=True)
class Marks:
    """Which rows a subnet got right; each (n,) bool."""

    new: NDArray[np.bool_]
    old: NDArray[np.bool_]

    @property
    def accuracy(self) -> float:
        """Return the share of new rows that were right."""
        return float(self.new.mean())

    @property
    def accuracy_old(self) -> float | None:
        """Return the share of old rows that were right, or None when there are none."""
        return float(self.old.mean()) if len(self.old) else None


@dataclass(frozen=True)
class Sheet:
    """What every subnet is asked.

    Args:
        calibration: Rows for the batch norms, prepared by the net.
        raw: Rows as they are served, for the scales of int8; (n, ...).
        new: Rows of role search since the change.
        old: Rows of role search from before it; may be empty.
    """

    calibration: Tensor
    raw: NDArray[np.generic]
    new: Rows
    old: Rows


def mark(net: Supernet, blueprint: Blueprint, statistics: Statistics, new: Rows, old: Rows) -> Marks:
    """Examine a calibrated subnet in full precision."""

    def right(rows: Rows) -> NDArray[np.bool_]:
        if not len(rows):
            return np.zeros(0, dtype=np.bool_)
        logits, _ = outputs(net, blueprint, statistics, rows.x)
        return np.asarray(logits.argmax(axis=1) == rows.y)

    return Marks(right(new), right(old))


def outputs(
    net: Supernet, blueprint: Blueprint, statistics: Statistics, x: NDArray[np.generic]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return logits (n, classes) and embedding (n, d) of a calibrated subnet, without gradients."""
    with torch.no_grad():
        parts = [
            net.forward(blueprint, net.prepare(x[first : first + _BATCH]), statistics)
            for first in range(0, len(x), _BATCH)
        ]
    logits = torch.cat([part[0] for part in parts]).numpy()
    embedding = torch.cat([part[1] for part in parts]).numpy()
    return logits, embedding


def pooled_outputs(
    net: Supernet, blueprint: Blueprint, statistics: Statistics, x: NDArray[np.generic] | Tensor
) -> list[NDArray[np.float32]]:
    """Return what each block of a calibrated subnet ends in, averaged over all positions; each (n, channels).

    Args:
        net: Of the subnet.
        blueprint: Of the subnet.
        statistics: Of the subnet.
        x: Rows as they are served, or as ``net.prepare`` gives them.
    """
    rows = x if isinstance(x, Tensor) else net.prepare(x)
    with torch.no_grad():
        parts = [
            net.pooled(blueprint, rows[first : first + _BATCH], statistics)
            for first in range(0, len(rows), _BATCH)
        ]
    return [torch.cat(blocks).numpy() for blocks in zip(*parts, strict=True)]


def clearly_better(one: Marks, other: Marks) -> bool:
    """Tell whether one got more new rows right than chance explains (a one-sided sign test at 5 %).

    >>> none, few, many = (Marks(np.arange(40) < n, np.zeros(0, bool)) for n in (0, 1, 30))
    >>> clearly_better(few, none), clearly_better(many, none)
    (False, True)
    """
    gained = int((one.new & ~other.new).sum())
    lost = int((~one.new & other.new).sum())
    return gained - lost > _Z95_ONE_SIDED * math.sqrt(gained + lost)


def winners_curse(right: NDArray[np.bool_], rng: np.random.Generator, rounds: int = 200) -> float:
    """Return by how much the accuracy of the best of several flatters it.

    In each round the best is chosen on a bootstrap sample of the rows, and measured on the rows left out.

    Args:
        right: (candidates, n) which rows each got right.
        rng: For the bootstrap.
        rounds: How often.

    >>> alike = np.tile(np.arange(40) % 4 > 0, (3, 1))
    >>> abs(winners_curse(alike, np.random.default_rng(0))) < 0.02
    True
    """
    gaps = []
    n = right.shape[1]
    for _ in range(rounds):
        rows = rng.integers(0, n, n)
        left = np.ones(n, dtype=np.bool_)
        left[rows] = False
        inside = right[:, rows].mean(axis=1)
        best = int(inside.argmax())
        if left.any():
            gaps.append(float(inside[best] - right[best, left].mean()))
    return float(np.mean(gaps))
