"""How a search begins: the device's profile, the prices and limits that follow from it, the net, the record.

* A profile that the brief or the archive brings is taken as it is; else the device is measured. A search for
  latency takes the archive's blocks, but times whole networks anew: it is called because the device has
  changed.
* A search that goes on takes profile, record and cuts from its checkpoint.
"""

from collections.abc import Callable
from dataclasses import astuple

from policies.terms import TriggerKind
from search.admission import Admission, Parent
from search.bounds import Bounds, median_ceiling_ms
from search.budget import Budget
from search.checkpoint import Kept
from search.costs import Costs
from search.crew import Crew
from search.desk import Desk, Record, Tools
from search.pace import pace
from search.profile import Profile, measure, refitted
from search.progress import Progress
from search.supernet import Supernet

_FASTER = 0.9
"""A search for latency must find less than this share of the parent's median."""


def open_desk(
    admission: Admission,
    tools: Tools,
    crew: Crew,
    progress: Progress,
    cpu_s: Callable[[], float],
    kept: Kept | None,
) -> Desk:
    """Return the desk of a search.

    Args:
        admission: The brief with all that it names.
        tools: Clocks and strategy.
        crew: To compute with.
        progress: Told while the device is measured.
        cpu_s: CPU-seconds of the search, those before a restart included.
        kept: The checkpoint that it goes on from.

    Raises:
        PermanentError: Serving alone takes more than the latency limit.
    """
    brief, space, parent = admission.brief, admission.space, admission.parent
    costs = _costs(admission, _profile(admission, tools, progress, kept))
    net = Supernet(space.shapes(), space.entries()[0], brief.seed)
    if parent is None:
        net.standardise(admission.data.train_new.x)
    else:
        net.load(parent.state)
    record, budget = Record(), Budget(brief.budget_cpu_s, cpu_s)
    if kept is not None:
        record = Record(list(kept.evidence), kept.old_before, kept.mix, kept.centres)
        budget.cut += kept.cut
    bounds = _bounds(admission, parent, costs)
    return Desk(admission, tools, net, costs, bounds, budget, progress, crew, record)


def _profile(admission: Admission, tools: Tools, progress: Progress, kept: Kept | None) -> Profile:
    known = admission.profile if kept is None else kept.profile
    brief, space = admission.brief, admission.space
    # One that was measured while int8 was not allowed says nothing of it.
    if known is not None and (known.int8_line is not None or len(brief.precisions) == 1):
        if brief.kind is not TriggerKind.LATENCY or kept is not None or brief.profile is not None:
            return known
        progress.report("profile", 0, 1, "profile: timing whole networks on this device as it is today")
        return refitted(known, space, tools.clock, brief.seed)
    progress.report("profile", 0, 1, "profile: timing blocks, networks and training on this device")

    def report(done: int, total: int) -> None:
        progress.report("profile", done, total, f"profile: block {done} of {total}")

    # The pace counts CPU time of this process; threads of the crew are idle here.
    found = pace(space, brief.task.augmentation, tools.cpu, brief.seed)
    return measure(space, tools.clock, astuple(found), brief.seed, report)


def _costs(admission: Admission, profile: Profile) -> Costs:
    brief, parent = admission.brief, admission.parent
    costs = Costs(admission.space, profile)
    if parent is None or brief.served_p50_ms is None:
        return costs
    alone = float(costs.latency_ms(parent.genes[None])[0])
    return Costs(admission.space, profile, max(0.0, brief.served_p50_ms - alone))


def _bounds(admission: Admission, parent: Parent | None, costs: Costs) -> Bounds:
    brief, space = admission.brief, admission.space
    int8 = len(brief.precisions) > 1
    if parent is None:
        return Bounds(space, brief.limits, costs, median_ceiling_ms(brief.limits, None), None, int8)
    parent_ms = float(costs.latency_ms(parent.genes[None])[0])
    ceiling = median_ceiling_ms(brief.limits, None if brief.moved else parent_ms, costs.overhead_ms)
    if brief.kind is TriggerKind.LATENCY and not brief.moved:
        ceiling = min(ceiling, _FASTER * parent_ms)
    return Bounds(space, brief.limits, costs, ceiling, parent.genes, int8)
