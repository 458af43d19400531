"""Time to recover: CPU-seconds until a shift has cost no more than 5 % of what can be reached after it.

    python -m benchmarks.search.drift [--seeds 5] [--quick]

* The *oracle* is the incumbent's architecture, trained alone and long on the new rows and replay.
* *Instar* is an adaptation as it runs: calibration on the rows that the exam chooses, then the parent alone
  at a steady rate with averaged weights. Every few steps the clock stops and the answer of that moment is
  examined on rows that nobody learned from. Reading the libraries in is counted for nobody.
* *Fine-tuning* is the usual way: SGD with momentum on the incumbent, its norms calibrated before each exam.
  It is tried with three rates, with and without replay, at a steady rate and along a cosine, and the quickest
  of all
  counts: a choice that nobody has in advance.
* *From scratch* is a founding search on the same rows: until its largest subnet or the incumbent's
  architecture in it is as good. The time that it takes to search and export is not counted against it.

Where the shift costs less than 5 %, there is nothing to regain, and everybody needs no time.
"""

import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.search import regimes, table
from benchmarks.search.regimes import Watch
from benchmarks.search.row import Figure, Row
from benchmarks.search.shifts import ROOT, Part, Shift, shifts
from policies.terms import Brief, Precision, TriggerKind
from search import adapting, founding, plan
from search.admission import admit
from search.batches import Batches
from search.blueprint import Blueprint
from search.bounds import Bounds
from search.budget import Budget
from search.costs import Costs
from search.crew import Crew
from search.dataset import Rows
from search.desk import Desk, Record, Tools
from search.exam import mark
from search.pace import BATCH
from search.progress import Progress
from search.spaces import BUILTIN as SPACES
from search.strategies import BUILTIN as STRATEGIES
from search.supernet import Supernet
from search.training import Course, Pupil

SHARE = 0.95
_BUDGET_S = 40.0
_EVERY = 5
_FINE_TUNE_STEPS = 200
_RATES = (0.1, 0.03, 0.01)
_ORACLE_S = {"digits": 30.0, "bearings": 15.0, "shuttle": 8.0, "elec2": 8.0}
_MOST_SCRATCH_STEPS = 600


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


def rows(seeds: Sequence[int], quick: bool) -> list[Row]:
    """Return the rows of this part."""
    seeds = seeds[:1] if quick else seeds
    found: dict[str, list[dict[str, float]]] = {}
    for seed in seeds:
        for shift in shifts(seed):
            for name, numbers in _measured(shift, seed):
                found.setdefault(name, []).append(numbers)
    return [row for name, numbers in found.items() for row in _rows_of(name, numbers)]


def _rows_of(name: str, numbers: list[dict[str, float]]) -> list[Row]:
    ours, tuned, scratch = (Figure.of([one[key] for one in numbers]) for key in ("ours", "tuned", "scratch"))
    before, after, oracle = (
        Figure.of([one[key] for one in numbers]) for key in ("before", "after", "oracle")
    )
    nothing = ours.median == 0.0
    met = nothing or (ours.median <= scratch.median / 5 and ours.median <= tuned.median)
    ratio = (
        "nothing was lost"
        if nothing
        else (
            f"1/{scratch.median / ours.median:.3g} of a search from scratch, "
            f"{ours.median / tuned.median:.2g} x of fine-tuning"
        )
    )
    return [
        Row(
            f"{name}: time to regain 95 % of the oracle",
            "<= 1/5 of a search from scratch, and less than fine-tuning",
            ours,
            "CPU-s",
            {"fine-tuning the incumbent": tuned, "search from scratch": scratch},
            ratio,
            met,
            f"as served before {before}, at that moment {after}, oracle {oracle}",
        )
    ]


