"""Newcomer against incumbent, in the same window: confirm, revert or hold.

* Errors and answers that are not finite revert at once, before any minimum count.
* No conclusion before the minimum counts; undecided for too long is a revert.
* Unhealthy newcomer beside an unhealthy incumbent: hold and page, never swap blindly.
"""

from math import sqrt
from statistics import NormalDist
from typing import Literal

from policies.clauses import Probation
from policies.terms import Arm, Term


class Outcome(Term):
    """What probation says, and whether a person must look."""

    decision: Literal["confirm", "revert", "hold"]
    reason: str
    page: bool = False


def difference(newcomer: Arm, incumbent: Arm, alpha: float) -> tuple[float, float]:
    """Return the interval of newcomer minus incumbent accuracy (two one-sided bounds at ``alpha``).

    Both arms must have labels. Source: Agresti & Caffo, The American Statistician 54 (2000), which adds
    one success and one failure to each arm.

    >>> a = Arm(generation=2, requests=9, errors=0, p50_ms=1.0, p99_ms=1.0, labels=198, correct=188)
    >>> b = a.model_copy(update={"generation": 1, "correct": 158})
    >>> [round(x, 3) for x in difference(a, b, 0.05)]
    [0.096, 0.204]
    """
    n1, n2 = newcomer.labels + 2, incumbent.labels + 2
    p1, p2 = (newcomer.correct + 1) / n1, (incumbent.correct + 1) / n2
    width = NormalDist().inv_cdf(1 - alpha) * sqrt(p1 * (1 - p1) / n1 + p2 * (1 - p2) / n2)
    return p1 - p2 - width, p1 - p2 + width


def _unhealthy(arm: Arm, clause: Probation) -> str | None:
    allowed = clause.max_error_share * max(arm.requests, clause.min_requests)
    if arm.errors > allowed:
        return f"{arm.errors} errors in {arm.requests} requests, allowed {allowed:.1f}"
    if arm.requests >= clause.min_requests and arm.p99_ms is not None and arm.p99_ms > clause.max_p99_ms:
        return f"p99 {arm.p99_ms:.1f} ms, ceiling {clause.max_p99_ms:g} ms (n={arm.requests})"
    return None


def judge(newcomer: Arm, incumbent: Arm | None, clause: Probation, elapsed_s: float) -> Outcome:
    """Return what to do with a newcomer after ``elapsed_s`` seconds of probation."""
    ill = _unhealthy(newcomer, clause)
    if ill is not None:
        other = None if incumbent is None else _unhealthy(incumbent, clause)
        if other is not None:
            return Outcome(decision="hold", reason=f"newcomer: {ill}; incumbent too: {other}", page=True)
        return Outcome(decision="revert", reason=ill)
    accuracy = "no incumbent to compare with"
    short = newcomer.requests < clause.min_requests
    if incumbent is not None:
        short = short or min(newcomer.labels, incumbent.labels) < clause.min_labels
        if newcomer.labels and incumbent.labels:
            low, high = difference(newcomer, incumbent, clause.alpha)
            accuracy = f"accuracy {100 * low:+.1f} to {100 * high:+.1f} points against the incumbent"
            if not short and high < 0.0:
                return Outcome(decision="revert", reason=f"{accuracy}: worse")
            short = short or (clause.min_labels > 0 and low < -clause.max_accuracy_loss)
    counts = f"{newcomer.requests} requests, {newcomer.labels} labels"
    if not short:
        return Outcome(decision="confirm", reason=f"{counts}, {newcomer.errors} errors, {accuracy}")
    if elapsed_s > clause.max_s:
        return Outcome(
            decision="revert", reason=f"undecided after {elapsed_s:.0f} s ({counts}, {accuracy})", page=True
        )
    return Outcome(
        decision="hold",
        reason=f"{counts} of {clause.min_requests} and {clause.min_labels} needed; {accuracy}",
    )
