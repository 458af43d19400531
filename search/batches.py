"""Batches of training rows, each a function of its number: a search that goes on after a kill sees the same.

* New rows, and a share of old rows where there are any; each part uses every row before any again.
* Jitter and order come from the seed and the number of the step, from nothing that has a memory.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from policies.terms import Augmentation
from search.blueprint import Layout
from search.dataset import Rows
from search.jitter import jitter
from search.supernet import Supernet


@dataclass(frozen=True)
class Batch:
    """Rows of one step.

    Args:
        x: (n, c, h, w) float32; old rows last.
        y: (n,) int64.
        memory: (old rows, classes) logits that the parent gave to the old rows; None without.
    """

    x: Tensor
    y: Tensor
    memory: Tensor | None


class Batches:
    """A stream that can be entered anywhere.

    Args:
        net: Prepares the rows.
        new: Rows since the change.
        old: Rows from before it; may be empty.
        memory: (len(old), classes) logits that the parent gave to them; None without.
        layout: Of the rows.
        augmentation: What jitter they may have.
        size: Rows of a batch.
        seed: Of all chance.
        replay: Share of old rows in a batch, where there are any; in (0, 1).
    """

    def __init__(
        self,
        net: Supernet,
        new: Rows,
        old: Rows,
        memory: Tensor | None,
        layout: Layout,
        augmentation: Augmentation,
        size: int,
        seed: int,
        replay: float = 0.5,
    ) -> None:
        again = int(replay * size) if len(old) else 0
        self._parts = [(new, size - again), (old, again)] if again else [(new, size)]
        self._prepared = [net.prepare(rows.x) for rows, _ in self._parts]
        self._memory = memory if again else None
        self._layout = layout
        self._augmentation = augmentation
        self._seed = seed
        self._orders: dict[tuple[int, int], NDArray[np.int64]] = {}

    def at(self, step: int) -> Batch:
        """Return the batch of one step."""
        chosen = [self._indices(part, step) for part in range(len(self._parts))]
        x = torch.cat([rows[torch.from_numpy(at)] for rows, at in zip(self._prepared, chosen, strict=True)])
        y = np.concatenate([rows.y[at] for (rows, _), at in zip(self._parts, chosen, strict=True)])
        noise = torch.Generator().manual_seed(
            int(np.random.SeedSequence([self._seed, 8, step]).generate_state(1)[0])
        )
        memory = None if self._memory is None else self._memory[torch.from_numpy(chosen[1])]
        return Batch(jitter(x, self._layout, self._augmentation, noise), torch.from_numpy(y), memory)

    def _indices(self, part: int, step: int) -> NDArray[np.int64]:
        """Return the rows of one part: a piece of an endless row of shuffled decks."""
        rows, count = self._parts[part]
        n, first = len(rows), step * count
        decks = range(first // n, (first + count - 1) // n + 1)
        row = np.concatenate([self._order(part, deck) for deck in decks])
        start = first - decks[0] * n
        return row[start : start + count]

    def _order(self, part: int, deck: int) -> NDArray[np.int64]:
        if (part, deck) not in self._orders:
            while len(self._orders) > 8:
                self._orders.pop(next(iter(self._orders)))
            rng = np.random.default_rng([self._seed, 9, part, deck])
            self._orders[part, deck] = rng.permutation(len(self._parts[part][0]))
        return self._orders[part, deck]
