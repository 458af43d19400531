"""Time to recover: CPU-seconds until a shift has cost no more than 5 % of what can be reached after it.

    python -m benchmarks.search.drift [--seeds 5] [--quick]

* The *oracle* is the incumbent's architecture, trained alone and long on the new rows and replay.
* *Instar* is an adaptation as it runs: the parent alone at a steady rate, its weights averaged, three new
  rows to an old one. At the start and every few steps the clock stands still, and the answer of that moment
  is examined on rows that nobody learned from.
* *Fine-tuning* is the usual way: SGD with momentum on the incumbent, new and old rows half and half. It is
  tried with three rates, at a steady rate and along a cosine, and the quickest of all counts: a choice that
  nobody has in advance. Beside it stands fine-tuning on new rows alone, which is not judged: it forgets, and
  the figure in the note says how much.
* *From scratch* is a founding search on the same rows: until its largest subnet or the incumbent's
  architecture in it is as good. The time that it takes to search and export is not counted against it.

Everybody's batch norms are calibrated on 512 rows before an answer is examined, which counts once, for the
answer that was good enough. Reading in counts for nobody. Where the shift costs less than 5 %, there is
nothing to regain.
"""

import math
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.search import regimes, table
from benchmarks.search.recovery import Case, accuracy_of, answer_of, mixed
from benchmarks.search.regimes import Watch
from benchmarks.search.row import Figure, Row
from benchmarks.search.shifts import ROOT, Part, Shift, shifts
from policies.terms import Precision, TriggerKind
from search import adapting, founding, plan
from search.batches import Batches
from search.blueprint import Blueprint
from search.dataset import Rows
from search.desk import Desk
from search.pace import BATCH
from search.supernet import Supernet
from search.training import Course, Pupil

SHARE = 0.95
_BUDGET_S = 40.0
_EVERY = 4
_FINE_TUNE_STEPS = 200
_RATES = (0.1, 0.03, 0.01)
_ORACLE_S = {"digits": 30.0, "bearings": 15.0, "shuttle": 8.0, "elec2": 8.0}
_MOST_SCRATCH_STEPS = 600


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
    figures = {key: Figure.of([one[key] for one in numbers]) for key in numbers[0]}
    ours, tuned, scratch = figures["ours"], figures["tuned"], figures["scratch"]
    nothing = ours.median == 0.0
    reached = math.isfinite(ours.median)
    met = None if nothing else reached and ours.median <= min(scratch.median / 5, tuned.median)
    ratio = (
        "nothing was lost"
        if nothing
        else f"{scratch.median / ours.median:.3g} x quicker than from scratch, "
        f"{tuned.median / ours.median:.3g} x quicker than fine-tuning"
    )
    return [
        Row(
            f"{name}: time to regain 95 % of the oracle",
            "<= 1/5 of a search from scratch, and less than fine-tuning",
            ours,
            "CPU-s",
            {
                "fine-tuning with replay": tuned,
                "fine-tuning on new rows alone": figures["new_only"],
                "search from scratch": scratch,
            },
            ratio,
            met,
            f"as served before {figures['before']}, oracle {figures['oracle']}"
            + ("" if nothing else f"; on old rows at that moment {figures['old']}, ")
            + ("" if nothing else f"fine-tuned on new rows alone {figures['new_only_old']}"),
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
    blueprint = replace(desk.space.blueprint(desk.parent.genes), precision=Precision.FP32)
    served = accuracy_of(desk.net, blueprint, first.train.some(1024, np.random.default_rng(0)), case.test)
    oracle = _oracle(case.desk(Watch()), blueprint, case)
    found = {"before": served, "oracle": oracle}
    goal = SHARE * oracle
    if served >= goal:
        keys = ("ours", "tuned", "new_only", "scratch", "old", "new_only_old")
        return found | dict.fromkeys(keys, 0.0)
    ours, old = _ours(case, blueprint, goal)
    tuned, _ = _fine_tuned(case, blueprint, goal, replay=True)
    new_only, new_only_old = _fine_tuned(case, blueprint, goal, replay=False)
    scratch = _from_scratch(case, blueprint, goal)
    return found | {
        "ours": ours,
        "tuned": tuned,
        "new_only": new_only,
        "scratch": scratch,
        "old": old,
        "new_only_old": new_only_old,
    }


def _ours(case: Case, blueprint: Blueprint, goal: float) -> tuple[float, float]:
    """Return CPU-seconds until an adaptation's answer is good enough, and how it does on old rows then."""
    desk = case.desk(Watch())
    watch = Watch()
    pupil = adapting.settling(desk)
    for step in range(plan.settling_steps(desk) + 1):
        if step % _EVERY == 0:
            watch.stop()
            found = answer_of(desk, pupil.averaged(), blueprint, case.test)
            watch.go()
            if found.new >= goal:
                return watch.read() + found.calibration_s, found.old
        pupil.advance()
    return math.inf, found.old


def _fine_tuned(case: Case, blueprint: Blueprint, goal: float, *, replay: bool) -> tuple[float, float]:
    """Return CPU-seconds of the quickest way of fine-tuning, and how it does on old rows then."""
    best = (math.inf, 0.0)
    for rate in _RATES:
        for steady in (True, False):
            # A way that takes longer than the best so far need not be gone to its end.
            best = min(best, _one_way(case, blueprint, goal, rate, best[0], replay=replay, steady=steady))
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
) -> tuple[float, float]:
    desk = case.desk(Watch())
    data, net = desk.data, desk.net
    old = data.train_old if replay else data.train_old.take(np.zeros(0, dtype=np.int64))
    watch = Watch()
    batches = Batches(
        net, data.train_new, old, None, desk.entry.layout, case.brief.task.augmentation, BATCH, 17
    )
    weights = _weights_of(net, blueprint)
    optimiser = torch.optim.SGD(weights, rate, momentum=0.9, nesterov=True, weight_decay=1e-4)
    desk.record.mix = 0.5 if replay else 1.0
    for step in range(_FINE_TUNE_STEPS + 1):
        if step % _EVERY == 0:
            watch.stop()
            found = answer_of(desk, net, blueprint, case.test)
            watch.go()
            if found.new >= goal:
                return watch.read() + found.calibration_s, found.old
            if watch.read() > most_s:
                break
        fall = 1.0 if steady else 0.5 * (1 + math.cos(math.pi * step / _FINE_TUNE_STEPS))
        for group in optimiser.param_groups:
            group["lr"] = rate * fall
        batch = batches.at(step)
        loss = F.cross_entropy(net.forward(blueprint, batch.x)[0], batch.y)
        for weight, gradient in zip(weights, torch.autograd.grad(loss, weights), strict=True):
            weight.grad = gradient
        optimiser.step()
    return math.inf, 0.0


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
        both.append(accuracy_of(desk.net, blueprint, mixed(desk), case.test))
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
    largest = space.blueprint(space.largest)
    for step in range(_MOST_SCRATCH_STEPS):
        pupil.advance()
        if step % (2 * _EVERY) == 0:
            watch.stop()
            both = [answer_of(desk, net, one, case.test) for one in (blueprint, largest)]
            watch.go()
            good = [one.calibration_s for one in both if one.new >= goal]
            if good:
                return watch.read() + min(good)
    return math.inf


if __name__ == "__main__":
    table.alone(rows, __doc__)
