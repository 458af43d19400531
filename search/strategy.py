"""The contract of a strategy: it proposes genomes and learns what they are worth.

Strategies do not know what an objective means; they make all of them small. A third party may add one under
the entry-point group ``instar.strategies``. The same space, rng state and answers give the same questions.
"""

from typing import Protocol

import numpy as np

from search.pareto import Objectives
from search.space import Genes, Space


class Strategy(Protocol):
    """Asks and is told."""

    def ask(self, n: int) -> Genes:
        """Return ``n`` legal genomes to look at; (n, genes)."""
        ...

    def tell(self, genes: Genes, objectives: Objectives) -> None:
        """Learn the objectives (n, m), all to be made small, of genomes (n, genes)."""
        ...


class StrategyFactory(Protocol):
    """Makes a strategy for one search."""

    def __call__(self, space: Space, rng: np.random.Generator, seeds: Genes, reference: Genes) -> Strategy:
        """Return a strategy.

        Args:
            space: What it searches.
            rng: Its only source of randomness.
            seeds: (k, genes) genomes to begin with; may be empty.
            reference: (genes,) what inactive genes are set to.
        """
        ...
