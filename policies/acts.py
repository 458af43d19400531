"""What a turn may do: one fact an act, performed and journalled by ``daemon/control``.

An act is idempotent by its candidate and digest: performed twice, it is performed once.
"""

from policies.lifecycle import Stage
from policies.terms import Name, Term, Trigger


class OpenTrigger(Term):
    """Record why a search is wanted."""

    trigger: Trigger


class LapseTrigger(Term):
    """Its cause went away before a search began."""

    trigger: Name
    reason: str


class StartSearch(Term):
    """Give the trigger's search a worker."""

    trigger: Trigger


class AdoptSearch(Term):
    """Take a finished search's winner in as a candidate, and charge the budget."""

    job: Name


class CloseSearch(Term):
    """Charge a search that failed; the incumbent stays."""

    job: Name
    reason: str


class Export(Term):
    """Take the candidate's bundle into the blob store, under its digest."""

    candidate: Name


class Judge(Term):
    """Give the candidate's case a guard worker."""

    candidate: Name


class Seal(Term):
    """Seal the dossier, and clear or reject."""

    candidate: Name


class Move(Term):
    """Move a candidate with nothing else to do."""

    candidate: Name
    to: Stage
    reason: str


class StageSlot(Term):
    """Load the candidate in the data plane, with no traffic yet."""

    candidate: Name
    generation: int


class StartShadow(Term):
    """Give the newcomer a worker that runs it beside the traffic."""

    candidate: Name


class SealShadow(Term):
    """Record what a shadow came to."""

    candidate: Name


class EndShadow(Term):
    """Abandon a newcomer whose shadow came to no answer, and call a person."""

    candidate: Name
    reason: str


class BeginProbation(Term):
    """Let the newcomer answer: its first step's share of the traffic."""

    candidate: Name
    of: int
    share: float


class TakeStep(Term):
    """Give the newcomer a step's share, recorded before it is given; its window begins anew."""

    candidate: Name
    number: int
    of: int
    share: float
    reason: str


class Promote(Term):
    """Confirm the newcomer: it takes all traffic, and is recorded before it is visible."""

    candidate: Name
    reason: str


class Revert(Term):
    """Take the newcomer's traffic away."""

    candidate: Name
    reason: str
    page: bool


class Retire(Term):
    """Retire the generation that a confirmed newcomer replaced."""

    candidate: Name
    reason: str


class Page(Term):
    """Call a person."""

    what: str
    why: str


Act = (
    OpenTrigger
    | LapseTrigger
    | StartSearch
    | AdoptSearch
    | CloseSearch
    | Export
    | Judge
    | Seal
    | Move
    | StageSlot
    | StartShadow
    | SealShadow
    | EndShadow
    | BeginProbation
    | TakeStep
    | Promote
    | Revert
    | Retire
    | Page
)
