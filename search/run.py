"""One search, from an admitted brief to the files of a result.

Called by ``search.__main__``; every clock is handed in. The kinds differ in what comes before the final:
founding trains from nothing, data tries earlier regimes and then adapts the parent's supernet, latency only
chooses again; without labels the parent is refreshed. The final is the same for all.

A search keeps a checkpoint. Started again with the same brief and folder it goes on where it was, and comes
to the same winner and the same bytes as if it had not been broken off.
"""

import platform
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch
from safetensors.torch import save

from policies.errors import PermanentError
from policies.terms import Artefact, Point, SearchResult, TriggerKind
from policies.wire import canonical, digest_bytes
from search import adapting, choice, founding, plan, refreshing, reselecting
from search import bounds as limits_of
from search.admission import Admission
from search.archive import Archive
from search.blueprint import Blueprint
from search.checkpoint import Checkpoint, Kept, to_look, to_memory, to_moment, to_seen
from search.choice import Finalist
from search.crew import Crew
from search.desk import Desk, Tools
from search.explore import Explorer, Look
from search.final import Final
from search.lessons import Lessons
from search.library import Returned, returned
from search.opening import open_desk
from search.progress import Progress, write_whole
from search.space import Genes, Space, to_genes, to_genome
from search.training import Pupil

__all__ = ["Run", "Tools"]