def _measured(shift: Shift, seed: int) -> Iterator[tuple[str, dict[str, float]]]:
    """Yield the figures of each later regime against the first."""
    kept = ROOT / ".instar" / "bench" / "drift" / f"{shift.name}-{seed}"
    table.say(f"drift: founding {shift.name}, seed {seed}")
    parent = regimes.found(shift, seed, kept, shift.founding_cpu_s)
    first = shift.regimes[0]
    for late in shift.regimes[1:]:
        name = f"{shift.name}, {first.name} to {late.name}"
        table.say(f"drift: {name}, seed {seed}")
        with tempfile.TemporaryDirectory() as folder:
            brief = regimes.adaptation(shift, late, [first], seed, Path(folder), _BUDGET_S, parent)
            yield name, _figures(Case(shift.name, brief, Path(folder), late.test), first)


def _figures(case: Case, first: Part) -> dict[str, float]:
    desk = case.desk(Watch())
    genes = desk.parent.genes
    blueprint = replace(desk.space.blueprint(genes), precision=Precision.FP32)
    served = _accuracy(desk.net, blueprint, first.train.some(1024, np.random.default_rng(0)), case.test)
    oracle = _oracle(case.desk(Watch()), blueprint, case)
    goal = SHARE * oracle
    if served >= goal:
        nothing = dict.fromkeys(("ours", "tuned", "scratch"), 0.0)
        return nothing | {"before": served, "after": served, "oracle": oracle}
    ours, after = _ours(case, blueprint, goal)
    return {
        "ours": ours,
        "tuned": _fine_tuned(case, blueprint, goal),
        "scratch": _from_scratch(case, blueprint, goal),
        "before": served,
        "after": after,
        "oracle": oracle,
    }


def _accuracy(net: Supernet, blueprint: Blueprint, calibration: Rows, test: Rows) -> float:
    statistics = net.calibrate(blueprint, net.prepare(calibration.x))
    return mark(net, blueprint, statistics, test, test.take(np.zeros(0, dtype=np.int64))).accuracy


def _mixed(desk: Desk) -> Rows:
    """Return rows that calibrate, new and old as the record says."""
    rng, mix = np.random.default_rng(1), desk.record.mix
    new, old = desk.data.train_new, desk.data.train_old
    parts = [new.some(int(512 * mix), rng), old.some(512 - int(512 * mix), rng)]
    return Rows(np.concatenate([part.x for part in parts]), np.concatenate([part.y for part in parts]))


def _ours(case: Case, blueprint: Blueprint, goal: float) -> tuple[float, float]:
    """Return CPU-seconds until an adaptation's answer is good enough, and how good it is then."""
    desk = case.desk(Watch())
    watch = Watch()
    adapting.before(desk)
    watch.stop()
    found = _accuracy(desk.net, blueprint, _mixed(desk), case.test)
    watch.go()
    if found >= goal:
        return watch.read(), found
    pupil = adapting.settling(desk)
    for step in range(plan.settling_steps(desk)):
        pupil.advance()
        if step % _EVERY == _EVERY - 1:
            watch.stop()
            found = _accuracy(pupil.averaged(), blueprint, _mixed(desk), case.test)
            watch.go()
            if found >= goal:
                return watch.read(), found
    return math.inf, found


def _fine_tuned(case: Case, blueprint: Blueprint, goal: float) -> float:
    """Return CPU-seconds of the quickest way of fine-tuning until it is good enough."""
    best = math.inf
    for rate in _RATES:
        for replay in (True, False):
            for steady in (True, False):
                # A way that takes longer than the best so far need not be gone to its end.
                best = min(best, _one_way(case, blueprint, goal, rate, best, replay=replay, steady=steady))
    return best


