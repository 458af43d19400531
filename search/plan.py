"""How a search of each kind divides its budget.

* ``founding``: warm the largest subnet, then the sandwich, then the search.
* ``data``: score what the archive holds on the new rows, train on new and old rows half and half, around the
  archive; then the search.
* ``latency``: no training; the archive's points are examined and chosen from anew.

The numbers of steps are derived from nominal costs, so that they depend on the brief alone.
"""

from dataclasses import dataclass

from policies.terms import TriggerKind
from search.blueprint import Blueprint
from search.budget import steps
from search.training import Course, step_cost_s

BATCH = 64
CALIBRATION_ROWS = 256
FINAL_CALIBRATION_ROWS = 1024
MAX_EXAM_ROWS = 1000

_OVERHEAD_S = 6.0
"""Loading the libraries, timing blocks, the first exams; CPU-seconds before the first step."""

_SLACK = 0.06
"""Share of the budget that training may run over its plan before it is cut."""

_OTHERS = 0.85
"""Cost of the two smaller subnets of a step against the largest."""

_SAMPLED = 0.5
"""Cost of an examined subnet against the largest, on the safe side."""

_EXAM_SHARE_OF_STEP = 0.5
"""CPU time of a row examined against a row trained on: forward alone, and batch statistics."""


@dataclass(frozen=True)
class Shape:
    """Shares of the budget, and how training goes."""

    train_end: float
    search_end: float
    warm: float
    rate: float
    least_looks: int
    most_looks: int


SHAPES = {
    TriggerKind.FOUNDING: Shape(0.80, 0.93, warm=0.15, rate=0.1, least_looks=8, most_looks=36),
    TriggerKind.DATA: Shape(0.66, 0.90, warm=0.0, rate=0.05, least_looks=8, most_looks=36),
}


def course(kind: TriggerKind, budget_s: float, largest: Blueprint) -> Course:
    """Return how a search of a kind trains."""
    shape = SHAPES[kind]
    cost = (1 + _OTHERS) * step_cost_s((largest,), BATCH)
    count = steps(shape.train_end * budget_s - _OVERHEAD_S, cost)
    return Course("train", count, int(shape.warm * count), shape.rate, shape.train_end + _SLACK)


def looks(kind: TriggerKind, budget_s: float, rows: int, largest: Blueprint) -> int:
    """Return how many genomes a search may examine.

    Args:
        kind: Of the brief.
        budget_s: CPU-seconds of the whole search.
        rows: Rows of one exam, new and old.
        largest: For the price of a row.
    """
    shape = SHAPES[kind]
    cost = step_cost_s((largest,), CALIBRATION_ROWS + rows) * _SAMPLED * _EXAM_SHARE_OF_STEP
    fit = steps((shape.search_end - shape.train_end) * budget_s, cost)
    return min(max(fit, shape.least_looks), shape.most_looks)
