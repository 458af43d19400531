"""An additive table of two objectives, which costs next to nothing to look up.

What the engines are given when only their own cost is measured: an error and a latency, each the sum of one
entry a gene. It says nothing about how well an engine finds good architectures.
"""

import numpy as np
from numpy.typing import NDArray


class Additive:
    """Error and latency by table; both are to be minimised.

    Args:
        genes: Number of genes.
        choices: Number of values of each gene.
        seed: Of the table.
    """

    def __init__(self, genes: int, choices: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self._places = np.arange(genes)
        # A dearer choice is on the whole a better one, so that the two objectives are at odds.
        dear = np.sort(rng.uniform(0.1, 1.0, (genes, choices)), axis=1)
        gain = np.sort(rng.uniform(0.0, 0.02, (genes, choices)), axis=1)
        self._entries = np.stack([1.0 / genes - gain, dear], axis=-1)

    def objectives(self, genes: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return (n, 2) error in [0, 1] and latency in ms of (n, genes) int64."""
        return self._entries[self._places, genes].sum(axis=1)
