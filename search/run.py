"""One search, from an admitted brief to the files of a result.

Called by ``search.__main__``; every clock is handed in. The three kinds differ in what comes before the
final: founding trains from nothing, data adapts the parent's supernet, latency only chooses again.
The final is the same for all.
"""

import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch
from safetensors.torch import save

from policies.errors import PermanentError
from policies.terms import Artefact, Evidence, Point, SearchResult, TriggerKind
from policies.wire import canonical, digest_bytes
from search import bounds as limits_of
from search import choice, latency, plan, training
from search.admission import Admission, Parent
from search.archive import Archive
from search.blueprint import Blueprint
from search.bounds import Bounds
from search.budget import Budget
from search.choice import Finalist
from search.crew import Crew
from search.exam import Exam, Marks, images
from search.explore import Explorer, Look
from search.final import Final
from search.jitter import jitter
from search.latency import Clock, Latency
from search.progress import Progress, write_whole
from search.space import Genes, to_genes, to_genome
from search.strategy import StrategyFactory
from search.supernet import Supernet

_FIT_NETWORKS = 6
_CENTRES = 4
_SMALLEST_EVERY = 3
_FAR_RATE = 0.4
_NEAR_RATE = 0.15
"""Share of genes in which a trained neighbour differs from its centre: at founding, and around an archive."""

_FASTER = 0.9
"""A search for latency must find less than this share of the parent's median."""


@dataclass(frozen=True)
class Tools:
    """What a search is given from outside."""

    strategy: StrategyFactory
    cpu: Callable[[], float]
    clock: Clock
    say: Callable[[str], None]


