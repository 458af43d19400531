"""NSGA-II over integer genes, vectorised.

* The first question is the seeds, then random genomes.
* Children come from binary tournaments, uniform crossover and a mutation of about one and a half genes; a
  tenth are random immigrants, so that a seeded population cannot trap the search.
* Parents and children compete for the next generation; copies of a genome count once.

Source: Deb et al., A fast and elitist multiobjective genetic algorithm: NSGA-II (2002).
"""

import numpy as np

from search.pareto import Objectives, survivors
from search.space import Genes, Space

_IMMIGRANTS = 0.1
_CHANGED_GENES = 1.5
_POPULATION = 128


class Nsga2:
    """A population that keeps its best fronts."""

    def __init__(self, space: Space, rng: np.random.Generator, seeds: Genes, reference: Genes) -> None:
        self._space = space
        self._rng = rng
        self._reference = reference
        self._waiting = space.normal(seeds, reference)
        self._genes = np.empty((0, len(space.cardinalities)), dtype=np.int64)
        self._objectives = np.empty((0, 0))

    def ask(self, n: int) -> Genes:
        """Return seeds while there are any, then children of the population."""
        first, self._waiting = self._waiting[:n], self._waiting[n:]
        missing = n - len(first)
        bred = 0 if len(self._genes) == 0 else missing - int(np.ceil(_IMMIGRANTS * missing))
        strangers = self._space.sample(self._rng, missing - bred)
        asked = np.concatenate([first, self._children(bred), strangers])
        return self._space.normal(asked, self._reference)

    def tell(self, genes: Genes, objectives: Objectives) -> None:
        """Let parents and children compete."""
        if len(self._genes) == 0:
            self._objectives = np.empty((0, objectives.shape[1]))
        every = np.concatenate([self._space.normal(genes, self._reference), self._genes])
        scores = np.concatenate([objectives, self._objectives])
        # The newest answer about a genome comes first, and unique keeps the first.
        _, first = np.unique(self._space.names(every), return_index=True)
        first.sort()
        kept = first[survivors(scores[first], _POPULATION)]
        self._genes, self._objectives = every[kept], scores[kept]

    def _children(self, n: int) -> Genes:
        if n == 0:
            return self._genes[:0]
        # The population is in order of rank and room, so the smaller index wins a tournament.
        pairs = self._rng.integers(0, len(self._genes), (2, n, 2)).min(axis=2)
        children = self._space.cross(self._rng, self._genes[pairs[0]], self._genes[pairs[1]])
        return self._space.mutate(self._rng, children, _CHANGED_GENES / children.shape[1])
