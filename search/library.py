"""Earlier regimes, tried before anything is learned anew: a regime that returns costs seconds.

* An heirloom is a genome and the supernet in which it was good. Its batch norms are calibrated on today's
  rows, and it is examined like any other.
* It is taken when it does nearly as well as it did in its own time, and better than the parent does today.
  Else the search goes on as if there were no library.
* One that the limits do not allow is passed over.
"""

from dataclasses import dataclass

from policies.terms import Evidence
from search import adapting
from search.admission import Ancestor
from search.choice import accuracy_evidence
from search.desk import Desk
from search.exam import Marks, clearly_better
from search.explore import Look
from search.supernet import Supernet

_AS_GOOD = 0.02
"""By how much an heirloom may do worse than in its own time."""


@dataclass(frozen=True)
class Returned:
    """A regime that is back."""

    desk: Desk
    look: Look
    generation: int


def returned(desk: Desk, parent: Marks) -> Returned | None:
    """Return the first heirloom that fits today's rows.

    Args:
        desk: Of the search.
        parent: How the parent does on today's rows.
    """
    report = desk.reporter("library")
    for done, ancestor in enumerate(desk.admission.library):
        report(done, len(desk.admission.library), f"library: generation {ancestor.generation}")
        genes = desk.space.normal(ancestor.genes[None], desk.parent.genes)
        if desk.bounds.violation(genes)[0] > 0:
            continue
        theirs = _desk_of(desk, ancestor)
        # The mix that suits the parent may mislead the norms of a net that knows today's rows.
        marks = adapting.examined(theirs, genes[0])
        desk.record.evidence.append(_told(ancestor, marks))
        if marks.accuracy >= ancestor.accuracy - _AS_GOOD and clearly_better(marks, parent):
            look = Look(genes[0], marks, float(desk.costs.latency_ms(genes)[0]), None)
            return Returned(theirs, look, ancestor.generation)
    return None


def _desk_of(desk: Desk, ancestor: Ancestor) -> Desk:
    net = Supernet(desk.space.shapes(), desk.entry, desk.brief.seed)
    net.load(ancestor.state)
    return desk.with_net(net)


def _told(ancestor: Ancestor, marks: Marks) -> Evidence:
    return accuracy_evidence(f"accuracy_generation_{ancestor.generation}", marks.new)
