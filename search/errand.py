"""What an order asks for, made ready: a ``policies.terms.Brief`` and its data file.

* Paths in the brief are relative to the folder that it lies in.
* Rows without ``y`` are unlabelled, in a search of kind data; other kinds take labels alone.
* The same order over the same files gives the same bytes: roles are drawn by the seed, whole groups at once.
"""

import io
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from policies.document import load_task
from policies.errors import PermanentError
from policies.terms import Artefact, Brief, Heirloom, Limits, SearchResult, Source, Task, TriggerKind
from policies.wire import canonical, digest_bytes
from search.admission import read_brief
from search.dataset import UNLABELLED
from search.order import Data, Order, Slice
from search.progress import write_whole

BRIEF = "brief.json"
DATA = "data.npz"
PROFILE = "profile.json"
RESULT = "result.json"

Arrays = dict[str, NDArray[Any]]

_SAME = (
    "kind",
    "seed",
    "budget_cpu_s",
    "threads",
    "max_memory_bytes",
    "precisions",
    "schedule",
    "pseudo_labels",
    "exit_confidence",
)
"""What order and brief call the same."""

_NO_BOUND = 1_000_000
"""An edit distance that no two genomes of any space reach."""


def prepare(order: Order, base: Path, out: Path) -> Brief:
    """Write a brief and its data file into a folder, and return the brief.

    Args:
        order: What is asked.
        base: The folder of the order.
        out: An existing folder; receives ``brief.json`` and ``data.npz``.

    Raises:
        PermanentError: A file that the order names is missing or not what it should be.
    """
    for name in (*order.library, *([] if order.parent is None else [order.parent])):
        if (base / name).resolve() == out.resolve():
            raise PermanentError(f"expected another folder than the parent's for the result, got {out}")
    task = load_task(base / order.task)
    raw = _packed(_rows(order, task, base), order)
    write_whole(out / DATA, raw)
    bounds = {"max_edit_distance": _NO_BOUND}
    fields: dict[str, Any] = {
        "id": f"{task.name}-{order.kind}"[:63],
        "task": task,
        "limits": Limits(**bounds | order.limits.model_dump(exclude_none=True)),
        "data": Artefact(path=DATA, digest=digest_bytes(raw)),
        "parent_generation": 0,
        "parent_genome": None,
        "parent_state": None,
        "parent_archive": None,
        "profile": _profile(order, base, out),
        "library": tuple(_heirloom(base / name, out) for name in order.library),
    }
    fields |= {name: getattr(order, name) for name in _SAME}
    if order.parent is not None:
        fields |= _parent(base / order.parent, out)
    brief = Brief(**fields)
    write_whole(out / BRIEF, canonical(brief))
    return brief


def keep_profile(order: Order, base: Path, out: Path) -> Path | None:
    """Copy the costs that a search measured to where the order wants them, unless they lie there.

    Returns:
        Where they were written, or None.
    """
    if order.profile is None or (base / order.profile).exists() or not (out / PROFILE).is_file():
        return None
    kept = base / order.profile
    kept.parent.mkdir(parents=True, exist_ok=True)
    write_whole(kept, (out / PROFILE).read_bytes())
    return kept


def read_result(folder: Path) -> SearchResult:
    """Return what a search left in a folder.

    Raises:
        PermanentError: No search ended there.
    """
    path = folder / RESULT
    try:
        return SearchResult.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise PermanentError(
            f"expected the result of an earlier search at {path}, got {error}; run that search first"
        ) from error


def _profile(order: Order, base: Path, out: Path) -> Artefact | None:
    if order.profile is None or not (base / order.profile).is_file():
        return None
    path = base / order.profile
    return Artefact(path=os.path.relpath(path, out), digest=digest_bytes(path.read_bytes()))


def _left(artefact: Artefact, folder: Path, out: Path) -> Artefact:
    return Artefact(path=os.path.relpath(folder / artefact.path, out), digest=artefact.digest)


def _generation(folder: Path) -> int:
    """Return which generation a search made: its parent's and one; 1 where its brief is not there."""
    path = folder / BRIEF
    return 1 + (read_brief(path).parent_generation if path.is_file() else 0)


def _parent(folder: Path, out: Path) -> dict[str, Any]:
    result = read_result(folder)
    return {
        "parent_generation": _generation(folder),
        "parent_genome": result.winner,
        "parent_state": _left(result.state, folder, out),
        "parent_archive": _left(result.archive, folder, out),
    }


def _heirloom(folder: Path, out: Path) -> Heirloom:
    result = read_result(folder)
    accuracy = next((one.value for one in result.evidence if one.name == "accuracy_search"), None)
    if accuracy is None:
        raise PermanentError(f"expected evidence accuracy_search in {folder / RESULT}, got none")
    return Heirloom(
        generation=_generation(folder),
        genome=result.winner,
        state=_left(result.state, folder, out),
        accuracy=accuracy,
    )


