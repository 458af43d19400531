"""A founding search: a supernet from nothing, then the search over it."""

import numpy as np

from search import plan
from search.desk import Desk
from search.lessons import Lessons
from search.space import Genes
from search.training import Course

RATE = 0.4
"""Share of genes in which a trained neighbour differs from its centre."""


def lessons(desk: Desk, course: Course) -> Lessons:
    """Return what a founding search trains: around the largest, all the range."""
    return Lessons(desk, course, desk.space.largest[None], RATE, memory=None)


def seeds(desk: Desk) -> Genes:
    """Return the genomes that are examined first: both ends, and strangers."""
    space = desk.space
    rng = np.random.default_rng([desk.brief.seed, 2])
    random = space.sample(rng, plan.SHAPES[desk.brief.kind].least_looks - 2)
    return np.concatenate([space.largest[None], space.smallest[None], random])