def _one_way(
    case: Case,
    blueprint: Blueprint,
    goal: float,
    rate: float,
    most_s: float,
    *,
    replay: bool,
    steady: bool,
) -> float:
    desk = case.desk(Watch())
    data, net = desk.data, desk.net
    old = data.train_old if replay else data.train_old.take(np.zeros(0, dtype=np.int64))
    batches = Batches(
        net, data.train_new, old, None, desk.entry.layout, case.brief.task.augmentation, BATCH, 17
    )
    weights = _weights_of(net, blueprint)
    optimiser = torch.optim.SGD(weights, rate, momentum=0.9, nesterov=True, weight_decay=1e-4)
    desk.record.mix = 0.5 if replay else 1.0
    watch = Watch()
    for step in range(_FINE_TUNE_STEPS):
        fall = 1.0 if steady else 0.5 * (1 + math.cos(math.pi * step / _FINE_TUNE_STEPS))
        for group in optimiser.param_groups:
            group["lr"] = rate * fall
        batch = batches.at(step)
        loss = F.cross_entropy(net.forward(blueprint, batch.x)[0], batch.y)
        for weight, gradient in zip(weights, torch.autograd.grad(loss, weights), strict=True):
            weight.grad = gradient
        optimiser.step()
        if step % _EVERY == _EVERY - 1:
            watch.stop()
            good = _accuracy(net, blueprint, _mixed(desk), case.test) >= goal
            watch.go()
            if good:
                return watch.read()
            if watch.read() > most_s:
                break
    return math.inf


def _weights_of(net: Supernet, blueprint: Blueprint) -> list[Tensor]:
    slots = {conv.slot for conv in blueprint.convs} | {blueprint.classifier}
    squeezes = [block.squeeze.slot for block in blueprint.blocks if block.squeeze]
    slots |= {f"{slot}.{part}" for slot in squeezes for part in ("reduce", "expand")}
    return [weight for name, weight in net.parameters().items() if name.rpartition(".")[0] in slots]


def _oracle(desk: Desk, blueprint: Blueprint, case: Case) -> float:
    """Return what the incumbent's architecture reaches when it is trained long."""
    profile, macs = desk.costs.profile, blueprint.macs
    cost = BATCH * macs * profile.seconds_per_mac + profile.seconds_per_net + profile.seconds_per_step
    data = desk.data
    batches = Batches(
        desk.net,
        data.train_new,
        data.train_old,
        None,
        desk.entry.layout,
        case.brief.task.augmentation,
        BATCH,
        19,
    )
    steps = max(200, int(_ORACLE_S[case.name] / cost))
    pupil = Pupil(desk.net, batches, lambda _: (blueprint,), Course("oracle", steps, 0, 0.1, 1.0), desk.crew)
    for _ in range(steps):
        pupil.advance()
    both = []
    for mix in (0.5, 1.0):
        desk.record.mix = mix
        both.append(_accuracy(desk.net, blueprint, _mixed(desk), case.test))
    return max(both)


def _from_scratch(case: Case, blueprint: Blueprint, goal: float) -> float:
    """Return CPU-seconds until a founding search's supernet is good enough."""
    desk = case.desk(Watch())
    data = desk.data
    everything = Rows(
        np.concatenate([data.train_new.x, data.train_old.x]),
        np.concatenate([data.train_new.y, data.train_old.y]),
    )
    admission = replace(
        desk.admission,
        brief=case.brief.model_copy(update={"kind": TriggerKind.FOUNDING}),
        parent=None,
        data=replace(data, train_new=everything, train_old=everything.take(np.zeros(0, dtype=np.int64))),
    )
    space = desk.space
    net = Supernet(space.shapes(), space.entries()[0], case.brief.seed + 100)
    net.standardise(everything.x)
    fresh = replace(desk, admission=admission, net=net)
    watch = Watch()
    course = Course("train", _MOST_SCRATCH_STEPS, 60, 0.1, 1.0)
    pupil = founding.lessons(fresh, course).pupil
    answers: tuple[Callable[[], Blueprint], ...] = (
        lambda: blueprint,
        lambda: space.blueprint(space.largest),
    )
    for step in range(_MOST_SCRATCH_STEPS):
        pupil.advance()
        if step % (2 * _EVERY) == 0:
            watch.stop()
            best = max(_accuracy(net, one(), _mixed(desk), case.test) for one in answers)
            watch.go()
            if best >= goal:
                return watch.read()
    return math.inf


if __name__ == "__main__":
    table.alone(rows, __doc__)
