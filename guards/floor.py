"""Is the candidate good enough in itself? The least accuracy, by its lower confidence bound.

* Judged on gate rows since the change, which no search has seen; one row a group.
* The whole bound must clear the floor, not the estimate.
* An estimate above the floor whose bound is below it is inconclusive, and says how many rows would do.

It publishes the accuracy of every class too; ``slices`` judges those, against the incumbent.
"""

import numpy as np
from scipy.special import betaincinv

from guards.contract import used, verdict
from guards.intervals import share_bounds
from guards.material import NEW, Answers, Material, Rows
from policies.case import Case
from policies.terms import Evidence, Finding, Verdict

_MOST_ROWS = 1_000_000
CLASS = "class {} accuracy"


class Floor:
    """The least accuracy."""

    name = "floor"

    def clause(self, case: Case) -> str:
        """Return the id of the clause it judges by."""
        return case.policy.modification_protocol.evaluation.floor.clause

    def judge(self, case: Case, material: Material) -> Verdict:
        """Bound the accuracy from below."""
        limit = case.policy.modification_protocol.evaluation.floor
        rows = material.rows(NEW)
        n = len(rows.y)
        if not n:
            reason = f"expected gate rows since the change, there are 0 (limit {limit.min_accuracy:.1%})"
            return verdict(self, case, Finding.INCONCLUSIVE, reason)
        answers = material.answers(case.bundle, NEW)
        good = int(np.count_nonzero(answers.right))
        lower, upper = share_bounds(good, n, limit.alpha)
        evidence = (
            Evidence(
                name="accuracy",
                value=good / n,
                unit="share",
                n=n,
                interval=(lower, upper),
                limit=limit.min_accuracy,
                source=case.gate.digest,
            ),
            *_classes(case, rows, answers),
            used((1 - lower) / max(1e-9, 1 - limit.min_accuracy)),
        )
        if answers.broken:
            reason = f"{answers.broken} of {n} answers are not finite"
            return verdict(self, case, Finding.FAIL, reason, *evidence)
        told = (
            f"accuracy {good / n:.1%}, lower bound {lower:.1%} at {1 - limit.alpha:.0%}, "
            f"floor {limit.min_accuracy:.1%} (n={n})"
        )
        if lower >= limit.min_accuracy:
            return verdict(self, case, Finding.PASS, told, *evidence)
        if good / n <= limit.min_accuracy:
            return verdict(self, case, Finding.FAIL, told, *evidence)
        need = rows_for(good / n, limit.min_accuracy, limit.alpha)
        count = f"{need}" if need is not None else f"over {_MOST_ROWS}"
        reason = f"{told}; the bound would clear the floor with {count} rows"
        return verdict(self, case, Finding.INCONCLUSIVE, reason, *evidence)


def rows_for(accuracy: float, floor: float, alpha: float) -> int | None:
    """Return the rows at which an accuracy's lower bound reaches a floor; None above a million.

    >>> rows_for(accuracy=0.95, floor=0.90, alpha=0.05)
    107
    """
    few, many = 0, 1
    while _lower(accuracy, many, alpha) < floor:
        few, many = many, many * 2
        if many > _MOST_ROWS:
            return None
    while many - few > 1:
        middle = (few + many) // 2
        if _lower(accuracy, middle, alpha) < floor:
            few = middle
        else:
            many = middle
    return many


def _lower(accuracy: float, n: int, alpha: float) -> float:
    # The exact bound at a share of rows that need not be whole, so that it only grows with n.
    return float(betaincinv(accuracy * n, (1 - accuracy) * n + 1, alpha))


def _classes(case: Case, rows: Rows, answers: Answers) -> list[Evidence]:
    """Return the accuracy of every class that has rows, with a two-sided 95 % interval."""
    found = []
    for index, name in enumerate(case.task.classes):
        here = rows.y == index
        n = int(np.count_nonzero(here))
        if n:
            good = int(np.count_nonzero(answers.right[here]))
            found.append(
                Evidence(
                    name=CLASS.format(name),
                    value=good / n,
                    unit="share",
                    n=n,
                    interval=share_bounds(good, n, 0.025),
                    source=case.gate.digest,
                )
            )
    return found
