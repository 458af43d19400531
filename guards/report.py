"""The report: everything a person needs to say yes or no, as one frozen fact.

* ``report.html`` and ``report.json`` are made of this same object; neither says more than the other.
* The order is that of the decision: what is recommended, the strongest argument against it, what happens if
  nobody acts; then why, what changed, what it is worth, what was checked, and where it all comes from.
* The strongest argument is chosen by rule, not by taste: what failed, else the guard whose allowance is used
  up most.
* No sample and no label is in it: user data stay where they are.

Called by the panel's command after the guards have spoken.
"""

from collections.abc import Sequence
from typing import Literal

from guards.contract import USED
from guards.floor import CLASS as ACCURACY_OF
from guards.portrait import LayerRow, gene_changes, side_by_side
from guards.slices import CLASS as DIFFERENCE_OF
from guards.slices import DETECTABLE
from guards.weights import Layer
from policies.case import Case
from policies.clearance import clear
from policies.terms import Digest, Evidence, Finding, Genome, Name, Point, Task, Term, Trigger, Verdict

_MOST_POINTS = 400
_RUNNERS_UP = 5


class Against(Term):
    """The strongest argument against the recommendation's yes."""

    guard: Name
    clause: str
    used: float | None
    reason: str


class Measured(Term):
    """A number of the accuracy table."""

    label: str
    rows: str
    evidence: Evidence


class Slice(Term):
    """One class in the forest plot: a difference to the incumbent, or at founding an accuracy."""

    name: str
    evidence: Evidence
    detectable: float | None


class Resource(Term):
    """One bar: what is used of what is allowed, and what the incumbent uses."""

    name: str
    value: float
    unit: str
    limit: float
    incumbent: float | None


class Source(Term):
    """Where something comes from."""

    label: str
    digest: Digest


class Distance(Term):
    """How far the candidate is from another network, in genes."""

    label: str
    genes: int
    limit: int
    clause: str


class Report(Term):
    """Everything that the page shows."""

    format: Literal[1]
    candidate: Name
    task: Task
    founding: bool
    demo_key: bool
    recommendation: Literal["approve", "reject"]
    grounds: str
    against: Against
    otherwise: str
    approvers: tuple[str, ...]
    quorum: int
    window_s: float
    approval_clause: str
    trigger: Trigger
    genome: Genome
    incumbent_genome: Genome | None
    genes: tuple[str, ...]
    distances: tuple[Distance, ...]
    layers: tuple[LayerRow, ...]
    accuracy: tuple[Measured, ...]
    differences: tuple[Measured, ...]
    slices: tuple[Slice, ...]
    slice_limit: float
    resources: tuple[Resource, ...]
    points: tuple[Point, ...]
    verdicts: tuple[Verdict, ...]
    sources: tuple[Source, ...]
    search_cpu_s: float
    architectures: int
    versions: dict[str, str]
    commands: tuple[str, ...]


def make(
    case: Case, verdicts: tuple[Verdict, ...], layers: Sequence[Layer], incumbent_layers: Sequence[Layer]
) -> Report:
    """Return the report of one case.

    Args:
        case: What was judged.
        verdicts: Of all required guards.
        layers: Of the candidate's graph; none when it was refused.
        incumbent_layers: Of the incumbent's graph; none at founding.
    """
    protocol = case.policy.modification_protocol
    clearance = clear(verdicts, protocol.evaluation.panel, founding=case.founding)
    cleared = clearance.outcome == "cleared"
    before = incumbent_layers if not case.founding else layers
    return Report(
        format=1,
        candidate=case.candidate,
        task=case.task,
        founding=case.founding,
        demo_key=case.demo_key,
        recommendation="approve" if cleared else "reject",
        grounds=clearance.reason,
        against=strongest_against(verdicts),
        otherwise=_otherwise(case, verdicts, cleared),
        approvers=protocol.approval.approvers,
        quorum=protocol.approval.quorum,
        window_s=protocol.approval.window_s,
        approval_clause=protocol.approval.clause,
        trigger=case.trigger,
        genome=case.genome,
        incumbent_genome=case.incumbent_genome,
        genes=() if case.incumbent_genome is None else gene_changes(case.incumbent_genome, case.genome),
        distances=_distances(case),
        layers=side_by_side(before, layers),
        accuracy=_accuracy(case, verdicts),
        differences=_differences(verdicts),
        slices=_slices(case, verdicts),
        slice_limit=protocol.evaluation.floor.min_accuracy if case.founding else 0.0,
        resources=_resources(verdicts),
        points=_points(case),
        verdicts=verdicts,
        sources=_sources(case),
        search_cpu_s=case.search.cpu_s,
        architectures=case.search.architectures,
        versions=case.search.versions,
        commands=_commands(case, cleared),
    )


def strongest_against(verdicts: Sequence[Verdict]) -> Against:
    """Return the verdict that speaks loudest against a yes; there must be one verdict.

    A fail speaks louder than an inconclusive one, that louder than a pass; among equals, who used up more.
    """
    rank = {Finding.FAIL: 2, Finding.INCONCLUSIVE: 1, Finding.PASS: 0}
    loudest = max(verdicts, key=lambda v: (rank[v.finding], used_of(v) or 0.0))
    return Against(guard=loudest.guard, clause=loudest.clause, used=used_of(loudest), reason=loudest.reason)


