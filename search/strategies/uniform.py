"""Random search: the baseline that every other strategy must beat."""

import numpy as np

from search.pareto import Objectives
from search.space import Genes, Space


class Uniform:
    """Asks for its seeds, then for genomes drawn evenly; learns nothing."""

    def __init__(self, space: Space, rng: np.random.Generator, seeds: Genes, reference: Genes) -> None:
        self._space = space
        self._rng = rng
        self._seeds = space.normal(seeds, reference)
        self._reference = reference

    def ask(self, n: int) -> Genes:
        """Return the seeds that are left, then random genomes."""
        first, self._seeds = self._seeds[:n], self._seeds[n:]
        rest = self._space.sample(self._rng, n - len(first))
        return np.concatenate([first, self._space.normal(rest, self._reference)])

    def tell(self, genes: Genes, objectives: Objectives) -> None:
        """Ignore the answer."""
