"""Exports: rows of the store as one ``.npz`` that another process reads.

* The same rows give the same bytes (no date, no pickle), so that a brief's data has a digest.
* The digest is of the bytes that were made, not of what lies on the disk afterwards.
"""

import io
import os
from pathlib import Path

import numpy as np
import numpy.typing as npt

from policies.terms import Artefact
from policies.wire import digest_bytes

Array = npt.NDArray[np.generic]


def write(path: Path, mode: int = 0o644, **arrays: Array) -> Artefact:
    """Write arrays under their names; return path and digest.

    Args:
        path: Where; its folder is made. What stood there is replaced.
        mode: Permissions of the file.
        arrays: What to write; no object arrays.
    """
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    data = buffer.getvalue()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    # Its permissions hold from the first byte on: gate rows are never readable to others, not even briefly.
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(data)
    return Artefact(path=str(path), digest=digest_bytes(data))


def stack(inputs: list[bytes], dtype: np.dtype[np.generic], shape: tuple[int, ...]) -> Array:
    """Return stored inputs as one array of shape ``(n, *shape)``.

    >>> stack([b"ab", b"cd"], np.dtype(np.uint8), (2,)).tolist()
    [[97, 98], [99, 100]]
    """
    return np.frombuffer(b"".join(inputs), dtype).reshape(len(inputs), *shape)


def evenly(labels: npt.NDArray[np.int64], most: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Return at most ``most`` places, drawn as evenly over the classes as they allow, in order.

    Args:
        labels: Class of every row, shape ``(n,)``.
        most: How many places are wanted; >= 0.
        rng: Draws which rows of a class, and which classes get the last places.

    >>> labels = np.array([0] * 90 + [1] * 8 + [2] * 2)
    >>> np.bincount(labels[evenly(labels, 20, np.random.default_rng(1))]).tolist()
    [10, 8, 2]
    """
    shuffled = rng.permutation(len(labels))
    turn = np.empty(len(labels), np.int64)
    for one in np.unique(labels):
        mine = shuffled[labels[shuffled] == one]
        turn[mine] = np.arange(len(mine))
    # Every class's first row before any class's second; ties by lot.
    order = np.lexsort((rng.permutation(len(labels)), turn))
    return np.sort(order[:most])