class Run:
    """A search at work."""

    def __init__(self, admission: Admission, out: Path, tools: Tools) -> None:
        self._admission = admission
        self._brief = admission.brief
        self._space = admission.space
        self._data = admission.data
        self._out = out
        self._tools = tools
        self._began = tools.clock()
        self._budget = Budget(self._brief.budget_cpu_s, tools.cpu)
        self._progress = Progress(out, tools.cpu, tools.say)
        self._crew = Crew(self._brief.threads)
        self._rng = np.random.default_rng(self._brief.seed)
        self._largest = self._space.blueprint(self._space.largest)
        self._smallest = self._space.blueprint(self._space.smallest)
        self._net = Supernet(self._largest, self._brief.seed)
        self._evidence: list[Evidence] = []
        self._old_before: float | None = None

    def search(self) -> SearchResult:
        """Search, write all files, and return the result (its file is written last).

        Raises:
            PermanentError: No genome meets the limits.
        """
        try:
            return self._search()
        finally:
            self._crew.close()

    def _search(self) -> SearchResult:
        parent = self._admission.parent
        costs = self._costs(parent)
        bounds = self._bounds(parent, costs)
        limits_of.nearest(bounds)
        if parent is None:
            looks, architectures = self._found(bounds)
        elif self._brief.kind is TriggerKind.DATA:
            looks, architectures = self._adapt(bounds, parent)
        else:
            looks, architectures = self._reselect(bounds, parent)
        return self._finish(bounds, looks, architectures)

    # -- the three kinds --------------------------------------------------------------------------------

    def _found(self, bounds: Bounds) -> tuple[list[Look], int]:
        self._train(self._space.largest[None], _FAR_RATE)
        space = self._space
        random = space.sample(self._rng, plan.SHAPES[TriggerKind.FOUNDING].least_looks - 2)
        seeds = np.concatenate([space.largest[None], space.smallest[None], random])
        return self._explore(bounds, seeds, space.smallest)

    def _adapt(self, bounds: Bounds, parent: Parent) -> tuple[list[Look], int]:
        self._net.load(parent.state)
        centres = self._score_archive(parent)
        self._train(centres, _NEAR_RATE)
        near = self._space.mutate(self._rng, np.repeat(centres, 2, axis=0), _NEAR_RATE)
        seeds = np.concatenate([parent.genes[None], centres, near])
        return self._explore(bounds, seeds, parent.genes)

    def _reselect(self, bounds: Bounds, parent: Parent) -> tuple[list[Look], int]:
        self._net.load(parent.state)
        self._progress.report("search", 0, 1, "search: the archive, without training")
        exam = self._exam(plan.CALIBRATION_ROWS)
        archived = np.unique(self._space.normal(self._archived(parent), parent.genes), axis=0)
        blueprints = [self._space.blueprint(row) for row in archived]
        self._note_before(exam.take(self._space.blueprint(parent.genes)))
        fit = np.flatnonzero(bounds.violation(archived) == 0)
        if not len(fit):
            raise PermanentError(
                f"expected an archived architecture with a median below {bounds.ceiling_ms:.3g} ms within "
                f"{self._brief.limits.max_edit_distance} genes, got none among {len(archived)}; "
                "let a search of kind data look for one, or widen the limits"
            )
        marks = self._crew.map(exam.take, [blueprints[index] for index in fit])
        looks = [
            Look(archived[index], blueprints[index], mark, bounds.latency.predict_ms(blueprints[index]), None)
            for index, mark in zip(fit, marks, strict=True)
        ]
        return looks, len(archived)

    # -- parts ------------------------------------------------------------------------------------------

    def _costs(self, parent: Parent | None) -> Latency:
        blocks = self._space.blocks()
        self._progress.report("latency", 0, len(blocks), "latency: timing blocks and networks")
        table = {} if parent is None else parent.archive.table_us
        missing = [block for block in blocks if latency.key(block) not in table]
        clock, seed = self._tools.clock, self._brief.seed
        table = table | latency.measure_table(missing, clock, seed)
        some = self._space.sample(np.random.default_rng([seed, 2]), _FIT_NETWORKS - 2)
        networks = [self._largest, self._smallest, *(self._space.blueprint(row) for row in some)]
        return latency.fit(table, networks, clock, seed)

    def _bounds(self, parent: Parent | None, costs: Latency) -> Bounds:
        limits = self._brief.limits
        if parent is None:
            return Bounds(self._space, limits, costs, limits_of.median_ceiling_ms(limits, None), None)
        parent_ms = costs.predict_ms(self._space.blueprint(parent.genes))
        ceiling = limits_of.median_ceiling_ms(limits, parent_ms)
        if self._brief.kind is TriggerKind.LATENCY:
            ceiling = min(ceiling, _FASTER * parent_ms)
        return Bounds(self._space, limits, costs, ceiling, parent.genes)

    def _archived(self, parent: Parent) -> Genes:
        points = [to_genes(self._space, point.genome) for point in parent.archive.points]
        return np.stack([parent.genes, *points])

    def _score_archive(self, parent: Parent) -> Genes:
        """Examine the parent and the archive before training; return the best, the parent first."""
        self._progress.report("before", 0, 1, "before: the archive on the new rows")
        archived = self._archived(parent)[: 1 + 2 * _CENTRES]
        exam = self._exam(plan.CALIBRATION_ROWS)
        marks = self._crew.map(exam.take, [self._space.blueprint(row) for row in archived])
        self._note_before(marks[0])
        accuracies = np.array([mark.accuracy for mark in marks[1:]])
        best = np.argsort(-accuracies, kind="stable")[: _CENTRES - 1]
        return np.concatenate([archived[:1], archived[1:][best]])

    def _note_before(self, marks: Marks) -> None:
        self._old_before = marks.accuracy_old
        self._evidence.append(choice.accuracy_evidence("accuracy_before", marks.new))
        if len(marks.old):
            self._evidence.append(choice.accuracy_evidence("accuracy_old_before", marks.old))

    def _train(self, centres: Genes, rate: float) -> None:
        """Train the largest subnet, neighbours of the centres, and the smallest or a stranger in turn."""
        brief, space = self._brief, self._space
        rng = np.random.default_rng([brief.seed, 1])

        def subnets(step: int) -> tuple[Blueprint, ...]:
            near = space.mutate(rng, centres[rng.integers(0, len(centres), 1)], rate)[0]
            stranger = space.sample(rng, 1)[0]
            third = self._smallest if step % _SMALLEST_EVERY == 0 else space.blueprint(stranger)
            return self._largest, space.blueprint(near), third

        course = plan.course(brief.kind, brief.budget_cpu_s, self._largest)
        stream = training.batches(
            self._data.train_new, self._data.train_old, plan.BATCH, brief.task.augmentation, brief.seed
        )
        report = self._reporter("train")
        taken = training.train(self._net, stream, subnets, course, self._budget, report, self._crew)
        if taken == 0:
            raise PermanentError(
                f"expected time to train within {brief.budget_cpu_s:g} CPU-s, got none after "
                f"{self._budget.used_s:.1f} CPU-s of preparation; raise the budget"
            )
        self._evidence.append(
            Evidence(name="train_steps", value=float(taken), unit="steps", n=1, limit=float(course.steps))
        )

    def _explore(self, bounds: Bounds, seeds: Genes, reference: Genes) -> tuple[list[Look], int]:
        exam = self._exam(plan.CALIBRATION_ROWS)
        explorer = Explorer(self._space, exam, bounds, self._tools.strategy, reference, self._rng, self._crew)
        rows = min(len(self._data.search_new), plan.MAX_EXAM_ROWS)
        rows += min(len(self._data.search_old), plan.MAX_EXAM_ROWS)
        kind = self._brief.kind
        count = plan.looks(kind, self._brief.budget_cpu_s, rows, self._largest)
        share = plan.SHAPES[kind].search_end
        if bounds.violation(seeds).all():
            seeds = np.concatenate([seeds, limits_of.nearest(bounds)[None]])
        looks = explorer.explore(seeds, count, self._budget, share, self._reporter("search"))
        return looks, explorer.architectures

    def _exam(self, calibration_rows: int) -> Exam:
        """Return an exam whose calibration is mixed as the training was."""
        data, rng = self._data, np.random.default_rng([self._brief.seed, 3])
        if len(data.train_old):
            half = calibration_rows // 2
            rows = [data.train_new.some(calibration_rows - half, rng), data.train_old.some(half, rng)]
            x = images(np.concatenate([part.x for part in rows]))
        else:
            x = images(data.train_new.some(calibration_rows, rng).x)
            noise = torch.Generator().manual_seed(self._brief.seed)
            # Founding rows are clean files; the device's are jittered.
            x = jitter(x, self._brief.task.augmentation, noise)
        rng = np.random.default_rng([self._brief.seed, 4])
        new = data.search_new.some(plan.MAX_EXAM_ROWS, rng)
        return Exam(self._net, x, new, data.search_old.some(plan.MAX_EXAM_ROWS, rng))

    def _reporter(self, phase: str) -> Callable[[int, int, str], None]:
        def report(done: int, total: int, message: str) -> None:
            self._progress.report(phase, done, total, message)

        return report

    # -- the end ----------------------------------------------------------------------------------------

    def _finish(self, bounds: Bounds, looks: list[Look], architectures: int) -> SearchResult:
        final = Final(self._brief, self._space, self._data.search_new, self._net, bounds)
        finalists = final.hold(
            self._exam(plan.FINAL_CALIBRATION_ROWS),
            looks,
            self._old_before,
            self._tools.clock,
            self._reporter("final"),
        )
        winner = final.winner(finalists, self._old_before)
        self._evidence += choice.evidence_of(winner, finalists, looks, self._brief.limits, self._rng)
        cut = Evidence(name="phases_cut", value=float(len(self._budget.cut)), unit="phases", n=1)
        self._evidence.append(cut)
        self._progress.end(choice.story(winner))
        points = choice.points(self._space, looks, finalists)
        return self._write(winner, points, bounds.latency, architectures)

    def _write(
        self, winner: Finalist, points: tuple[Point, ...], costs: Latency, architectures: int
    ) -> SearchResult:
        space = self._space
        archive = Archive(format=1, space=space.name, points=points, table_us=costs.table_us)
        # One metadata key alone: the order of several is not fixed, and equal weights shall be equal bytes.
        about = {"instar": canonical({"format": 1, "space": space.name}).decode()}
        state = save(self._net.state(), metadata=about)
        files = {"bundle.onnx": winner.bundle, "state.safetensors": state, "archive.json": canonical(archive)}
        artefacts = {}
        for name, raw in files.items():
            write_whole(self._out / name, raw)
            artefacts[name] = Artefact(path=name, digest=digest_bytes(raw))
        result = SearchResult(
            brief=self._brief.id,
            winner=to_genome(space, winner.look.genes),
            bundle=artefacts["bundle.onnx"],
            state=artefacts["state.safetensors"],
            archive=artefacts["archive.json"],
            evidence=tuple(self._evidence),
            points=points,
            cpu_s=round(self._budget.used_s, 3),
            wall_s=round(self._tools.clock() - self._began, 3),
            architectures=architectures,
            versions=_versions(),
            phases_s=self._progress.phases_s,
        )
        write_whole(self._out / "result.json", canonical(result))
        return result


def _versions() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "onnx": onnx.__version__,
        "onnxruntime": ort.__version__,
        "numpy": np.__version__,
    }
