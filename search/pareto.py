"""Who dominates whom: ranks and crowding of points whose objectives are all to be made small.

Two objectives, error and latency, are the common case: they are sorted instead of compared pairwise, which is
what lets a search look at a hundred thousand architectures a CPU-second.

Source: Deb et al., A fast and elitist multiobjective genetic algorithm: NSGA-II (2002); for two objectives,
Jensen, Reducing the run-time complexity of multiobjective EAs (2003).
"""

from bisect import bisect_right

import numpy as np
from numpy.typing import NDArray

Objectives = NDArray[np.float64]


def ranks(objectives: Objectives) -> NDArray[np.int64]:
    """Return the front that each point lies on; 0 is the best.

    Args:
        objectives: (n, m); smaller is better.

    >>> ranks(np.array([[0.0, 1.0], [1.0, 0.0], [1.0, 1.0], [2.0, 2.0]])).tolist()
    [0, 0, 1, 2]
    """
    return _sorted_ranks(objectives) if objectives.shape[1] == 2 else pairwise_ranks(objectives)


def pairwise_ranks(objectives: Objectives) -> NDArray[np.int64]:
    """Return what ``ranks`` does, for any number of objectives, by comparing all pairs."""
    not_worse = (objectives[:, None] <= objectives[None]).all(axis=2)
    better = (objectives[:, None] < objectives[None]).any(axis=2)
    dominates = not_worse & better
    left = np.ones(len(objectives), dtype=np.bool_)
    rank = np.zeros(len(objectives), dtype=np.int64)
    front = 0
    while left.any():
        best = left & ~(dominates & left[:, None]).any(axis=0)
        rank[best] = front
        left &= ~best
        front += 1
    return rank


def _sorted_ranks(objectives: Objectives) -> NDArray[np.int64]:
    order = np.lexsort((objectives[:, 1], objectives[:, 0]))
    rank = np.empty(len(objectives), dtype=np.int64)
    lows: list[float] = []
    """The smallest second objective of each front; it grows from front to front."""
    before, front = None, 0
    for index, point in zip(order.tolist(), objectives[order].tolist(), strict=True):
        # Equal points do not dominate one another.
        if point != before:
            front = bisect_right(lows, point[1])
            if front == len(lows):
                lows.append(point[1])
            else:
                lows[front] = point[1]
            before = point
        rank[index] = front
    return rank


def crowding(objectives: Objectives) -> NDArray[np.float64]:
    """Return how much room each point of one front has; the ends have infinite room.

    Args:
        objectives: (n, m) of one front.

    >>> crowding(np.array([[0.0, 4.0], [1.0, 1.0], [4.0, 0.0]])).tolist()
    [inf, 2.0, inf]
    """
    n, m = objectives.shape
    room = np.zeros(n)
    for column in range(m):
        order = np.argsort(objectives[:, column], kind="stable")
        values = objectives[order, column]
        spread = values[-1] - values[0]
        room[order[0]] = room[order[-1]] = np.inf
        if n > 2 and spread > 0:
            room[order[1:-1]] += (values[2:] - values[:-2]) / spread
    return room


def survivors(objectives: Objectives, n: int) -> NDArray[np.int64]:
    """Return the indices of the ``n`` points that NSGA-II keeps, best first."""
    rank = ranks(objectives)
    # Only the last front that has room is told apart by crowding; better ones are kept whole.
    counts = np.cumsum(np.bincount(rank))
    last = int(np.searchsorted(counts, n))
    room = np.zeros(len(objectives))
    for front in range(min(last, len(counts) - 1) + 1):
        members = np.flatnonzero(rank == front)
        room[members] = crowding(objectives[members])
    return np.lexsort((-room, rank))[:n]


def hypervolume(objectives: Objectives, reference: tuple[float, float]) -> float:
    """Return the area that points dominate below a reference; two objectives.

    >>> hypervolume(np.array([[0.0, 1.0], [1.0, 0.0], [3.0, 3.0]]), (2.0, 2.0))
    3.0
    """
    inside = objectives[(objectives < np.array(reference)).all(axis=1)]
    area, low = 0.0, reference[1]
    for first, second in inside[np.lexsort((inside[:, 1], inside[:, 0]))].tolist():
        if second < low:
            area += (reference[0] - first) * (low - second)
            low = second
    return area
