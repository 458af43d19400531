"""A search after latency moved: the archive is priced and examined anew, and chosen from; nothing is
trained."""

import numpy as np

from policies.errors import PermanentError
from search import adapting, plan
from search.desk import Desk
from search.explore import Look


def reselect(desk: Desk) -> list[Look]:
    """Examine the archive's genomes that are fast enough today.

    Raises:
        PermanentError: None is.
    """
    report = desk.reporter("search")
    report(0, 1, "search: the archive, without training")
    known = desk.archived()
    if desk.brief.moved:
        # Elsewhere it was the best there is; here it has not been tried.
        known = np.vstack([known, desk.parent.genes])
    archived = np.unique(desk.space.normal(known, desk.parent.genes), axis=0)
    examiner = desk.examiner(plan.CALIBRATION_ROWS)
    adapting.note_before(desk, examiner.examine(desk.parent.genes))
    fit = archived[desk.bounds.violation(archived) == 0]
    if not len(fit):
        raise PermanentError(
            f"expected an archived architecture with a median below {desk.bounds.ceiling_ms:.3g} ms within "
            f"{desk.brief.limits.max_edit_distance} genes, got none among {len(archived)}; "
            "let a search of kind data look for one, or widen the limits"
        )
    marks = desk.crew.map(examiner.examine, list(fit))
    latency = desk.costs.latency_ms(fit)
    return [Look(row, mark, float(ms), None) for row, mark, ms in zip(fit, marks, latency, strict=True)]
