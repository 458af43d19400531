"""What a set of valid approvals amounts to: people are counted, not keys, and one no is a veto."""

from collections.abc import Iterable
from typing import Literal

from policies.clauses import Approval as ApprovalClause
from policies.terms import Approval


def tally(
    approvals: Iterable[Approval], clause: ApprovalClause, now: float
) -> Literal["approved", "declined", "waiting"]:
    """Return where a candidate stands with its approvers.

    The signatures were verified when the approvals came in; here only expiry and number count.
    """
    given = list(approvals)
    if any(a.decision == "decline" for a in given):
        return "declined"
    people = {a.principal for a in given if a.expires_at > now and a.principal in clause.approvers}
    return "approved" if len(people) >= clause.quorum else "waiting"
