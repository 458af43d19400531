"""How fast this machine trains: CPU-seconds of one subnet on one batch, as a line over its products."""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F

from search.blueprint import Blueprint
from search.profile import random_rows
from search.space import Space
from search.supernet import Supernet

BATCH = 64

_TURNS = 3
_LEAST_PER_MAC_S = 1e-13
_LEAST_PER_NET_S = 1e-4


def pace(space: Space, cpu: Callable[[], float], seed: int) -> tuple[float, float]:
    """Return CPU-seconds of training for each row and product, and for each subnet on a batch besides.

    The best of a few turns counts: load only adds.
    """
    net = Supernet(space.shapes(), space.entries()[0], seed)
    small, large = (space.blueprint(genes) for genes in (space.smallest, space.largest))
    rng = np.random.default_rng([seed, 12])
    x = net.prepare(random_rows(large.entry, BATCH, rng))
    y = torch.from_numpy(rng.integers(0, large.classes, BATCH))
    weights = list(net.parameters().values())

    def once(blueprint: Blueprint) -> float:
        began = cpu()
        loss = F.cross_entropy(net.forward(blueprint, x)[0], y)
        torch.autograd.grad(loss, weights, allow_unused=True)
        return cpu() - began

    once(large)
    best = [min(once(one) for _ in range(_TURNS)) for one in (small, large)]
    products = [one.macs * BATCH for one in (small, large)]
    per_mac = max((best[1] - best[0]) / (products[1] - products[0]), _LEAST_PER_MAC_S)
    return per_mac, max(best[0] - per_mac * products[0], _LEAST_PER_NET_S)
