"""Who wins among finalists, and what is said of it.

* Only a finalist whose exported file meets the limits can win.
* Best accuracy on new rows wins; accuracy lost on old rows beyond a small allowance counts against it by
  half; a small price on latency breaks ties.
* The evidence says how much the choice may flatter: ``winners_curse`` and ``tau_top``.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy.stats import kendalltau

from policies.terms import Brief, Evidence, Point
from search.costs import Costs
from search.exam import Marks, winners_curse
from search.exits import Leaving
from search.explore import Look, beliefs
from search.export import Subnet
from search.pareto import ranks
from search.space import Space, to_genome

OLD_ALLOWANCE = 0.02
_FEWEST_RANKED = 8
_OLD_WEIGHT = 0.5
_LATENCY_WEIGHT = 0.005
_Z95 = 1.959964


@dataclass(frozen=True)
class Finalist:
    """A genome with its exported file, the subnet it was exported from, and its way out, if it has one."""

    look: Look
    marks: Marks
    bundle: bytes
    measured_ms: float
    distance: int
    tuned: bool
    subnet: Subnet
    leaving: Leaving | None = None

    @property
    def more_params(self) -> int:
        """Return the numbers that it ships beside its network's own."""
        return 0 if self.leaving is None else sum(part.size for part in self.leaving.way.pair)


def score(latency_ms: float, marks: Marks, old_before: float | None, scale_ms: float) -> float:
    """Return what a winner has most of.

    Args:
        latency_ms: From the profile: a measured one would let noise break ties.
        marks: Of the exam.
        old_before: Accuracy on old rows that the parent had, in [0, 1]; None without old rows.
        scale_ms: A latency that costs the whole price.
    """
    lost = 0.0
    if old_before is not None and marks.accuracy_old is not None:
        lost = max(0.0, old_before - OLD_ALLOWANCE - marks.accuracy_old)
    accuracy = marks.accuracy if len(marks.new) else 0.0
    return accuracy - _OLD_WEIGHT * lost - _LATENCY_WEIGHT * latency_ms / scale_ms


def wilson(right: int, n: int) -> tuple[float, float]:
    """Return the 95 % interval of a share.

    Source: Wilson, Probable inference (1927).

    >>> [round(end, 4) for end in wilson(95, 100)]
    [0.8882, 0.9785]
    """
    share, z2 = right / n, _Z95**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z95 * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    # Rounding must not leave the share outside its own interval.
    return min(share, centre - half), max(share, centre + half)


def evidence_of(
    winner: Finalist, finalists: list[Finalist], looks: list[Look], costs: Costs, brief: Brief
) -> list[Evidence]:
    """Return the numbers that go with a winner."""
    marks, limits, genes = winner.marks, brief.limits, winner.look.genes[None]
    n = len(marks.new)
    found = [
        Evidence(name="latency_ms", value=winner.measured_ms, unit="ms", n=1, limit=limits.max_p99_ms),
        Evidence(name="latency_predicted_ms", value=winner.look.latency_ms, unit="ms", n=1),
        _count("params", costs.params(genes)[0] + winner.more_params, "parameters", limits.max_params),
        _count("macs", costs.macs(genes)[0], "multiply-accumulates", None),
        _count("size_bytes", len(winner.bundle), "bytes", limits.max_size_bytes),
        _count("memory_bytes", costs.memory_bytes(genes)[0], "bytes", None),
        Evidence(name="energy_mj", value=float(costs.energy_mj(genes)[0]), unit="mJ", n=1),
        _count("edit_distance", winner.distance, "genes", limits.max_edit_distance),
    ]
    if n:
        found.append(accuracy_evidence("accuracy_search", marks.new))
        found.append(_count("tuned", winner.tuned, "yes or no", None))
    if len(marks.old):
        found.append(accuracy_evidence("accuracy_old", marks.old))
    if winner.leaving is not None:
        found += winner.leaving.evidence()
    if len(finalists) > 1 and n:
        right = np.stack([finalist.marks.new for finalist in finalists])
        rng = np.random.default_rng([brief.seed, 13])
        found.append(Evidence(name="winners_curse", value=winners_curse(right, rng), unit="share", n=n))
    return found + tau_top(looks)


def accuracy_evidence(name: str, right: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> Evidence:
    """Return a share of right rows with its interval."""
    n = len(right)
    return Evidence(
        name=name,
        value=float(right.mean()),
        unit="share",
        n=n,
        interval=wilson(int(right.sum()), n),
    )


def tau_top(looks: list[Look]) -> list[Evidence]:
    """Return Kendall's tau of guess against exam: among the best tenth of the guessed, and among all of them.

    A tenth of few is too few to say anything; the best eight stand in then, and ``n`` says so.

    Returns:
        Nothing where fewer than four were guessed, or all are tied: unknown is not zero.
    """
    guessed = sorted(
        (look for look in looks if look.predicted is not None),
        key=lambda look: look.marks.accuracy,
        reverse=True,
    )
    best = guessed[: max(_FEWEST_RANKED, len(guessed) // 10)]
    found = []
    for name, some in (("tau_top", best), ("tau", guessed)):
        if len(some) < 4:
            continue
        tau = float(
            kendalltau([one.predicted for one in some], [one.marks.accuracy for one in some]).statistic
        )
        if not math.isnan(tau):
            found.append(Evidence(name=name, value=tau, unit="tau", n=len(some)))
    return found


def points(
    space: Space,
    costs: Costs,
    looks: list[Look],
    finalists: list[Finalist],
    winner: Finalist,
    seed: int,
) -> tuple[Point, ...]:
    """Return the front of all that was examined, and the finalists; best accuracy first.

    Which look lies on the front is decided by what is believed of it; what is said of it is what was
    measured.
    """
    errors = 1 - beliefs(space, looks, seed)
    objectives = np.column_stack([errors, [look.latency_ms for look in looks]])
    front = [look for look, rank in zip(looks, ranks(objectives), strict=True) if rank == 0]
    # A tuned finalist that did not win is not in the weights that are left: its marks would promise too much.
    final = {one.look.genes.tobytes(): one.marks for one in finalists if not one.tuned or one is winner}
    chosen = {look.genes.tobytes(): look for look in [*front, *(one.look for one in finalists)]}
    found = [
        Point(
            genome=to_genome(space, look.genes),
            accuracy=final.get(name, look.marks).accuracy,
            latency_ms=round(look.latency_ms, 5),
            params=int(costs.params(look.genes[None])[0]),
            measured=True,
        )
        for name, look in chosen.items()
    ]
    return tuple(sorted(found, key=lambda point: (-point.accuracy, point.latency_ms)))


def story(winner: Finalist, costs: Costs) -> str:
    """Return a winner in a line, for people."""
    genes = "".join(str(gene) for gene in winner.look.genes)
    marks = winner.marks
    accuracy = f"accuracy {marks.accuracy:.4f} on {len(marks.new)} rows" if len(marks.new) else "no labels"
    leaves = "" if winner.leaving is None else f", {winner.leaving.share:.0%} of rows leave early"
    return (
        f"winner {genes}  {accuracy}, {winner.measured_ms:.3f} ms, "
        f"{costs.params(winner.look.genes[None])[0]:.0f} parameters, {len(winner.bundle)} bytes{leaves}"
    )


def _count(name: str, value: float, unit: str, limit: int | None) -> Evidence:
    return Evidence(
        name=name, value=float(value), unit=unit, n=1, limit=None if limit is None else float(limit)
    )
