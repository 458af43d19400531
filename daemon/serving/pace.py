"""The pace of a proven model: how long it takes, and whether requests may share a run of it.

* Requests share a run when two things hold: it pays (a row of a batch costs less than a row alone), and the
  answers are bit-equal to those of each row alone. Both are tried here, per bundle, on the rows of its
  goldens; nothing is assumed of a graph.
* Where trying every size would take long, powers of two are tried, and only sizes that were tried are used.
* Times are this process's, the smallest of a few runs: what the model costs, not what a neighbour costs.

Called by ``slot.py`` while a slot is built. Decides nothing: ``engine.py`` reads it.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Run = Callable[[NDArray[Any]], tuple[NDArray[np.float32], NDArray[np.float32]]]

PAYS = 0.97
"""A row of a batch must cost at most this share of a row alone. What a run costs beside the model, tens of
microseconds, is shared too; where a batch is no cheaper at all, the first of it would wait for nothing."""
TRIAL_S = 0.05
"""What trying every size of a batch may cost while a slot is built."""
_REPEATS = 5


@dataclass(frozen=True, slots=True)
class Pace:
    """What a run costs. ``sizes`` are the numbers of rows in which requests may share a run, 1 included."""

    row_s: float
    batch_row_s: float
    sizes: frozenset[int]

    @property
    def batches(self) -> bool:
        """Whether requests share runs at all."""
        return len(self.sizes) > 1

    def seconds(self, rows: int) -> float:
        """Return about how long a run of so many rows takes.

        >>> Pace(row_s=0.001, batch_row_s=0.0005, sizes=frozenset({1})).seconds(3)
        0.002
        """
        return self.row_s + (rows - 1) * self.batch_row_s


UNTRIED = Pace(row_s=0.0, batch_row_s=0.0, sizes=frozenset({1}))


def measure(run: Run, rows: NDArray[Any], most: int) -> Pace:
    """Return the pace of a model.

    Args:
        run: Answers ``(n, ...)`` rows with logits and embedding.
        rows: Inputs to try it on, at least one.
        most: Rows of the largest batch.
    """
    x = np.ascontiguousarray(rows[np.arange(most) % len(rows)])
    row_s, whole_s = _fastest(run, x[:1]), _fastest(run, x)
    batch_row_s = whole_s / most
    sizes = frozenset({1})
    if most > 1 and batch_row_s <= PAYS * row_s:
        every = batch_row_s * most * (most + 1) / 2 <= TRIAL_S
        tried = range(2, most + 1) if every else [2**i for i in range(1, most.bit_length()) if 2**i <= most]
        sizes = proven(run, x, tried)
    return Pace(row_s, batch_row_s, sizes)


def proven(run: Run, x: NDArray[Any], tried: "range | list[int]") -> frozenset[int]:
    """Return those sizes in which every row's answer is bit-equal to its answer alone; 1 always."""
    alone = [run(x[i : i + 1]) for i in range(max(tried, default=1))]
    logits, embedding = (np.concatenate(column) for column in zip(*alone, strict=True))
    good = {1}
    for size in tried:
        got = run(x[:size])
        if got[0].tobytes() == logits[:size].tobytes() and got[1].tobytes() == embedding[:size].tobytes():
            good.add(size)
    return frozenset(good)


def _fastest(run: Run, x: NDArray[Any]) -> float:
    best = float("inf")
    for _ in range(_REPEATS):
        began = time.perf_counter()
        run(x)
        best = min(best, time.perf_counter() - began)
    return best
