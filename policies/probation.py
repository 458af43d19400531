"""Newcomer against incumbent, step by step: confirm the step, revert, or hold.

* Each step has its own share of the traffic, its own minimum counts, and its own window: both arms are
  counted from the step's beginning on.
* One answer of the newcomer that is not finite reverts at once, before any minimum count, unless the
  incumbent gave one too in the same window. So do errors, when they are more than the policy allows and the
  incumbent does not make as many.
* Accuracy is compared by a confidence sequence: it may be looked at every second, and over all steps together
  an equal newcomer is taken for a worse one with probability ``alpha`` at most.
* No conclusion before the minimum counts; undecided for too long is a revert, and a person is called.
* Unhealthy newcomer beside an incumbent that is as unhealthy: hold and page, never swap blindly.
"""

from math import log, log1p, sqrt
from typing import Literal

from pydantic import Field

from policies.clauses import Probation, ProbationStep
from policies.terms import Arm, Share, Term, Time


class Step(Term):
    """Where a newcomer on probation stands; the journal has one entry a step."""

    number: int = Field(ge=1)
    of: int = Field(ge=1)
    share: Share = Field(description="Of the traffic, as recorded before it was given.")
    since: Time


class Outcome(Term):
    """What probation says of a step, and whether a person must look."""

    decision: Literal["confirm", "revert", "hold"]
    reason: str
    page: bool = False


def stretch(rows: float, planned: float, alpha: float) -> float:
    """Return how many standard errors wide one side of the sequence is after ``rows`` rows.

    A fixed sample would need ``NormalDist().inv_cdf(1 - alpha)``; this holds at every look.

    Args:
        rows: Effective rows of the difference, n1 n2 / (n1 + n2).
        planned: Where the sequence is to be narrowest; must not depend on the outcomes.
        alpha: Of one side.

    Source: the one-sided normal mixture boundary and the choice of its parameter, Howard, Ramdas, McAuliffe
    and Sekhon, Annals of Statistics 49 (2021); with plugged-in variances for two streams of yes and no as in
    Johari, Koomen, Pekelis and Walsh, Operations Research 70 (2022).

    >>> [round(stretch(rows, planned=300, alpha=0.05), 2) for rows in (150, 300, 3000)]
    [2.84, 2.78, 2.99]
    """
    tail = 2 * log(1 / (2 * alpha))
    mixing = planned / (tail + log1p(tail))
    return sqrt(2 * (1 + mixing / rows) * log1p(sqrt((rows + mixing) / mixing) / (2 * alpha)))


def difference(newcomer: Arm, incumbent: Arm, planned: int, alpha: float) -> tuple[float, float]:
    """Return bounds of newcomer minus incumbent accuracy; each holds at all looks together but for ``alpha``.

    Both arms must have labels; ``planned`` as in ``stretch``. Standard errors are those of Agresti and Caffo,
    The American Statistician 54 (2000): one success and one failure more in each arm, so that an arm without
    any mistake is not taken for one without any doubt.

    >>> plain = {"requests": 198, "errors": 0, "not_finite": 0, "p50_ms": 1.0, "p99_ms": 1.0, "labels": 198}
    >>> a, b = Arm(generation=2, correct=188, **plain), Arm(generation=1, correct=158, **plain)
    >>> [round(x, 3) for x in difference(a, b, 200, 0.05)]
    [0.058, 0.245]
    """
    centre = newcomer.correct / newcomer.labels - incumbent.correct / incumbent.labels
    n1, n2 = newcomer.labels + 2, incumbent.labels + 2
    p1, p2 = (newcomer.correct + 1) / n1, (incumbent.correct + 1) / n2
    rows = newcomer.labels * incumbent.labels / (newcomer.labels + incumbent.labels)
    width = stretch(rows, max(1, planned), alpha) * sqrt(p1 * (1 - p1) / n1 + p2 * (1 - p2) / n2)
    return centre - width, centre + width