# -- the rows ---------------------------------------------------------------------------------------------


def _rows(order: Order, task: Task, base: Path) -> list[Arrays]:
    if order.data is not None:
        found = [_read(base / order.data.path, order.data, order)]
        replay = order.data.replay
        if replay is not None:
            old = _read(base / replay.path, replay, order)
            found.append(old | {"regime": np.zeros_like(old["regime"])})
        return found
    if not task.sources:
        raise PermanentError(f"expected [data] in the order or sources in {base / order.task}, got neither")
    folder = (base / order.task).parent
    return [_read(folder / source.path, source, order) for source in task.sources]


def _read(path: Path, rows: Slice | Source, order: Order) -> Arrays:
    """Return arrays x, y, regime and, if the file has it, group."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in ("x", "y", "regime", "group") if name in file}
    except (OSError, ValueError, EOFError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise PermanentError(f"expected an .npz with arrays x and y at {path}, got {error}") from error
    shapes = {name: array.shape for name, array in arrays.items()}
    if any(len(shape) < 1 if name == "x" else len(shape) != 1 for name, shape in shapes.items()):
        raise PermanentError(
            f"expected x of one row or more, and y, regime and group of one number a row in {path}, "
            f"got shapes {shapes}"
        )
    n = len(arrays.get("x", ()))
    if order.kind is TriggerKind.DATA:
        arrays.setdefault("y", np.full(n, UNLABELLED))
    arrays.setdefault("regime", np.ones(n, dtype=np.uint8))
    lengths = {name: len(array) for name, array in arrays.items()}
    if not {"x", "y"} <= set(arrays) or set(lengths.values()) != {n}:
        raise PermanentError(f"expected arrays x and y of one length in {path}, got lengths {lengths}")
    last = n if rows.last is None else rows.last
    if not rows.first < last <= n:
        raise PermanentError(f"expected rows {rows.first} to {last} in {path}, got {n} rows")
    if arrays["y"].dtype.kind not in "iu" or not np.isin(arrays["regime"], (0, 1)).all():
        raise PermanentError(
            f"expected whole numbers in y, and 0 or 1 in regime, in {path}, "
            f"got y of {arrays['y'].dtype}, regimes {np.unique(arrays['regime'])[:5].tolist()}"
        )
    return {name: array[rows.first : last] for name, array in arrays.items()}


def draw_roles(group: NDArray[Any], share: float, seed: int) -> NDArray[np.uint8]:
    """Return 1 for rows that rank and 0 for rows that train, the same for all of a group.

    Args:
        group: (n,) what near-duplicates have in common; two groups or more.
        share: About so many of the rows rank, at least one group and never all; in (0, 1).
        seed: Of the draw.

    >>> draw_roles(np.array([5, 5, 6, 6, 7, 7, 8, 8]), 0.25, seed=1).tolist()
    [0, 0, 0, 0, 0, 0, 1, 1]
    """
    _, where, sizes = np.unique(group, return_inverse=True, return_counts=True)
    drawn = np.random.default_rng([seed, 7]).permutation(len(sizes))
    # A large group that would overshoot by much trains instead; it takes nothing of the others' share.
    able = np.where(sizes[drawn] <= 1.5 * share * len(group), sizes[drawn], 0)
    before = np.cumsum(able) - able
    ranks = np.zeros(len(sizes), dtype=np.uint8)
    # One group ranks in any case.
    fits = (before < share * len(group)) & (before + sizes[drawn] <= 1.5 * share * len(group))
    fits[-1] = False
    if not fits.any():
        fits[int(sizes[drawn][:-1].argmin())] = True
    ranks[drawn[fits]] = 1
    return ranks[where]


def _packed(parts: list[Arrays], order: Order) -> bytes:
    """Return the ``.npz`` that a worker reads."""
    kinds = {("group" in part, part["x"].dtype.str, part["x"].shape[1:]) for part in parts}
    if len(kinds) != 1:
        raise PermanentError(
            f"expected x of one type and shape in all files, and groups in all or none, got {sorted(kinds)}"
        )
    x, y, regime = (np.concatenate([part[name] for part in parts]) for name in ("x", "y", "regime"))
    group = np.concatenate([part.get("group", part["y"]) for part in parts])
    if "group" not in parts[0]:
        group = np.arange(len(y))
    if len(np.unique(group)) < 2:
        raise PermanentError(
            f"expected two groups of rows or more, to train and to rank, got {len(y)} in one"
        )
    share = (order.data or Data(path="")).search_share
    packed = io.BytesIO()
    # numpy gives every member the date 1980-01-01, so that equal arrays are equal bytes.
    np.savez(
        packed,
        x=x,
        y=y.astype(np.int64),
        role=draw_roles(group, share, order.seed),
        regime=regime.astype(np.uint8),
    )
    return packed.getvalue()
