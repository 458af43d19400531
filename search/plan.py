"""How a search of each kind divides its budget.

* ``founding``: warm the largest subnet, then the sandwich, then the search; a short tuning of the best two.
* ``data``: train the parent alone for a short while, mostly on new rows, then it and its neighbours on new
  and old rows half and half; then the search, and a long tuning of the best two, which is where most of an
  adaptation's worth lies.
* ``latency``: no training; the archive's points are examined and chosen from anew.

The numbers of steps follow from the budget and from the device profile's pace, so that they depend on the
brief and the profile alone.
"""

from dataclasses import dataclass

import numpy as np

from policies.terms import TriggerKind
from search.budget import steps
from search.desk import EXAM_ROWS, Desk
from search.pace import BATCH
from search.space import Genes
from search.training import Course

CALIBRATION_ROWS = 256
FINAL_CALIBRATION_ROWS = 1024

_OVERHEAD_S = 6.0
"""Loading the libraries, timing blocks, the first exams; CPU-seconds before the first step."""

_SLACK = 0.12
"""Share of the budget that training may run over its plan before it is cut."""

_MARGIN = 1.25
"""A machine is not alone: what was measured in a quiet moment takes longer in others."""

_FORWARD = 0.4
"""CPU time of a row examined against a row trained on."""

_SAMPLED = 64
"""Genomes whose mean stands for those that a search meets."""

_INT8_S = 0.1
"""CPU-seconds to quantise a network."""

_SETTLE_SHARE = 0.10
_MOST_SETTLING_STEPS = 200
_MOST_TUNING_STEPS = 1500


@dataclass(frozen=True)
class Shape:
    """How a kind of search divides its budget.

    Args:
        train_end: Share of the budget that is gone when training ends.
        search_end: Share that is gone when the search ends.
        tune: Share for each of the two finalists that are tuned.
        warm: Share of the training in which the teacher learns alone.
        rate: The highest learning rate.
        least_looks: Genomes that are examined at least.
        most_looks: Genomes that are examined at most.
    """

    train_end: float
    search_end: float
    tune: float
    warm: float
    rate: float
    least_looks: int
    most_looks: int


SHAPES = {
    TriggerKind.FOUNDING: Shape(0.70, 0.84, 0.06, warm=0.15, rate=0.1, least_looks=12, most_looks=64),
    TriggerKind.DATA: Shape(0.45, 0.55, 0.20, warm=0.0, rate=0.05, least_looks=12, most_looks=32),
}


def course(desk: Desk) -> Course:
    """Return how a search trains its supernet."""
    kind, budget_s = desk.brief.kind, desk.budget.total_s
    shape, settling_s = SHAPES[kind], 0.0
    if kind is TriggerKind.DATA:
        settling_s = settling_steps(desk) * _alone_s(desk, desk.parent.genes)
    count = steps(shape.train_end * budget_s - _OVERHEAD_S - settling_s, _sandwich_s(desk))
    return Course("train", count, int(shape.warm * count), shape.rate, shape.train_end + _SLACK)


def settling_steps(desk: Desk) -> int:
    """Return for how many steps an adaptation trains the parent alone first."""
    fit = steps(_SETTLE_SHARE * desk.budget.total_s, _alone_s(desk, desk.parent.genes))
    return min(fit, _MOST_SETTLING_STEPS)


def tuning_steps(desk: Desk, genes: Genes) -> int:
    """Return for how many steps the final tunes one finalist."""
    share = SHAPES[desk.brief.kind].tune
    return min(steps(share * desk.budget.total_s, _alone_s(desk, genes)), _MOST_TUNING_STEPS)


def refreshing_steps(desk: Desk, most: int) -> int:
    """Return for how many steps a search without labels trains, each time."""
    return min(steps(0.4 * desk.budget.total_s, _alone_s(desk, desk.parent.genes)), most)


def looks(desk: Desk) -> int:
    """Return how many genomes a search may examine."""
    shape, profile = SHAPES[desk.brief.kind], desk.costs.profile
    rows = CALIBRATION_ROWS + min(len(desk.data.search_new), EXAM_ROWS[0])
    rows += min(len(desk.data.search_old), EXAM_ROWS[1])
    cost = _FORWARD * rows * profile.seconds_per_mac * _mean_macs(desk) + profile.seconds_per_net
    cost += _INT8_S * (len(desk.brief.precisions) - 1)
    fit = steps((shape.search_end - shape.train_end) * desk.budget.total_s, _MARGIN * cost)
    return min(max(fit, shape.least_looks), shape.most_looks)


def _alone_s(desk: Desk, genes: Genes) -> float:
    """Return the CPU-seconds of a step that trains one genome."""
    return _step_s(desk, 1, float(desk.costs.macs(genes[None])[0]))


def _sandwich_s(desk: Desk) -> float:
    """Return the CPU-seconds of a step: teacher, two pupils, and the smallest where a task is founded."""
    mean = _mean_macs(desk)
    if desk.brief.kind is TriggerKind.DATA:
        # Every fourth step has a stranger in it, else both pupils are the teacher's neighbours.
        parent = float(desk.costs.macs(desk.parent.genes[None])[0])
        return _step_s(desk, 3, 2.75 * parent + 0.25 * mean)
    ends = desk.costs.macs(np.stack([desk.space.largest, desk.space.smallest]))
    return _step_s(desk, 4, float(ends.sum()) + 2 * mean)


def _step_s(desk: Desk, subnets: int, macs: float) -> float:
    profile = desk.costs.profile
    seconds = BATCH * macs * profile.seconds_per_mac + subnets * profile.seconds_per_net
    return _MARGIN * (seconds + profile.seconds_per_step)


def _mean_macs(desk: Desk) -> float:
    drawn = desk.space.sample(np.random.default_rng(desk.brief.seed), _SAMPLED)
    return float(desk.costs.macs(drawn).mean())
