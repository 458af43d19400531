"""The rate limiter on self-modification: how often and how far a system may change itself."""

from collections.abc import Iterable

from policies.clauses import Policy
from policies.status import Swap
from policies.terms import Genome, TriggerKind
from policies.world import Candidate, Kind, Spent, World

DAY_S = 86_400.0


def edit_distance(one: Genome, other: Genome) -> int:
    """Return in how many genes two genomes of one space differ.

    Raises:
        ValueError: They are of different spaces or lengths.

    >>> edit_distance(Genome(space="image", genes=(1, 2, 3)), Genome(space="image", genes=(1, 0, 0)))
    2
    """
    if one.space != other.space or len(one.genes) != len(other.genes):
        raise ValueError(f"expected two genomes of one space, got {one.space} and {other.space}")
    return sum(a != b for a, b in zip(one.genes, other.genes, strict=True))


def swaps_today(swaps: Iterable[Swap], now: float) -> int:
    """Return how many adaptations went live in the last 24 hours."""
    return sum(1 for swap in swaps if now - swap.at < DAY_S and swap.kind == Kind.ADAPTATION)


def spent_today(spent: Iterable[Spent], now: float) -> float:
    """Return the CPU-seconds of adaptation searches in the last 24 hours."""
    adaptations = (one for one in spent if one.kind is not TriggerKind.FOUNDING)
    return sum(one.cpu_s for one in adaptations if now - one.at < DAY_S)


def pace(world: World, policy: Policy, now: float) -> str | None:
    """Return why one more swap is not allowed now, or None."""
    clause = policy.description_of_modifications.pace
    count = swaps_today(world.swaps, now)
    if count >= clause.swaps_per_day:
        return f"{count} swaps in 24 h, allowed {clause.swaps_per_day} ({clause.clause})"
    last = max((swap.at for swap in world.swaps), default=None)
    if last is not None and now - last < clause.min_gap_s:
        wait = clause.min_gap_s - (now - last)
        return f"{wait:.0f} s left of the {clause.min_gap_s:.0f} s between two swaps ({clause.clause})"
    return None


def distance(candidate: Candidate, policy: Policy) -> str | None:
    """Return how a candidate changes more than the policy contemplates, or None."""
    if candidate.kind is not Kind.ADAPTATION:
        return None
    clause = policy.description_of_modifications.architecture
    if candidate.genome.space not in clause.spaces:
        return f"space {candidate.genome.space} is not among {', '.join(clause.spaces)} ({clause.clause})"
    for label, value, limit in (
        ("incumbent", candidate.incumbent_distance, clause.max_edit_distance),
        ("baseline", candidate.baseline_distance, clause.max_edit_distance_baseline),
    ):
        if value > limit:
            return f"{value} genes differ from the {label}, allowed {limit} ({clause.clause})"
    return None


def budget(world: World, policy: Policy, now: float) -> str | None:
    """Return why no further search may be paid today, or None."""
    clause = policy.modification_protocol.search
    spent = spent_today(world.spent, now)
    if spent + clause.budget_cpu_s > clause.budget_cpu_s_per_day:
        return (
            f"{spent:.0f} CPU-s spent in 24 h and {clause.budget_cpu_s:.0f} needed, "
            f"allowed {clause.budget_cpu_s_per_day:.0f} ({clause.clause})"
        )
    return None
