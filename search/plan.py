"""How a search of each kind divides its budget.

* ``founding``: warm the largest subnet, then the sandwich, then the search.
* ``data``: score what the archive holds on the new rows, train on new and old rows half and half, around the
  archive; then the search.
* ``latency``: no training; the archive's points are examined and chosen from anew.

The numbers of steps follow from the budget and from the device profile's pace, so that they depend on the
brief and the profile alone.
"""

from dataclasses import dataclass

import numpy as np

from policies.terms import TriggerKind
from search.budget import steps
from search.desk import MAX_EXAM_ROWS, Desk
from search.pace import BATCH
from search.training import Course

CALIBRATION_ROWS = 256
FINAL_CALIBRATION_ROWS = 1024

_OVERHEAD_S = 6.0
"""Loading the libraries, timing blocks, the first exams; CPU-seconds before the first step."""

_SLACK = 0.08
"""Share of the budget that training may run over its plan before it is cut."""

_MARGIN = 1.15
"""What a step takes beside its subnets: jitter, clipping, the optimiser; and that machines are not alone."""

_FORWARD = 0.4
"""CPU time of a row examined against a row trained on."""

_SAMPLED = 64
"""Genomes whose mean stands for those that a search meets."""

_INT8_S = 0.1
"""CPU-seconds to quantise a network."""


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
    TriggerKind.FOUNDING: Shape(0.78, 0.92, warm=0.15, rate=0.1, least_looks=12, most_looks=64),
    TriggerKind.DATA: Shape(0.62, 0.86, warm=0.0, rate=0.05, least_looks=12, most_looks=64),
}


def course(desk: Desk) -> Course:
    """Return how a search trains."""
    shape, budget_s = SHAPES[desk.brief.kind], desk.budget.total_s
    count = steps(shape.train_end * budget_s - _OVERHEAD_S, _step_s(desk))
    return Course("train", count, int(shape.warm * count), shape.rate, shape.train_end + _SLACK)


def looks(desk: Desk) -> int:
    """Return how many genomes a search may examine."""
    shape, profile = SHAPES[desk.brief.kind], desk.costs.profile
    rows = CALIBRATION_ROWS
    rows += min(len(desk.data.search_new), MAX_EXAM_ROWS) + min(len(desk.data.search_old), MAX_EXAM_ROWS)
    cost = _FORWARD * rows * profile.seconds_per_mac * _mean_macs(desk) + profile.seconds_per_net
    cost += _INT8_S * (len(desk.brief.precisions) - 1)
    fit = steps((shape.search_end - shape.train_end) * desk.budget.total_s, _MARGIN * cost)
    return min(max(fit, shape.least_looks), shape.most_looks)


def _step_s(desk: Desk) -> float:
    """Return the CPU-seconds of a step: the largest, and two of middling cost."""
    profile, space = desk.costs.profile, desk.space
    macs = float(desk.costs.macs(space.largest[None])[0]) + 2 * _mean_macs(desk)
    return _MARGIN * (BATCH * macs * profile.seconds_per_mac + 3 * profile.seconds_per_net)


def _mean_macs(desk: Desk) -> float:
    drawn = desk.space.sample(np.random.default_rng(desk.brief.seed), _SAMPLED)
    return float(desk.costs.macs(drawn).mean())