def used_of(verdict: Verdict) -> float | None:
    """Return the share of its allowance that a candidate used up, where the guard says it."""
    found = [e.value for e in verdict.evidence if e.name == USED]
    return found[0] if found else None


def runners_up(case: Case) -> tuple[Point, ...]:
    """Return the most accurate points that were measured and did not win."""
    others = [p for p in case.search.points if p.measured and p.genome != case.genome]
    others.sort(key=lambda p: (-p.accuracy, p.latency_ms, p.genome.genes))
    return tuple(others[:_RUNNERS_UP])


def _find(verdicts: Sequence[Verdict], guard: str, name: str) -> Evidence | None:
    for verdict in verdicts:
        if verdict.guard == guard:
            for evidence in verdict.evidence:
                if evidence.name == name:
                    return evidence
    return None


def _otherwise(case: Case, verdicts: Sequence[Verdict], cleared: bool) -> str:
    if case.founding:
        stays = "Nothing is served: there is no model yet."
    else:
        now = _find(verdicts, "incumbent", "incumbent accuracy")
        known = "" if now is None else f", right on {now.value:.1%} of the rows since the change (n={now.n})"
        stays = f"The present model goes on serving{known}."
    if not cleared:
        return f"{stays} The candidate is rejected; nobody can approve it over a guard's no."
    hours = case.policy.modification_protocol.approval.window_s / 3600
    return f"{stays} The candidate expires after {hours:g} h without a decision."


def _distances(case: Case) -> tuple[Distance, ...]:
    if case.founding:
        return ()
    limit = case.policy.description_of_modifications.architecture
    pairs = (
        ("incumbent", case.incumbent_distance, limit.max_edit_distance),
        ("baseline", case.baseline_distance, limit.max_edit_distance_baseline),
    )
    return tuple(Distance(label=a, genes=b, limit=c, clause=limit.clause) for a, b, c in pairs)


def _accuracy(case: Case, verdicts: Sequence[Verdict]) -> tuple[Measured, ...]:
    new, old = "founding data" if case.founding else "since the change", "before the change"
    wanted = (
        ("candidate", new, "floor", "accuracy"),
        ("incumbent", new, "incumbent", "incumbent accuracy"),
        ("baseline", new, "baseline", "baseline accuracy"),
        ("candidate", old, "retention", "accuracy"),
        ("baseline", old, "retention", "baseline accuracy"),
    )
    found = ((label, rows, _find(verdicts, guard, name)) for label, rows, guard, name in wanted)
    return tuple(Measured(label=a, rows=b, evidence=e) for a, b, e in found if e is not None)


def _differences(verdicts: Sequence[Verdict]) -> tuple[Measured, ...]:
    wanted = (
        ("incumbent", "against the incumbent, since the change"),
        ("baseline", "against the baseline, since the change"),
        ("retention", "against the baseline, before the change"),
    )
    found = ((guard, rows, _find(verdicts, guard, "difference")) for guard, rows in wanted)
    return tuple(Measured(label=a, rows=b, evidence=e) for a, b, e in found if e is not None)


def _slices(case: Case, verdicts: Sequence[Verdict]) -> tuple[Slice, ...]:
    guard, pattern = ("floor", ACCURACY_OF) if case.founding else ("slices", DIFFERENCE_OF)
    found = []
    for name in case.task.classes:
        evidence = _find(verdicts, guard, pattern.format(name))
        drop = _find(verdicts, guard, DETECTABLE.format(name))
        if evidence is not None:
            found.append(Slice(name=name, evidence=evidence, detectable=None if drop is None else drop.value))
    return tuple(found)


def _resources(verdicts: Sequence[Verdict]) -> tuple[Resource, ...]:
    wanted = (
        ("parameters", "constraints", "params", None),
        ("file size", "constraints", "size", None),
        ("p99, one row", "latency", "p99", "incumbent p99"),
        ("median against incumbent", "latency", "ratio", None),
    )
    found = []
    for label, guard, name, other in wanted:
        mine = _find(verdicts, guard, name)
        theirs = None if other is None else _find(verdicts, guard, other)
        if mine is not None and mine.limit is not None:
            found.append(
                Resource(
                    name=label,
                    value=mine.value,
                    unit=mine.unit,
                    limit=mine.limit,
                    incumbent=None if theirs is None else theirs.value,
                )
            )
    return tuple(found)


def _points(case: Case) -> tuple[Point, ...]:
    """Return the points to draw: all that were measured first, then predictions, up to a bound."""
    points = sorted(case.search.points, key=lambda p: (p.genome != case.genome, not p.measured))
    return tuple(points[:_MOST_POINTS])


def _sources(case: Case) -> tuple[Source, ...]:
    files = (
        ("candidate bundle", case.bundle),
        ("incumbent bundle", case.incumbent),
        ("baseline bundle", case.baseline),
        ("gate rows", case.gate),
        ("recorded traffic", case.traffic),
    )
    found = [Source(label=label, digest=file.digest) for label, file in files if file is not None]
    return (*found, Source(label="policy", digest=case.policy_digest))


def _commands(case: Case, cleared: bool) -> tuple[str, ...]:
    if not cleared:
        return ()
    return tuple(f'instar {verb} {case.candidate} --key KEY --reason "…"' for verb in ("approve", "decline"))
