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
from search.costs import Costs
from search.space import Genes, Space

MEDIAN_OF_P99 = 0.5
MAX_SLOWDOWN = 1.4
"""Candidate against parent, of the medians; below what policies allow, so that noise does not decide."""


@dataclass(frozen=True)
class Bounds:
    """The limits of one search.

    Args:
        space: Of the genomes.
        limits: Of the brief.
        costs: Of this device.
        ceiling_ms: The highest median of the network alone.
        parent: (genes,) what distance is counted from; None at founding.
        int8: Whether a network may compute in it.
    """

    space: Space
    limits: Limits
    costs: Costs
    ceiling_ms: float
    parent: Genes | None
    int8: bool

    def violation(self, genes: Genes) -> NDArray[np.float64]:
        """Return by which share each row oversteps its worst limit; 0 where it meets all; (n,)."""
        worst = np.maximum(
            self.costs.params(genes) / self.limits.max_params,
            self.costs.size_bytes(genes) / self.limits.max_size_bytes,
        )
        worst = np.maximum(worst, self.costs.latency_ms(genes) / self.ceiling_ms)
        if self.parent is not None:
            # One more on both sides, so that a limit of zero still has a ratio.
            distance = self.space.distance(genes, self.parent)
            worst = np.maximum(worst, (distance + 1) / (self.limits.max_edit_distance + 1))
        if not self.int8:
            worst = np.where(self.space.quantised(genes), worst + 1, worst)
        return np.asarray(np.maximum(worst - 1, 0.0))


def median_ceiling_ms(limits: Limits, parent_ms: float | None, overhead_ms: float = 0.0) -> float:
    """Return the highest median latency that a winner's network may have.

    Args:
        limits: Of the brief.
        parent_ms: The parent's network alone.
        overhead_ms: What serving adds on the device.

    Raises:
        PermanentError: Serving alone takes more than the limit.

    >>> from policies.terms import Limits
    >>> limits = Limits(max_params=1, max_size_bytes=1, max_p99_ms=25.0, max_edit_distance=0)
    >>> median_ceiling_ms(limits, None), median_ceiling_ms(limits, 0.5)
    (12.5, 0.7)
    """
    ceiling = limits.max_p99_ms * MEDIAN_OF_P99 - overhead_ms
    if ceiling <= 0:
        raise PermanentError(
            f"expected room for a network within a median of {limits.max_p99_ms * MEDIAN_OF_P99:.3g} ms "
            f"(p99 {limits.max_p99_ms:g} ms), but serving alone takes {overhead_ms:.3g} ms by telemetry; "
            "widen max_p99_ms, or unburden the device"
        )
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
    costs, limits, row = bounds.costs, bounds.limits, genes[None]
    away = 0 if bounds.parent is None else int(bounds.space.distance(row, bounds.parent)[0])
    return (
        f"expected a genome of space {bounds.space.name} within {limits.max_params} parameters, "
        f"{limits.max_size_bytes} bytes, a median of {bounds.ceiling_ms:.3g} ms "
        f"(p99 {limits.max_p99_ms:g} ms) and {limits.max_edit_distance} genes of its parent; the nearest has "
        f"{costs.params(row)[0]:.0f} parameters, about {costs.size_bytes(row)[0]:.0f} bytes, "
        f"{costs.latency_ms(row)[0]:.3g} ms and {away} genes; widen the limits"
    )
