"""The exam: how well a subnet really does on the rows of role search.

* Before it is examined, a subnet's batch norms are calibrated: the statistics of another are worthless.
* It looks at new and at old rows, and keeps which rows were right: luck in choosing the best is measured on
  them (``winners_curse``).
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from search.blueprint import Blueprint
from search.dataset import Rows
from search.supernet import Statistics, Supernet

_BATCH = 256


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


class Exam:
    """The same questions for every subnet of one supernet.

    Args:
        net: The weights as they are at each call.
        calibration: (n, 1, h, w) float32 images for the batch norms.
        new: Rows of role search since the change.
        old: Rows of role search from before it; may be empty.
    """

    def __init__(self, net: Supernet, calibration: Tensor, new: Rows, old: Rows) -> None:
        self._net = net
        self._calibration = calibration
        self._new = new
        self._old = old

    def take(self, blueprint: Blueprint) -> Marks:
        """Calibrate a subnet and examine it."""
        return self.mark(blueprint, self.calibrate(blueprint))

    def mark(self, blueprint: Blueprint, statistics: Statistics) -> Marks:
        """Examine a calibrated subnet."""
        return Marks(
            new=self._right(blueprint, statistics, self._new),
            old=self._right(blueprint, statistics, self._old),
        )

    def calibrate(self, blueprint: Blueprint) -> Statistics:
        """Return the statistics that the exam uses for a subnet."""
        return self._net.calibrate(blueprint, self._calibration)

    def _right(self, blueprint: Blueprint, statistics: Statistics, rows: Rows) -> NDArray[np.bool_]:
        if not len(rows):
            return np.zeros(0, dtype=np.bool_)
        logits, _ = outputs(self._net, blueprint, statistics, rows.x)
        return np.asarray(logits.argmax(axis=1) == rows.y)


def images(x: NDArray[np.uint8]) -> Tensor:
    """Return pixels (n, h, w) as the networks see them: (n, 1, h, w) float32 in [0, 1]."""
    # Multiplied, not divided, as the bundle does it: the two round differently.
    return torch.from_numpy(np.ascontiguousarray(x)).float().mul(1 / 255)[:, None]


def outputs(
    net: Supernet, blueprint: Blueprint, statistics: Statistics, x: NDArray[np.uint8]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return logits (n, classes) and embedding (n, d) of a calibrated subnet, without gradients."""
    with torch.no_grad():
        parts = [
            net.forward(blueprint, images(x[first : first + _BATCH]), statistics)
            for first in range(0, len(x), _BATCH)
        ]
    logits = torch.cat([part[0] for part in parts]).numpy()
    embedding = torch.cat([part[1] for part in parts]).numpy()
    return logits, embedding


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