def _unhealthy(arm: Arm, clause: Probation, step: ProbationStep) -> str | None:
    allowed = clause.max_error_share * max(arm.requests, step.min_requests)
    if arm.errors > allowed:
        return f"{arm.errors} errors in {arm.requests} requests, allowed {allowed:.1f}"
    if arm.requests >= step.min_requests and arm.p99_ms is not None and arm.p99_ms > clause.max_p99_ms:
        return f"p99 {arm.p99_ms:.1f} ms, ceiling {clause.max_p99_ms:g} ms (n={arm.requests})"
    return None


def _worse(newcomer: Arm, incumbent: Arm, clause: Probation, step: ProbationStep) -> bool:
    """Tell whether a newcomer fails by more than the clause's share more often than its incumbent does."""
    beside = incumbent.errors / max(incumbent.requests, 1)
    return newcomer.errors > (clause.max_error_share + beside) * max(newcomer.requests, step.min_requests)


def _at_once(newcomer: Arm, incumbent: Arm | None, clause: Probation, step: ProbationStep) -> Outcome | None:
    """Return what cannot wait for any minimum count, or None."""
    # What makes the incumbent fail too is the input's fault; then it counts as the error that it is.
    if newcomer.not_finite and (incumbent is None or not incumbent.not_finite):
        reason = f"{newcomer.not_finite} answers that are not finite in {newcomer.requests} requests"
        return Outcome(decision="revert", reason=reason)
    ill = _unhealthy(newcomer, clause, step)
    if ill is None:
        return None
    other = None if incumbent is None else _unhealthy(incumbent, clause, step)
    if incumbent is None or other is None or _worse(newcomer, incumbent, clause, step):
        beside = "" if other is None else f"; the incumbent: {other}"
        return Outcome(decision="revert", reason=f"{ill}{beside}")
    return Outcome(decision="hold", reason=f"newcomer: {ill}; incumbent too: {other}", page=True)


def judge(
    newcomer: Arm, incumbent: Arm | None, clause: Probation, step: ProbationStep, elapsed_s: float
) -> Outcome:
    """Return what to do with a newcomer ``elapsed_s`` seconds after a step began.

    Args:
        newcomer: What it did in this step.
        incumbent: What the incumbent did in the same window; None where nobody shares the traffic.
        clause: The policy's.
        step: The one of its steps that is under way.
        elapsed_s: Since the step began.
    """
    held = _at_once(newcomer, incumbent, clause, step)
    if held is None:
        held = _compare(newcomer, incumbent, clause, step)
    if held.decision == "hold" and elapsed_s > clause.max_s:
        return Outcome(
            decision="revert", reason=f"undecided after {elapsed_s:.0f} s ({held.reason})", page=True
        )
    return held


def _compare(newcomer: Arm, incumbent: Arm | None, clause: Probation, step: ProbationStep) -> Outcome:
    accuracy = "no incumbent to compare with"
    short = newcomer.requests < step.min_requests
    if incumbent is not None:
        accuracy = "no labels to compare"
        short = short or min(newcomer.labels, incumbent.labels) < step.min_labels
        if newcomer.labels and incumbent.labels:
            low, high = difference(newcomer, incumbent, step.min_labels, clause.alpha / len(clause.steps))
            accuracy = f"accuracy {100 * low:+.1f} to {100 * high:+.1f} points against the incumbent"
            if not short and high < 0.0:
                return Outcome(decision="revert", reason=f"{accuracy}: worse")
            short = short or (step.min_labels > 0 and low < -step.max_accuracy_loss)
    counts = f"{newcomer.requests} requests, {newcomer.labels} labels"
    if not short:
        return Outcome(decision="confirm", reason=f"{counts}, {newcomer.errors} errors, {accuracy}")
    needed = f"{step.min_requests} and {step.min_labels} needed"
    return Outcome(decision="hold", reason=f"{counts} of {needed}; {accuracy}")