class Run:
    """A search at work."""

    def __init__(self, admission: Admission, out: Path, tools: Tools) -> None:
        brief = admission.brief
        self._admission = admission
        self._out = out
        self._tools = tools
        self._began = tools.clock()
        # What another strategy or other libraries left would be taken up to another end.
        about = {"brief": brief.model_dump(mode="json"), "strategy": repr(tools.strategy), **_versions()}
        self._key = digest_bytes(canonical(about))
        self._checkpoint = Checkpoint(out, self._key)
        self._found = self._checkpoint.find()
        kept = None if self._found is None else self._found.kept
        spent = 0.0 if kept is None else kept.cpu_s
        self._earlier_s = 0.0 if kept is None else kept.wall_s
        self._spent_s = spent
        # To load the libraries again takes seconds; were they to count, a search that goes on would be cut.
        self._restart_s = 0.0 if kept is None else tools.cpu()
        self._crew = Crew(brief.threads)
        self._progress = Progress(out, self._cpu_s, tools.say)
        self._explorer: Explorer | None = None
        self._trained = False
        self._last = kept
        if kept is not None:
            self._progress.phases_s.update(kept.phases_s)
            tools.say(f"{spent:6.1f} CPU-s  going on from the checkpoint of an earlier run")

    def _cpu_s(self) -> float:
        """Return the search's CPU-seconds, those before a restart included, but no second start."""
        return self._spent_s + self._tools.cpu() - self._restart_s

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
        found = self._found
        kept = None if found is None else found.kept
        desk = open_desk(self._admission, self._tools, self._crew, self._progress, self._cpu_s, kept)
        write_whole(self._out / "profile.json", canonical(desk.costs.profile))
        limits_of.nearest(desk.bounds)
        kind = desk.brief.kind
        if kind is TriggerKind.LATENCY:
            looks = reselecting.reselect(desk)
            return self._finish(desk, looks, len(looks), tune=False)
        if not desk.data.labelled:
            return self._refresh(desk)
        if kind is TriggerKind.FOUNDING:
            lessons = self._restored(founding.lessons(desk, plan.course(desk)))
            self._train(desk, lessons)
            return self._explored(desk, founding.seeds(desk), desk.space.smallest)
        back, centres = self._before(desk)
        if back is not None:
            return self._inherit(back)
        lessons = self._restored(adapting.lessons(desk, centres))
        self._train(desk, lessons)
        return self._explored(desk, adapting.seeds(desk, centres), desk.parent.genes)

    # -- the parts ------------------------------------------------------------------------------------------

    def _before(self, desk: Desk) -> tuple[Returned | None, Genes]:
        """Score what there is on today's rows; a search that goes on has done it already."""
        if self._found is not None and self._found.kept.centres:
            return None, np.array(self._found.kept.centres, dtype=np.int64)
        if desk.admission.library:
            parent = adapting.examined(desk, desk.parent.genes)
            back = returned(desk, parent)
            if back is not None:
                adapting.note_before(desk, parent)
                return back, desk.parent.genes[None]
        adapting.settle(desk)
        centres = adapting.centres(desk)
        desk.record.centres = tuple(tuple(int(gene) for gene in row) for row in centres)
        return None, centres

    def _restored(self, lessons: Lessons) -> Lessons:
        found = self._found
        if found is not None and found.kept.training is not None:
            lessons.pupil.restore(to_memory(found.kept.training), found.tensors)
            self._trained = found.kept.trained
        return lessons

    def _train(self, desk: Desk, lessons: Lessons) -> None:
        if self._trained:
            return

        def keep(pupil: Pupil) -> None:
            self._keep(desk, pupil, with_tensors=True)

        taken = lessons.pupil.train(desk.budget, desk.reporter("train"), keep)
        # An adaptation has an answer already, the parent that has settled; a founding has none.
        if taken == 0 and desk.admission.parent is None:
            raise PermanentError(
                f"expected time to train within {desk.budget.total_s:g} CPU-s, got none after "
                f"{desk.budget.used_s:.1f} CPU-s of preparation; raise the budget"
            )
        self._trained = True
        desk.record.note("train_steps", float(taken), "steps", limit=float(plan.course(desk).steps))
        desk.record.note("rollbacks", float(lessons.pupil.memory.rollbacks), "rollbacks")
        self._keep(desk, lessons.pupil, with_tensors=True)

    def _explored(self, desk: Desk, seeds: Genes, reference: Genes) -> SearchResult:
        brief = desk.brief
        explorer = Explorer(
            desk.space,
            desk.examiner(plan.CALIBRATION_ROWS),
            desk.bounds,
            self._tools.strategy,
            reference,
            brief.seed,
            self._crew,
        )
        self._explorer = explorer
        if self._found is not None:
            kept = self._found.kept
            guessed = np.array(kept.guessed, dtype=np.int64)
            explorer.resume([to_look(seen) for seen in kept.looks], kept.rounds, guessed)
        if desk.bounds.violation(seeds).all():
            seeds = np.concatenate([seeds, limits_of.nearest(desk.bounds)[None]])
        share = plan.SHAPES[brief.kind].search_end
        looks = explorer.explore(
            seeds,
            plan.looks(desk),
            desk.budget,
            share,
            desk.reporter("search"),
            lambda: self._keep(desk, None, with_tensors=False),
        )
        return self._finish(desk, looks, explorer.architectures, tune=True)

    def _keep(self, desk: Desk, pupil: Pupil | None, *, with_tensors: bool) -> None:
        """Write the checkpoint."""
        record, explorer = desk.record, self._explorer
        before = self._last
        training = before.training if before else None
        kept = Kept(
            format=1,
            search=self._key,
            profile=desk.costs.profile,
            cpu_s=round(self._cpu_s(), 3),
            wall_s=round(self._earlier_s + self._tools.clock() - self._began, 3),
            phases_s=self._progress.so_far(),
            cut=tuple(desk.budget.cut),
            evidence=tuple(record.evidence),
            old_before=record.old_before,
            mix=record.mix,
            centres=record.centres,
            training=training if pupil is None else to_moment(pupil.memory),
            trained=self._trained,
            tensors=before.tensors if before else None,
            looks=() if explorer is None else tuple(to_seen(look) for look in explorer.looks.values()),
            rounds=0 if explorer is None else explorer.rounds,
            guessed=() if explorer is None else tuple(int(name) for name in explorer.guessed),
        )
        self._last = self._checkpoint.keep(
            kept, pupil.tensors() if pupil is not None and with_tensors else None
        )

    # -- the end --------------------------------------------------------------------------------------------

    def _refresh(self, desk: Desk) -> SearchResult:
        subnet = refreshing.refresh(desk)
        final = Final(desk, None)
        winner = final.one(subnet, desk.parent.genes)
        final.winner([winner])
        desk.record.evidence += choice.evidence_of(winner, [winner], [], desk.costs, desk.brief)
        points = tuple(point.model_copy(update={"measured": False}) for point in desk.parent.archive.points)
        return self._write(desk, winner, points, 1)

    def _inherit(self, back: Returned) -> SearchResult:
        desk = back.desk
        desk.record.note("regime_returned", float(back.generation), "generation")
        desk.record.note("calibration_new", desk.record.mix, "share")
        return self._finish(desk, [back.look], len(desk.admission.library), tune=False)

    def _finish(self, desk: Desk, looks: list[Look], architectures: int, *, tune: bool) -> SearchResult:
        final = Final(desk, adapting.memory_of(desk) if tune and desk.admission.parent is not None else None)
        finalists = final.hold(looks, tune=tune)
        winner = final.with_exit(final.winner(finalists))
        desk.record.evidence += choice.evidence_of(winner, finalists, looks, desk.costs, desk.brief)
        points = choice.points(desk.space, desk.costs, looks, finalists, winner, desk.brief.seed)
        if not tune and desk.admission.parent is not None:
            points = _with_old(desk.space, points, desk.admission.parent.archive.points)
        return self._write(desk, winner, points, architectures)

    def _write(
        self, desk: Desk, winner: Finalist, points: tuple[Point, ...], architectures: int
    ) -> SearchResult:
        desk.record.note("phases_cut", float(len(desk.budget.cut)), "phases")
        space, profile = desk.space, desk.costs.profile
        self._progress.end(choice.story(winner, desk.costs))
        archive = Archive(format=2, space=space.name, points=points, profile=profile)
        # One metadata key alone: the order of several is not fixed, and equal weights shall be equal bytes.
        about = {"instar": canonical({"format": 1, "space": space.name}).decode()}
        # Tuned or not, what is served and what a later search starts from are the same weights.
        state = save(winner.subnet.net.state(), metadata=about)
        files = {"bundle.onnx": winner.bundle, "state.safetensors": state, "archive.json": canonical(archive)}
        artefacts = {}
        for name, raw in files.items():
            write_whole(self._out / name, raw)
            artefacts[name] = Artefact(path=name, digest=digest_bytes(raw))
        cpu_s = desk.budget.used_s + self._restart_s
        desk.record.note("cpu_s", cpu_s, "CPU-s", limit=desk.budget.total_s)
        desk.record.note("energy_search_j", cpu_s * profile.watts, f"J ({profile.energy})")
        result = SearchResult(
            brief=desk.brief.id,
            seed=desk.brief.seed,
            winner=to_genome(space, winner.look.genes),
            bundle=artefacts["bundle.onnx"],
            state=artefacts["state.safetensors"],
            archive=artefacts["archive.json"],
            evidence=tuple(desk.record.evidence),
            points=points,
            cpu_s=round(cpu_s, 3),
            wall_s=round(self._earlier_s + self._tools.clock() - self._began, 3),
            architectures=architectures,
            versions=_versions(),
            phases_s=self._progress.phases_s,
        )
        write_whole(self._out / "result.json", canonical(result))
        self._checkpoint.drop()
        return result


def _with_old(space: Space, points: tuple[Point, ...], old: tuple[Point, ...]) -> tuple[Point, ...]:
    """Return points, and those of an archive whose accuracy is of another day; each network once."""

    def network(point: Point) -> Blueprint:
        return space.blueprint(to_genes(space, point.genome))

    # Genes that say nothing are spelled as the parent has them: one network may have two genomes.
    known = {network(point) for point in points}
    return points + tuple(
        point.model_copy(update={"measured": False}) for point in old if network(point) not in known
    )


def _versions() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "onnx": onnx.__version__,
        "onnxruntime": ort.__version__,
        "numpy": np.__version__,
    }
