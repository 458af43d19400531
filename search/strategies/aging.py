"""Regularised evolution: the oldest dies, not the worst.

* A tournament among a few of the living picks the parent; a child changes about one and a half genes of it.
* With several objectives the tournament is won by rank, then by room.

Source: Real et al., Regularized evolution for image classifier architecture search (2019).
"""

import numpy as np

from search.pareto import Objectives, survivors
from search.space import Genes, Space

_POPULATION = 64
_TOURNAMENT = 8
_CHANGED_GENES = 1.5


class Aging:
    """A queue of the living, the oldest first."""

    def __init__(self, space: Space, rng: np.random.Generator, seeds: Genes, reference: Genes) -> None:
        self._space = space
        self._rng = rng
        self._reference = reference
        self._waiting = space.normal(seeds, reference)
        self._genes = np.empty((0, len(space.cardinalities)), dtype=np.int64)
        self._objectives = np.empty((0, 0))

    def ask(self, n: int) -> Genes:
        """Return seeds while there are any, strangers until the population is full, then children."""
        first, self._waiting = self._waiting[:n], self._waiting[n:]
        missing = n - len(first)
        young = len(self._genes) < _POPULATION
        rest = self._space.sample(self._rng, missing) if young else self._children(missing)
        return self._space.normal(np.concatenate([first, rest]), self._reference)

    def tell(self, genes: Genes, objectives: Objectives) -> None:
        """Let the newcomers in and the oldest go."""
        if len(self._genes) == 0:
            self._objectives = np.empty((0, objectives.shape[1]))
        self._genes = np.concatenate([self._genes, self._space.normal(genes, self._reference)])[-_POPULATION:]
        self._objectives = np.concatenate([self._objectives, objectives])[-_POPULATION:]

    def _children(self, n: int) -> Genes:
        place = np.empty(len(self._genes), dtype=np.int64)
        place[survivors(self._objectives, len(self._genes))] = np.arange(len(self._genes))
        drawn = self._rng.integers(0, len(self._genes), (n, _TOURNAMENT))
        best = drawn[np.arange(n), place[drawn].argmin(axis=1)]
        return self._space.mutate(self._rng, self._genes[best], _CHANGED_GENES / self._genes.shape[1])
