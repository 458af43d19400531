"""Who learns at each step, and from what.

* At founding the largest subnet teaches; beside it learn a neighbour of it, a stranger, and the smallest.
* In an adaptation the parent teaches, and its neighbours and those of the best of the archive learn; a
  stranger comes in now and then, so that the rest of the net is not left behind. Measured on the meter
  reader's shift, at equal CPU time: parent 97.3 %, neighbours 96.7 %, largest 96.6 %; with the largest as
  teacher 96.7, 96.7 and 96.3.
* Strangers are drawn by cost: of many samples the one nearest to a place in the stratum whose turn it is, on
  a scale of ratios, because a sample of genes is nearly always of middling cost, and both ends are what the
  front is made of.
* Under the schedule ``shrinking`` the kinds of genes become elastic one after the other, the widest network
  first.

Source: Wang et al., AttentiveNAS (2021), for the bias to the middle; Cai et al., Once-for-All (2020), for
shrinking; Xu et al., Supernet shifting (2024), for training what the search visits.
"""

import numpy as np
from torch import Tensor

from policies.terms import Schedule
from search.batches import Batches
from search.blueprint import Blueprint
from search.desk import Desk
from search.pace import BATCH
from search.space import Genes
from search.training import Course, Pupil

_STRANGER_EVERY = 4
_STRATA = 5
_DRAWN = 32
_SHRINKING = (("size",), ("kernel",), ("depth", "exit"), ("expansion", "width", "squeeze"))
"""Which kinds become elastic when, as Once-for-All does it; each part takes an equal share of the steps."""


class Lessons:
    """The training of one search.

    Args:
        desk: Of the search.
        course: How long and how fast.
        centres: (k, genes) whose neighbours learn.
        rate: Share of genes in which a neighbour differs from its centre.
        memory: (old rows, classes) logits that the parent gave to the old rows.
    """

    def __init__(
        self, desk: Desk, course: Course, centres: Genes, rate: float, memory: Tensor | None
    ) -> None:
        self._desk = desk
        self._centres = centres
        self._rate = rate
        space = desk.space
        parent = desk.admission.parent
        self._teacher = space.blueprint(space.largest if parent is None else parent.genes)
        brief, data = desk.brief, desk.data
        batches = Batches(
            desk.net,
            data.train_new,
            data.train_old,
            memory,
            desk.entry.layout,
            brief.task.augmentation,
            BATCH,
            brief.seed,
        )
        self.pupil = Pupil(desk.net, batches, self.subnets, course, desk.crew)

    def subnets(self, step: int) -> tuple[Blueprint, ...]:
        """Return who learns at a step, the teacher first."""
        space = self._desk.space
        rng = np.random.default_rng([self._desk.brief.seed, 1, step])
        drawn = self._centres[rng.integers(0, len(self._centres), 2)]
        near, other = self._allowed(space.mutate(rng, drawn, self._rate), step)
        if self._desk.admission.parent is not None:
            third = self._stranger(rng, step) if step % _STRANGER_EVERY == 0 else other
            return self._teacher, space.blueprint(near), space.blueprint(third)
        pupils = [near, self._stranger(rng, step)]
        if self._desk.brief.schedule is Schedule.SANDWICH:
            # It is so cheap that it can learn at every step, and it needs it most.
            pupils.append(space.smallest)
        return self._teacher, *(space.blueprint(pupil) for pupil in pupils)

    def _stranger(self, rng: np.random.Generator, step: int) -> Genes:
        drawn = self._allowed(self._desk.space.sample(rng, _DRAWN), step)
        work = np.log(self._desk.costs.macs(drawn))
        share = (step % _STRATA + rng.random()) / _STRATA
        wanted = work.min() + share * np.ptp(work)
        chosen: Genes = drawn[int(np.abs(work - wanted).argmin())]
        return chosen

    def _allowed(self, genes: Genes, step: int) -> Genes:
        """Return genomes with the genes that are not elastic yet at their largest."""
        founding = self._desk.admission.parent is None
        if not founding or self._desk.brief.schedule is not Schedule.SHRINKING:
            return genes
        parts = len(_SHRINKING)
        open_kinds = _SHRINKING[: 1 + step * parts // max(1, self.pupil.memory.planned)]
        elastic = {kind for part in open_kinds for kind in part}
        held = np.array([kind not in elastic and kind != "precision" for kind in self._desk.space.kinds])
        return np.where(held, self._desk.space.largest, genes)
