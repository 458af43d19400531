"""A newcomer beside the traffic, before it answers any of it: what is run, what came of it, what it means.

* A worker runs the newcomer on inputs that the incumbent answered long before (``ShadowCase``), and counts
  (``ShadowResult``); ``judge`` says what the counts mean, and both the worker and control ask it.
* One answer that is not finite fails; so does a larger share of rows that could not be answered.
* Disagreement and time are judged by intervals, at looks that were fixed before: the first when the clause's
  rows are there, each further one at twice as many, each at half the level of the one before, so that all
  looks together keep the clause's level.
* Disagreement is with what the client was told. Data that drifted is why one searches, so some is expected.

It runs nothing: ``daemon.shadow`` does.
"""

from math import sqrt
from statistics import NormalDist

from pydantic import Field

from policies.clauses import Shadow
from policies.terms import MOST, Digest, Finding, Name, Slot, Term, Time


class ShadowCase(Term):
    """What a shadow worker is given."""

    candidate: Name
    model: Name
    blobs: str = Field(description="Folder of the blob store.")
    spool: str = Field(description="Folder that the data plane writes telemetry and samples to.")
    newcomer: Slot
    incumbent: Slot
    since: Time = Field(description="Rows that were answered earlier do not count.")
    clause: Shadow
    exit_confidence: float | None = Field(
        gt=0.0, le=1.0, description="At which a row leaves early, as in the traffic; None: none does."
    )


class Times(Term):
    """How long one model took, a row at a time, on the rows of both."""

    p50_ms: float = Field(ge=0.0)
    p99_ms: float = Field(ge=0.0)


class ShadowResult(Term):
    """What a shadow worker counted.

    ``ratio`` is the median over rows of the newcomer's time divided by the incumbent's; its interval has the
    level of the last look. Without any row that both ran, there are no times.
    """

    candidate: Name
    bundle: Digest
    rows: int = Field(ge=0, le=MOST)
    looks: int = Field(ge=0, le=64)
    disagreed: int = Field(ge=0, le=MOST)
    errors: int = Field(ge=0, le=MOST)
    not_finite: int = Field(ge=0, le=MOST)
    newcomer: Times | None
    incumbent: Times | None
    ratio: float | None = Field(gt=0.0)
    ratio_interval: tuple[float, float] | None
    wall_s: float = Field(ge=0.0)


class ShadowVerdict(Term):
    """What a shadow came to; the journal has it with the counts."""

    finding: Finding
    reason: str


def look_at(clause: Shadow, look: int) -> int:
    """Return how many rows a look waits for; the first is 1.

    >>> [look_at(Shadow.model_construct(rows=200), look) for look in (1, 2, 3)]
    [200, 400, 800]
    """
    return int(clause.rows * 2 ** (look - 1))


def level(clause: Shadow, look: int) -> float:
    """Return the level of one look: halves, which sum to less than the clause's whole.

    >>> [level(Shadow.model_construct(alpha=0.05), look) for look in (1, 2)]
    [0.025, 0.0125]
    """
    return float(clause.alpha / 2**look)


def wilson(count: int, rows: int, alpha: float) -> tuple[float, float]:
    """Return two one-sided bounds at ``alpha`` of a share; ``rows`` > 0.

    Source: Wilson, Journal of the American Statistical Association 22 (1927).

    >>> [round(x, 3) for x in wilson(40, 200, 0.025)]
    [0.15, 0.261]
    """
    z = NormalDist().inv_cdf(1 - alpha)
    share, spread = count / rows, z * z / rows
    centre = (share + spread / 2) / (1 + spread)
    width = z * sqrt(share * (1 - share) / rows + spread / (4 * rows)) / (1 + spread)
    return max(0.0, centre - width), min(1.0, centre + width)


def judge(result: ShadowResult, clause: Shadow) -> ShadowVerdict:
    """Return pass, fail, or inconclusive for a shadow after its latest look."""
    rows = f"n={result.rows} ({clause.clause})"
    if result.not_finite:
        return _fail(f"{result.not_finite} answers that are not finite, {rows}")
    allowed = clause.max_error_share * max(result.rows, clause.rows)
    if result.errors > allowed:
        return _fail(f"{result.errors} rows that it could not answer, allowed {allowed:.1f}, {rows}")
    if result.rows < clause.rows or not result.looks or result.ratio_interval is None or result.ratio is None:
        return ShadowVerdict(
            finding=Finding.INCONCLUSIVE,
            reason=f"{result.rows} of {clause.rows} rows came ({clause.clause}); "
            "is there traffic, and are inputs sampled?",
        )
    low, high = wilson(result.disagreed, result.rows, level(clause, result.looks))
    told = (
        f"another answer in {100 * result.disagreed / result.rows:.1f} % of rows "
        f"[{100 * low:.1f}, {100 * high:.1f}], limit {100 * clause.max_disagreement:g}; "
        f"{result.ratio:.2f} of the incumbent's time "
        f"[{result.ratio_interval[0]:.2f}, {result.ratio_interval[1]:.2f}], "
        f"limit {clause.max_p50_ratio:g}; {rows}"
    )
    if low > clause.max_disagreement or result.ratio_interval[0] > clause.max_p50_ratio:
        return _fail(told)
    passed = high <= clause.max_disagreement and result.ratio_interval[1] <= clause.max_p50_ratio
    return ShadowVerdict(finding=Finding.PASS if passed else Finding.INCONCLUSIVE, reason=told)


def _fail(reason: str) -> ShadowVerdict:
    return ShadowVerdict(finding=Finding.FAIL, reason=reason)
