"""A shift that is founded: the desk at which everybody starts, and how an answer of a moment is examined."""

import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.search.regimes import Watch
from policies.terms import Brief
from search.admission import admit
from search.blueprint import Blueprint
from search.bounds import Bounds
from search.budget import Budget
from search.costs import Costs
from search.crew import Crew
from search.dataset import Rows
from search.desk import Desk, Record, Tools
from search.exam import mark
from search.progress import Progress
from search.spaces import BUILTIN as SPACES
from search.strategies import BUILTIN as STRATEGIES
from search.supernet import Supernet


@dataclass(frozen=True)
class Case:
    """One shift, founded: what everybody starts from, and is examined on."""

    name: str
    brief: Brief
    folder: Path
    test: Rows

    def desk(self, watch: Watch) -> Desk:
        """Return a desk as a data search would have it, its state that of the parent."""
        admission = admit(self.brief, self.folder, SPACES)
        space = admission.space
        if admission.parent is None:
            raise ValueError("expected a parent")
        costs = Costs(space, admission.parent.archive.profile)
        net = Supernet(space.shapes(), space.entries()[0], self.brief.seed)
        net.load(admission.parent.state)
        tools = Tools(STRATEGIES["nsga2"], watch.read, lambda: 0.0, lambda _: None)
        return Desk(
            admission=admission,
            tools=tools,
            net=net,
            costs=costs,
            bounds=Bounds(space, self.brief.limits, costs, math.inf, admission.parent.genes, int8=True),
            budget=Budget(self.brief.budget_cpu_s, watch.read),
            progress=Progress(self.folder, watch.read, lambda _: None),
            crew=Crew(1),
            record=Record(),
        )


def accuracy_of(net: Supernet, blueprint: Blueprint, calibration: Rows, test: Rows) -> float:
    statistics = net.calibrate(blueprint, net.prepare(calibration.x))
    return mark(net, blueprint, statistics, test, test.take(np.zeros(0, dtype=np.int64))).accuracy


def mixed(desk: Desk) -> Rows:
    """Return rows that calibrate, new and old as the record says."""
    rng, mix = np.random.default_rng(1), desk.record.mix
    new, old = desk.data.train_new, desk.data.train_old
    parts = [new.some(int(512 * mix), rng), old.some(512 - int(512 * mix), rng)]
    return Rows(np.concatenate([part.x for part in parts]), np.concatenate([part.y for part in parts]))


@dataclass(frozen=True)
class Answer:
    """What a network says at one moment: right on new rows, on old rows, and what calibrating it took."""

    new: float
    old: float
    calibration_s: float


def answer_of(desk: Desk, net: Supernet, blueprint: Blueprint, test: Rows) -> Answer:
    """Examine a network on rows that nobody learned from; the caller's watch stands still."""
    x = net.prepare(mixed(desk).x)
    began = time.process_time()
    statistics = net.calibrate(blueprint, x)
    calibration_s = time.process_time() - began
    old = desk.data.search_old.some(1000, np.random.default_rng(2))
    marks = mark(net, blueprint, statistics, test, old)
    return Answer(marks.accuracy, marks.accuracy_old or 0.0, calibration_s)
