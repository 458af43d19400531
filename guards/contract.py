"""What a guard is: the contract that the room's battery holds every guard to.

* ``judge`` reads the case and its material, changes neither, and answers: pass, fail or inconclusive, with a
  sentence that has numbers and with evidence that has units and n.
* A "no" is a verdict, not an exception. Material that is not what its digest says is a ``TamperError``;
  anything else that escapes is a defect of the guard. The panel records both as inconclusive.
* Unknown is never good: an answer that is not finite fails, too few rows are inconclusive.
* No clock, no randomness of its own: ``Material`` carries the clock, seeds are constants.

``USED`` is a name that evidence may have: the share of its allowance that the candidate used up, where 1 is
the limit. The report orders guards by it and shows the highest as the strongest argument against.
"""

from collections.abc import Callable, Mapping
from typing import Protocol

from guards.material import Material
from policies.case import Case
from policies.terms import Evidence, Finding, Verdict

USED = "used"


class Guard(Protocol):
    """From a case to a verdict."""

    name: str

    def clause(self, case: Case) -> str:
        """Return the id of the clause it judges by."""
        ...

    def judge(self, case: Case, material: Material) -> Verdict:
        """Look at the bytes that would ship and answer.

        Raises:
            TamperError: Material is missing, or is not what its digest says.
        """
        ...


Factory = Callable[[], Guard]
Roster = Callable[[], Mapping[str, Factory]]


def used(share: float) -> Evidence:
    """Return how much of its allowance a candidate used up; cut to [0, 10] for the report's scale."""
    return Evidence(name=USED, value=min(10.0, max(0.0, share)), unit="share", n=0, limit=1.0)


def verdict(guard: Guard, case: Case, finding: Finding, reason: str, *evidence: Evidence) -> Verdict:
    """Return a guard's verdict."""
    return Verdict(
        guard=guard.name, clause=guard.clause(case), finding=finding, reason=reason, evidence=evidence
    )
