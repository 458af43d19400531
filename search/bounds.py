"""What a genome must meet, as one number: how far it is from meeting it.

* Parameters and edit distance are exact; the file's size and the latency are estimates here, and are checked
  on the exported file before a winner is named.
* ``Limits.max_p99_ms`` speaks of a tail on the serving device; a search measures medians, and asks for half
  of it.
* A genome that is much slower than the parent is out, too: the guards compare medians with the incumbent.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from policies.errors import PermanentError
from policies.terms import Limits
from search.latency import Latency
from search.space import Genes, Space

MEDIAN_OF_P99 = 0.5
MAX_SLOWDOWN = 1.4
"""Candidate against parent, of the medians; below what policies allow, so that noise does not decide."""

_BYTES_A_PARAM = 4
_BYTES_BESIDE = 45_000
"""Graph, metadata and goldens of a bundle."""


@dataclass(frozen=True)
class Bounds:
    """The limits of one search."""

    space: Space
    limits: Limits
    latency: Latency
    ceiling_ms: float
    parent: Genes | None

    def violation(self, genes: Genes) -> NDArray[np.float64]:
        """Return by which share each row oversteps its worst limit; 0 where it meets all; (n,)."""
        blueprints = [self.space.blueprint(row) for row in genes]
        params = np.array([blueprint.params for blueprint in blueprints], dtype=np.float64)
        latency = np.array([self.latency.predict_ms(blueprint) for blueprint in blueprints])
        ratios = [
            params / self.limits.max_params,
            (params * _BYTES_A_PARAM + _BYTES_BESIDE) / self.limits.max_size_bytes,
            latency / self.ceiling_ms,
        ]
        if self.parent is not None:
            # One more on both sides, so that a limit of zero still has a ratio.
            ratios.append((self.space.distance(genes, self.parent) + 1) / (self.limits.max_edit_distance + 1))
        return np.asarray(np.maximum(np.max(ratios, axis=0) - 1, 0.0))


def median_ceiling_ms(limits: Limits, parent_ms: float | None) -> float:
    """Return the highest median latency that a winner may have.

    >>> from policies.terms import Limits
    >>> limits = Limits(max_params=1, max_size_bytes=1, max_p99_ms=25.0, max_edit_distance=0)
    >>> median_ceiling_ms(limits, None), median_ceiling_ms(limits, 0.5)
    (12.5, 0.7)
    """
    ceiling = limits.max_p99_ms * MEDIAN_OF_P99
    return ceiling if parent_ms is None else min(ceiling, parent_ms * MAX_SLOWDOWN)


def nearest(bounds: Bounds) -> Genes:
    """Return a genome that meets all limits, found by greedy steps towards the cheap end.

    Starts at the smallest genome, or at the parent where there is one, and changes one gene at a time.

    Raises:
        PermanentError: There is none on that way.
    """
    space = bounds.space
    genes = space.smallest if bounds.parent is None else bounds.parent
    while True:
        worst = float(bounds.violation(genes[None])[0])
        if worst == 0.0:
            return genes
        steps = _one_gene_away(space, genes)
        violations = bounds.violation(steps)
        best = int(violations.argmin())
        if violations[best] >= worst:
            raise PermanentError(_why(bounds, genes))
        genes = steps[best]


def _one_gene_away(space: Space, genes: Genes) -> Genes:
    rows = []
    for index, count in enumerate(space.cardinalities):
        for value in range(count):
            if value != genes[index]:
                row = genes.copy()
                row[index] = value
                rows.append(row)
    return np.stack(rows)


def _why(bounds: Bounds, genes: Genes) -> str:
    blueprint = bounds.space.blueprint(genes)
    limits = bounds.limits
    away = 0 if bounds.parent is None else int(bounds.space.distance(genes[None], bounds.parent)[0])
    return (
        f"expected a genome of space {bounds.space.name} within {limits.max_params} parameters, "
        f"{limits.max_size_bytes} bytes, a median of {bounds.ceiling_ms:.3g} ms "
        f"(p99 {limits.max_p99_ms:g} ms) and {limits.max_edit_distance} genes of its parent; the nearest has "
        f"{blueprint.params} parameters, about {blueprint.params * _BYTES_A_PARAM + _BYTES_BESIDE} bytes, "
        f"{bounds.latency.predict_ms(blueprint):.3g} ms and {away} genes; widen the limits"
    )
