"""The rows that a search may see, checked: what trains, what ranks, what is new, what is old.

* ``role`` 0 trains and 1 ranks; ``regime`` 1 is since the change (or founding), 0 is replay.
* A row of any other role is refused: the gate's rows must never come here.
* A label of -1 is an unknown one: a search without any new label only refreshes what is there.
* Too little to learn from, or a single class, is refused before any training.
"""

import io
import zipfile
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policies.errors import PermanentError
from policies.terms import Datatype, Task

UNLABELLED = -1

_DTYPES: dict[Datatype, np.dtype[Any]] = {
    Datatype.UINT8: np.dtype(np.uint8),
    Datatype.FP32: np.dtype(np.float32),
}

MIN_TRAIN_ROWS = 100
MIN_SEARCH_ROWS = 50

_ARRAYS = ("x", "y", "role", "regime")


@dataclass(frozen=True)
class Rows:
    """Inputs (n, ...) as they are served and labels (n,) int64; ``UNLABELLED`` where nobody knows."""

    x: NDArray[np.generic]
    y: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.y)

    def take(self, chosen: NDArray[np.int64] | NDArray[np.bool_]) -> "Rows":
        """Return some of the rows."""
        return Rows(self.x[chosen], self.y[chosen])

    def some(self, n: int, rng: np.random.Generator) -> "Rows":
        """Return up to ``n`` of the rows, drawn evenly, in their order."""
        return self if len(self) <= n else self.take(np.sort(rng.permutation(len(self))[:n]))


@dataclass(frozen=True)
class Dataset:
    """Rows by role and regime; ``old`` may be empty."""

    train_new: Rows
    train_old: Rows
    search_new: Rows
    search_old: Rows

    @property
    def labelled(self) -> bool:
        """Tell whether the new rows carry labels; rows without are left out where others have them."""
        return bool((self.train_new.y != UNLABELLED).any())


def read_dataset(raw: bytes, task: Task, *, split_regimes: bool) -> Dataset:
    """Read and check an ``.npz`` of labelled rows.

    Args:
        raw: The file.
        task: What its rows must fit.
        split_regimes: False where nothing has changed: all rows then count as new.

    Raises:
        PermanentError: The file is not what a search can learn from; the message says why.
    """
    x, y, role, regime = _arrays(raw)
    shape, dtype = task.input.shape[1:], _DTYPES[task.input.datatype]
    if x.dtype != dtype or x.shape[1:] != shape:
        wanted = ", ".join(map(str, ("n", *shape)))
        raise PermanentError(f"expected x of {dtype} ({wanted}) in the data, got {x.dtype} {x.shape}")
    if dtype.kind == "f" and not np.isfinite(x.astype(np.float32)).all():
        raise PermanentError("expected finite numbers in x of the data, got NaN or infinity; clean the rows")
    if any(one.ndim != 1 for one in (y, role, regime)):
        raise PermanentError(
            f"expected y, role and regime of one number a row, got shapes {y.shape}, {role.shape}, "
            f"{regime.shape}"
        )
    if not (len(x) == len(y) == len(role) == len(regime)):
        raise PermanentError(
            f"expected arrays of one length, got x {len(x)}, y {len(y)}, role {len(role)}, "
            f"regime {len(regime)}; export the data again"
        )
    if not np.isin(role, (0, 1)).all():
        raise PermanentError(
            f"expected roles 0 (train) and 1 (search) in the data, got {np.unique(role).tolist()}; "
            "rows of other roles must not reach a search"
        )
    _check_labels(y, len(task.classes))
    rows = Rows(x, y.astype(np.int64))
    new = regime == 1 if split_regimes else np.ones(len(y), dtype=np.bool_)
    known = rows.y != UNLABELLED
    # Unlabelled rows count only where there is nothing else to go by.
    there = new & known if (new & known & (role == 0)).any() else new
    data = Dataset(
        train_new=rows.take(there & (role == 0)),
        train_old=rows.take(~new & known & (role == 0)),
        search_new=rows.take(there & (role == 1)),
        search_old=rows.take(~new & known & (role == 1)),
    )
    if data.labelled:
        _check_enough(data)
    elif len(data.train_new) < MIN_TRAIN_ROWS or not len(data.search_new):
        raise PermanentError(
            f"expected at least {MIN_TRAIN_ROWS} new rows of role train and one of role search, got "
            f"{len(data.train_new)} and {len(data.search_new)}; wait for more"
        )
    return data


def _check_labels(y: NDArray[np.generic], classes: int) -> None:
    if y.dtype.kind not in "iu":
        raise PermanentError(f"expected whole numbers as labels, got {y.dtype}")
    if len(y) and (int(y.min()) < UNLABELLED or int(y.max()) >= classes):
        raise PermanentError(
            f"expected labels in [0, {classes}), or {UNLABELLED} where there is none, got "
            f"{int(y.min())} to {int(y.max())}"
        )


def _arrays(raw: bytes) -> list[NDArray[Any]]:
    try:
        with np.load(io.BytesIO(raw), allow_pickle=False) as file:
            return [file[name] for name in _ARRAYS]
    except (ValueError, OSError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise PermanentError(f"expected an .npz with arrays {', '.join(_ARRAYS)}, got {error}") from error


def _check_enough(data: Dataset) -> None:
    for name, rows, least in (
        ("train", data.train_new, MIN_TRAIN_ROWS),
        ("search", data.search_new, MIN_SEARCH_ROWS),
    ):
        if len(rows) < least:
            raise PermanentError(
                f"expected at least {least} new rows of role {name}, got {len(rows)}; wait for more labels "
                "(or give none at all: then the parent is refreshed without them)"
            )
        found = np.unique(rows.y)
        if len(found) < 2:
            raise PermanentError(
                f"expected at least two classes among {len(rows)} rows of role {name}, got only class "
                f"{int(found[0])}; one class cannot be told from nothing"
            )
