"""A network in two runs: an easy row leaves in the middle, and is spared the rest.

* The bundle's bytes, which are proven already, are cut into head and tail (``policies.cut``). The whole is
  not needed beside them: without a confidence, every row goes through both.
* A row leaves when the largest share of its softmax at the exit reaches the confidence that the policy names.
  Its logits are then those of the exit; it has no embedding, and zeros stand in its place.
* What a row is answered depends on its own numbers alone, as far as the runtime computes a row alike in every
  batch. A bundle for which it does not is found out while its pace is measured (``pace.py``).
* Who stays runs in one batch of its own.

Called by ``slot.py``. Knows no policy: it is told the confidence at every call.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import log
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policies.bundle import BundleMeta
from policies.cut import cut

Floats = NDArray[np.float32]
Load = Callable[[bytes], Any]
"""Makes a session of the runtime from a file's bytes."""

_ENDS = ["logits", "embedding"]


@dataclass(frozen=True, slots=True)
class Staged:
    """Two sessions of one bundle, and the names of what passes through them."""

    head: Any
    tail: Any
    entry: str
    output: str
    trunk: str
    embedding: int

    def run(self, x: NDArray[Any], confidence: float | None) -> tuple[Floats, Floats, NDArray[np.bool_]]:
        """Return logits ``(n, classes)``, embedding ``(n, d)`` and who left early ``(n,)`` of a batch.

        Args:
            x: Rows ``(n, ...)`` in the model's input type.
            confidence: At which a row leaves, in (0, 1]; None: nobody does.

        Raises:
            ORT_ERRORS: As ``slot.py`` lists them: the runtime could not run the batch.
        """
        exits, trunk = self.head.run([self.output, self.trunk], {self.entry: x})
        gone = left(exits, confidence)
        leaving = np.count_nonzero(gone)
        if leaving == 0:
            return *self.tail.run(_ENDS, {self.trunk: trunk}), gone
        embedding = np.zeros((len(x), self.embedding), np.float32)
        if leaving < len(x):
            stays = ~gone
            exits[stays], embedding[stays] = self.tail.run(_ENDS, {self.trunk: trunk[stays]})
        return exits, embedding, gone

    def exit_logits(self, x: NDArray[Any]) -> Floats:
        """Return what the exit says of each row, ``(n, classes)``, whoever would leave; for a self-test."""
        exits: Floats = self.head.run([self.output], {self.entry: x})[0]
        return exits


def left(exits: Floats, confidence: float | None) -> NDArray[np.bool_]:
    """Return which rows are sure enough to leave, ``(n,)``.

    In logarithms, for these are the fewest steps, and each adds to what a request waits. Guards ask with the
    same words. An answer that is not finite may leave or stay: it is an error either way.

    >>> left(np.array([[0.0, 0.0], [3.0, 0.0]], np.float32), 0.9).tolist()
    [False, True]
    """
    if confidence is None:
        return np.zeros(len(exits), np.bool_)
    # Without a word on what is no number: whoever counts answers that are not finite says so.
    with np.errstate(invalid="ignore"):
        total = np.logaddexp.reduce(exits, axis=1, dtype=np.float64)
    return np.asarray(exits.max(axis=1) >= total + log(confidence))


def split(raw: bytes, meta: BundleMeta, load: Load) -> Staged:
    """Return a bundle in two.

    Args:
        raw: The bytes of the bundle, of the digest that was asked for.
        meta: What they say of themselves; it has an exit.
        load: Makes a session of each half.

    Raises:
        ValueError: The bundle has no exit.
        TamperError: Its graph is not as its text says.
    """
    if meta.exit is None:
        raise ValueError(f"expected a bundle with an exit, {meta.brief} made one without")
    halves = cut(raw, meta.exit)
    return Staged(
        head=load(halves.head),
        tail=load(halves.tail),
        entry=meta.input.name,
        output=meta.exit.output,
        trunk=meta.exit.trunk.name,
        embedding=meta.outputs[1].shape[1],
    )
