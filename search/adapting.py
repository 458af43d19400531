"""A search after the data moved: what the supernet knows, bent to the new rows without forgetting the old.

* First the parent alone is trained for a short while at a steady rate, its weights averaged, on three new
  rows to an old one: a step of one small network costs a fraction of a step of several, so this is where most
  of what was lost comes back, and first. It is kept only when the exam says that it is better.
* Then it is asked which rows calibrate its batch norms best: of both regimes, of the old or of the new alone.
  New rows alone may mislead them, where classes have become rarer and not other.
* Then the archive is scored; the parent and the best of it are the centres around which the supernet learns.
* Old rows carry the parent's answers, given before the first step.
"""

import numpy as np
from torch import Tensor, from_numpy

from search import choice, plan
from search.batches import Batches
from search.desk import Desk
from search.exam import Marks, clearly_better, outputs
from search.lessons import Lessons
from search.pace import BATCH
from search.space import Genes
from search.training import Course, Pupil

RATE = 0.15
"""Share of genes in which a trained neighbour differs from its centre."""

_CENTRES = 4
_SCORED = 5
_MIXES = (0.5, 0.0, 1.0)
_STEADY_RATE = 0.1
_SETTLING_REPLAY = 0.25


def examined(desk: Desk, genes: Genes) -> Marks:
    """Return how one subnet of the desk's net does on today's rows, with the calibration that suits it best.

    The mix that was best stays in the record.

    Args:
        desk: Of the search, or one with other weights.
        genes: (genes,) of the subnet.
    """
    tried: list[tuple[float, float, Marks]] = []
    for mix in _MIXES if len(desk.data.train_old) else (desk.record.mix,):
        desk.record.mix = mix
        marks = desk.examiner(plan.CALIBRATION_ROWS).examine(genes)
        tried.append((marks.accuracy + (marks.accuracy_old or 0.0), mix, marks))
    # The first is kept on a tie: both regimes together.
    _, desk.record.mix, marks = max(tried, key=lambda one: one[0])
    return marks


def settle(desk: Desk) -> None:
    """Train the parent alone for a short while, and keep that when it clearly helps."""
    pupil = settling(desk)
    pupil.train(desk.budget, desk.reporter("settle"), lambda _: None)
    settled = desk.with_net(pupil.averaged())
    desk.net.load(desk.parent.state)
    desk.reporter("before")(0, 1, "before: the parent on the new rows")
    before, mix_before = examined(desk, desk.parent.genes), desk.record.mix
    note_before(desk, before)
    after = examined(settled, desk.parent.genes)
    helped = clearly_better(after, before)
    if helped:
        desk.net.load(settled.net.state())
    else:
        desk.record.mix = mix_before
    desk.record.note("calibration_new", desk.record.mix, "share")
    desk.record.note("settled", float(helped), "yes or no")
    desk.record.evidence.append(choice.accuracy_evidence("accuracy_settled", after.new))


def settling(desk: Desk) -> Pupil:
    """Return the parent alone, in training at a steady rate."""
    data, blueprint = desk.data, desk.space.blueprint(desk.parent.genes)
    batches = Batches(
        desk.net,
        data.train_new,
        data.train_old,
        None,
        desk.entry.layout,
        desk.brief.task.augmentation,
        BATCH,
        desk.brief.seed + 2,
        _SETTLING_REPLAY,
    )
    course = Course("settle", plan.settling_steps(desk), 0, _STEADY_RATE, 0.3, steady=True)
    return Pupil(desk.net, batches, lambda _: (blueprint,), course, desk.crew)


def centres(desk: Desk) -> Genes:
    """Score the archive on today's rows; return the parent and the best of it that the limits allow."""
    genes = desk.parent.genes
    _, first = np.unique(desk.space.names(desk.space.normal(desk.archived(), genes)), return_index=True)
    archived = desk.space.normal(desk.archived(), genes)[np.sort(first)]
    others = (
        archived[1:][desk.bounds.violation(archived[1:]) == 0][:_SCORED]
        if len(archived) > 1
        else archived[1:]
    )
    desk.reporter("before")(0, len(others), "before: the archive on the new rows")
    marks = desk.crew.map(desk.examiner(plan.CALIBRATION_ROWS).examine, list(others))
    best = np.argsort([-mark.accuracy for mark in marks], kind="stable")[: _CENTRES - 1]
    return np.concatenate([genes[None], others[best]])


def note_before(desk: Desk, marks: Marks) -> None:
    """Write down how the parent does on today's rows."""
    record = desk.record
    record.old_before = marks.accuracy_old
    record.evidence.append(choice.accuracy_evidence("accuracy_before", marks.new))
    if len(marks.old):
        record.evidence.append(choice.accuracy_evidence("accuracy_old_before", marks.old))


def lessons(desk: Desk, centres: Genes) -> Lessons:
    """Return what an adaptation trains: around the centres, with the parent's answers on old rows."""
    return Lessons(desk, plan.course(desk), centres, RATE, memory_of(desk))


def memory_of(desk: Desk) -> Tensor | None:
    """Return what the parent says of the old rows; (old rows, classes)."""
    old = desk.data.train_old
    if not len(old):
        return None
    net = desk.net.twin()
    net.load(desk.parent.state)
    parent = desk.space.blueprint(desk.parent.genes)
    rows = old.some(plan.FINAL_CALIBRATION_ROWS, np.random.default_rng([desk.brief.seed, 7]))
    statistics = net.calibrate(parent, net.prepare(rows.x))
    return from_numpy(outputs(net, parent, statistics, old.x)[0])


def seeds(desk: Desk, centres: Genes) -> Genes:
    """Return the genomes that are examined first: the parent, the centres, their neighbours."""
    rng = np.random.default_rng([desk.brief.seed, 2])
    near = desk.space.mutate(rng, np.repeat(centres, 2, axis=0), RATE)
    return np.concatenate([desk.parent.genes[None], centres, near])
