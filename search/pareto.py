"""Who dominates whom: ranks and crowding of points whose objectives are all to be made small.

Source: Deb et al., A fast and elitist multiobjective genetic algorithm: NSGA-II (2002).
"""

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
    room = np.zeros(len(objectives))
    for front in np.unique(rank):
        members = np.flatnonzero(rank == front)
        room[members] = crowding(objectives[members])
    return np.lexsort((-room, rank))[:n]
