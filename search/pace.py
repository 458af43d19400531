"""How fast this machine trains: CPU-seconds of a step, as a line over its subnets and their products.

It is measured on real steps, with all that a step takes beside its subnets: rows, jitter, clipping, the
optimiser.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from policies.terms import Augmentation
from search.batches import Batches
from search.blueprint import Blueprint
from search.crew import Crew
from search.dataset import Rows
from search.profile import random_rows
from search.space import Space
from search.supernet import Supernet
from search.training import Course, Pupil

BATCH = 64

_ROWS = 256
_TURNS = 5
_LEAST_PER_MAC_S = 1e-13
_LEAST_S = 1e-4


@dataclass(frozen=True)
class Pace:
    """CPU-seconds of training: for each row and product, for each subnet and for each step besides."""

    per_mac: float
    per_net: float
    per_step: float


def pace(space: Space, augmentation: Augmentation, cpu: Callable[[], float], seed: int) -> Pace:
    """Measure this machine.

    The best of a few steps counts: load only adds.

    Args:
        space: Whose networks.
        augmentation: Of the task.
        cpu: Returns CPU-seconds of this process.
        seed: Of weights and rows.
    """
    small, large = (space.blueprint(genes) for genes in (space.smallest, space.largest))
    crew = Crew(1)

    def best(*blueprints: Blueprint) -> float:
        net = Supernet(space.shapes(), space.entries()[0], seed)
        rng = np.random.default_rng([seed, 12])
        rows = Rows(random_rows(large.entry, _ROWS, rng), rng.integers(0, large.classes, _ROWS))
        nothing = rows.take(np.zeros(0, dtype=np.int64))
        batches = Batches(net, rows, nothing, None, large.entry.layout, augmentation, BATCH, seed)
        pupil = Pupil(net, batches, lambda _: blueprints, Course("pace", _TURNS, 0, 0.01, 1.0), crew)
        times = []
        for step in range(_TURNS):
            began = cpu()
            pupil.step(step)
            times.append(cpu() - began)
        return min(times)

    alone, three, dear = best(small), best(small, small, small), best(large)
    crew.close()
    products = BATCH * (large.macs - small.macs)
    per_mac = max((dear - alone) / products, _LEAST_PER_MAC_S)
    per_net = max((three - alone) / 2 - BATCH * small.macs * per_mac, _LEAST_S)
    per_step = max(alone - per_net - BATCH * small.macs * per_mac, _LEAST_S)
    return Pace(per_mac, per_net, per_step)
