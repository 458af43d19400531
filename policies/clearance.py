"""Verdicts and policy make a clearance.

* A required guard without a verdict has not passed.
* Inconclusive was retried by the panel; here it counts as fail.
* A person cannot approve over a rejection: there is nothing to sign.
"""

from typing import Literal

from policies.clauses import Panel
from policies.terms import Finding, Term, Verdict


class Clearance(Term):
    """The panel's outcome, with its reason."""

    outcome: Literal["cleared", "rejected"]
    reason: str


def clear(verdicts: tuple[Verdict, ...], panel: Panel, *, founding: bool) -> Clearance:
    """Return whether a candidate may be shown to people."""
    required = panel.required_founding if founding else panel.required
    by_name = {verdict.guard: verdict for verdict in verdicts}
    missing = [name for name in required if name not in by_name]
    if missing:
        return Clearance(outcome="rejected", reason=f"no verdict of {', '.join(missing)} ({panel.clause})")
    # A failed verdict counts even where the policy does not require its guard: unknown is never good,
    # and neither is a known bad.
    against = [verdict for verdict in verdicts if verdict.finding is Finding.FAIL]
    against += [by_name[name] for name in required if by_name[name].finding is Finding.INCONCLUSIVE]
    if against:
        told = "; ".join(f"{v.guard} {v.finding} ({v.clause}): {v.reason}" for v in against)
        return Clearance(outcome="rejected", reason=told)
    return Clearance(outcome="cleared", reason=f"{len(required)} of {len(required)} required guards pass")
