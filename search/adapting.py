"""A search after the data moved: what the supernet knows, bent to the new rows without forgetting the old.

* The archive is scored on the new rows before anything is trained; the parent and the best of it are the
  centres around which neighbours learn.
* Old rows carry the answers of the parent's largest subnet, given before the first step.
"""

import numpy as np
from torch import Tensor, from_numpy

from search import choice, plan
from search.desk import Desk
from search.exam import Marks, outputs
from search.lessons import Lessons
from search.space import Genes

RATE = 0.15
"""Share of genes in which a trained neighbour differs from its centre."""

_CENTRES = 4
_SCORED = 8


def before(desk: Desk) -> tuple[Marks, Genes]:
    """Score parent and archive on today's rows; return the parent's marks, and the centres, the parent
    first."""
    report = desk.reporter("before")
    report(0, 1, "before: the archive on the new rows")
    archived = desk.archived()[: 1 + _SCORED]
    marks = desk.crew.map(desk.examiner(plan.CALIBRATION_ROWS).examine, list(archived))
    note_before(desk, marks[0])
    accuracies = np.array([mark.accuracy for mark in marks[1:]])
    best = np.argsort(-accuracies, kind="stable")[: _CENTRES - 1]
    return marks[0], np.concatenate([archived[:1], archived[1:][best]])


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
    """Return what the parent's largest subnet says of the old rows; (old rows, classes)."""
    old = desk.data.train_old
    if not len(old):
        return None
    net = desk.net.twin()
    net.load(desk.parent.state)
    largest = desk.space.blueprint(desk.space.largest)
    rows = old.some(plan.FINAL_CALIBRATION_ROWS, np.random.default_rng([desk.brief.seed, 7]))
    statistics = net.calibrate(largest, net.prepare(rows.x))
    return from_numpy(outputs(net, largest, statistics, old.x)[0])


def seeds(desk: Desk, centres: Genes) -> Genes:
    """Return the genomes that are examined first: the parent, the centres, their neighbours."""
    rng = np.random.default_rng([desk.brief.seed, 2])
    near = desk.space.mutate(rng, np.repeat(centres, 2, axis=0), RATE)
    return np.concatenate([desk.parent.genes[None], centres, near])
