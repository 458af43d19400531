"""The final: the best that was examined, halved by more questions, tuned, exported and measured as it ships.

* Everybody who enters is calibrated on more rows than in the search, and examined again on half of the rows;
  the better half goes on, and answers all of them.
* The best two are tuned alone, in copies: the supernet stays as it is. A tuned one takes the place of the
  untuned unless it is clearly worse: were both to stand, luck would have one more to choose from.
* Who is left is exported and timed. Only one whose file and timing meet the limits can win.
* The winner gets a way out in the middle, where the brief asks for one and it pays (``search.exits``).

Source: Jamieson and Talwalkar, Non-stochastic best arm identification (2016), for halving.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from policies.errors import PermanentError
from search import choice, exits, plan
from search.batches import Batches
from search.bounds import MEDIAN_OF_P99
from search.choice import Finalist
from search.dataset import Rows
from search.desk import FINAL_ROWS, Desk
from search.exam import Marks, clearly_better
from search.examiner import Examiner
from search.explore import Look, beliefs
from search.export import GOLDEN_ROWS, Subnet, bundle_of
from search.graph import Way
from search.pace import BATCH
from search.runtime import round_robin_ms, session
from search.space import Genes, to_genome
from search.training import Course, Pupil

_ENTRANTS = 6
_FINALISTS = 3
_TUNED = 2
_TUNE_RATE = 0.05
_ROUNDS, _ROUND_RUNS = 5, 30


@dataclass(frozen=True)
class _Entrant:
    """Someone in the final: a calibrated subnet and how it did."""

    look: Look
    subnet: Subnet
    marks: Marks
    tuned: bool


class Final:
    """Holds one final.

    Args:
        desk: Of the search.
        memory: (old rows, classes) what the parent says of old rows; None without.
    """

    def __init__(self, desk: Desk, memory: Tensor | None) -> None:
        self._desk = desk
        self._memory = memory
        self._examiner = desk.examiner(plan.FINAL_CALIBRATION_ROWS, FINAL_ROWS)
        self._report = desk.reporter("final")

    def hold(self, looks: list[Look], *, tune: bool) -> list[Finalist]:
        """Return the finalists, measured.

        Args:
            looks: All that was examined.
            tune: Whether the best two are trained on.
        """
        scale = max(look.latency_ms for look in looks)
        # The best of many exams is the luckiest: who enters is decided by what their likes say, too.
        drawn = beliefs(self._desk.space, looks, self._desk.brief.seed)
        scores = [
            self._score(look, look.marks, scale) + belief - look.marks.accuracy
            for look, belief in zip(looks, drawn, strict=True)
        ]
        order = sorted(range(len(looks)), key=lambda index: -scores[index])[:_ENTRANTS]
        ordered = [looks[index] for index in order]
        self._report(0, len(ordered), "final: halving")
        left = self._halved(ordered, scale)
        if tune:
            left = [self._tuned(entrant) for entrant in left[:_TUNED]] + left[_TUNED:]
        self._report(len(ordered), len(ordered), "final: exporting and timing finalists")
        return self._measured(left)

    def one(self, subnet: Subnet, genes: Genes) -> Finalist:
        """Return a single subnet as a finalist, without any marks."""
        nothing = np.zeros(0, dtype=np.bool_)
        look = Look(genes, Marks(nothing, nothing), float(self._desk.costs.latency_ms(genes[None])[0]), None)
        return self._measured([_Entrant(look, subnet, look.marks, tuned=False)])[0]

    def winner(self, finalists: list[Finalist]) -> Finalist:
        """Return the best finalist that meets the limits.

        Raises:
            PermanentError: None does.
        """
        desk, limits = self._desk, self._desk.brief.limits
        fit = [finalist for finalist in finalists if self._fits(finalist)]
        if not fit:
            told = [
                f"{len(one.bundle)} bytes, {desk.costs.params(one.look.genes[None])[0]:.0f} parameters, "
                f"{one.measured_ms + desk.costs.overhead_ms:.3g} ms"
                for one in finalists
            ]
            raise PermanentError(
                f"expected a finalist within {limits.max_size_bytes} bytes, {limits.max_params} parameters "
                f"and a median of {limits.max_p99_ms * MEDIAN_OF_P99:.3g} ms in an allowed precision, got "
                f"{'; '.join(told)}; widen the limits, or search again on a quieter machine"
            )
        scale = max(one.look.latency_ms for one in finalists)
        return max(fit, key=lambda one: self._score(one.look, one.marks, scale))

    def with_exit(self, winner: Finalist) -> Finalist:
        """Return a winner with a way out in the middle, or as it is where none pays."""
        genes = winner.look.genes
        found = exits.sought(self._desk, winner.subnet, genes, self._examiner.sheet)
        if found is None:
            return winner
        raw = self._bundle(winner.subnet, genes, found.way)
        if len(raw) > self._desk.brief.limits.max_size_bytes:
            return winner
        return replace(winner, bundle=raw, leaving=found)

    def _score(self, look: Look, marks: Marks, scale_ms: float) -> float:
        return choice.score(look.latency_ms, marks, self._desk.record.old_before, scale_ms)

    def _halved(self, entrants: list[Look], scale: float) -> list[_Entrant]:
        """Return the better half after half of the rows, with their marks on all rows, best first."""
        sheet = self._examiner.sheet
        subnets = self._desk.crew.map(self._examiner.calibrated, [look.genes for look in entrants])
        half = Examiner(
            self._desk.space,
            self._desk.net,
            type(sheet)(sheet.calibration, sheet.raw, _every_second(sheet.new), _every_second(sheet.old)),
            self._desk.brief.task.input.name,
        )
        first = self._desk.crew.map(half.judge, subnets)
        order = sorted(
            range(len(entrants)), key=lambda index: -self._score(entrants[index], first[index], scale)
        )[:_FINALISTS]
        marks = self._desk.crew.map(self._examiner.judge, [subnets[index] for index in order])
        left = [
            _Entrant(entrants[index], subnets[index], mark, tuned=False)
            for index, mark in zip(order, marks, strict=True)
        ]
        return sorted(left, key=lambda one: -self._score(one.look, one.marks, scale))

    def _tuned(self, entrant: _Entrant) -> _Entrant:
        """Train one subnet on alone, in a copy; return it as it was when that made it clearly worse."""
        desk, blueprint = self._desk, entrant.subnet.blueprint
        count = plan.tuning_steps(desk, entrant.look.genes)
        net, data, seed = desk.net.twin(), desk.data, desk.brief.seed
        augmentation = desk.brief.task.augmentation
        batches = Batches(
            net,
            data.train_new,
            data.train_old,
            self._memory,
            desk.entry.layout,
            augmentation,
            BATCH,
            seed + 1,
        )
        course = Course("tune", count, 0, _TUNE_RATE, 0.98)
        Pupil(net, batches, lambda _: (blueprint,), course, desk.crew).train(
            desk.budget, desk.reporter("tune"), lambda _: None
        )
        with torch.no_grad():
            subnet = Subnet(net, blueprint, net.calibrate(blueprint, self._examiner.sheet.calibration))
        marks = self._examiner.judge(subnet)
        if clearly_better(entrant.marks, marks):
            return entrant
        return _Entrant(entrant.look, subnet, marks, tuned=True)

    def _measured(self, entrants: list[_Entrant]) -> list[Finalist]:
        """Export and time all of them in turn, so that a busy moment hits each."""
        desk, rows = self._desk, self._desk.data.search_new
        bundles = [self._bundle(one.subnet, one.look.genes) for one in entrants]
        feed = {desk.brief.task.input.name: rows.x[:1]}
        sessions = [session(raw) for raw in bundles]
        times = round_robin_ms(sessions, [feed] * len(sessions), _ROUNDS, _ROUND_RUNS, desk.tools.clock)
        parent = desk.bounds.parent
        return [
            Finalist(
                look=one.look,
                marks=one.marks,
                bundle=raw,
                measured_ms=float(ms),
                # As the law counts it: in all genes, also the inactive ones, which are the parent's.
                distance=0 if parent is None else int((one.look.genes != parent).sum()),
                tuned=one.tuned,
                subnet=one.subnet,
            )
            for one, raw, ms in zip(entrants, bundles, times, strict=True)
        ]

    def _bundle(self, subnet: Subnet, genes: Genes, way: Way | None = None) -> bytes:
        brief, raw = self._desk.brief, self._examiner.sheet.raw
        clean = self._desk.data.search_new.some(GOLDEN_ROWS, np.random.default_rng([brief.seed, 5])).x
        return bundle_of(subnet, brief, to_genome(self._desk.space, genes), clean, raw, way)

    def _fits(self, finalist: Finalist) -> bool:
        desk, limits, genes = self._desk, self._desk.brief.limits, finalist.look.genes[None]
        small = len(finalist.bundle) <= limits.max_size_bytes
        small = small and desk.costs.params(genes)[0] <= limits.max_params
        # Only the hard limit is asked of a timing on a loaded machine; the table has kept the relative one.
        fast = finalist.measured_ms + desk.costs.overhead_ms <= limits.max_p99_ms * MEDIAN_OF_P99
        near = desk.bounds.parent is None or finalist.distance <= limits.max_edit_distance
        allowed = desk.bounds.int8 or not desk.space.quantised(genes)[0]
        return bool(small and fast and near and allowed)


def _every_second(rows: Rows) -> Rows:
    return rows.take(np.arange(0, len(rows), 2))
