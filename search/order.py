"""An order: the TOML file that a person writes to have a search run without a daemon.

Called by ``python -m search run``. ``read_order`` reads and refuses; ``search.errand`` makes of an order
what a worker takes.

* Every key, with its meaning, stands in ``docs/search.md``. An unknown key is refused, and so is a limit that
  is not written.
* A refusal names the file, the line and the key, what was expected and what came.
* Paths are relative to the order.

It does not judge whether rows fit the task or limits can be met: admission does, for every brief.
"""

import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

from pydantic import Field, ValidationError

from policies.errors import PermanentError
from policies.terms import MOST, Precision, Schedule, Term, TriggerKind

Place = tuple[str | int, ...]

_MEMORY_BYTES = 3 * 2**29


class Slice(Term):
    """Rows of an ``.npz`` with arrays ``x``, ``y`` and, where it has them, ``regime`` and ``group``."""

    path: str
    first: int = Field(default=0, ge=0, description="Inclusive.")
    last: int | None = Field(default=None, gt=0, description="Exclusive; None: to the end.")


class Data(Slice):
    """The table ``[data]``."""

    replay: Slice | None = Field(default=None, description="Rows of before the change.")
    search_share: float = Field(default=0.25, gt=0.0, lt=1.0, description="Of the rows: they rank only.")


class Ceilings(Term):
    """The table ``[limits]``: ``policies.terms.Limits``, but that a founding search may leave one out."""

    max_params: int = Field(gt=0, le=MOST)
    max_size_bytes: int = Field(gt=0, le=MOST)
    max_p99_ms: float = Field(gt=0.0)
    max_edit_distance: int | None = Field(default=None, ge=0, le=MOST)


class Order(Term):
    """What the file says."""

    task: str = Field(description="Path of a task file.")
    kind: TriggerKind = TriggerKind.FOUNDING
    seed: int = Field(ge=0, le=MOST)
    budget_cpu_s: float = Field(gt=0.0)
    threads: int = Field(default=1, ge=1, le=1024)
    max_memory_bytes: int = Field(default=_MEMORY_BYTES, gt=0, le=MOST)
    precisions: tuple[Precision, ...] = (Precision.FP32, Precision.INT8)
    profile: str | None = Field(default=None, description="Path of this device's costs, kept if absent.")
    parent: str | None = Field(default=None, description="Folder that an earlier search left.")
    library: tuple[str, ...] = Field(default=(), description="Folders of still earlier ones, latest first.")
    schedule: Schedule = Schedule.SANDWICH
    pseudo_labels: bool = False
    exit_confidence: float | None = Field(
        default=None, gt=0.0, le=1.0, description="None: no exit is sought."
    )
    data: Data | None = Field(default=None, description="None: the task's sources.")
    limits: Ceilings


# -- the text ---------------------------------------------------------------------------------------------


def read_order(path: Path) -> Order:
    """Return the order in a file.

    Raises:
        PermanentError: With one line for every key that is missing, unknown, of a wrong type or out of
            bounds, or that contradicts another.
    """
    try:
        text = path.read_text(encoding="utf-8")
        data = tomllib.loads(text)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise PermanentError(f"expected a readable TOML order at {path}, got {error}") from error
    try:
        order = Order.model_validate_json(json.dumps(data))
    except ValidationError as error:
        told = [_fault(f["loc"], f["type"], f["msg"], f["input"]) for f in error.errors(include_url=False)]
        raise PermanentError(_refusal(path, text, told)) from error
    except TypeError as error:  # a TOML date has no JSON
        raise PermanentError(f"{path}: expected numbers, texts and tables, got {error}") from error
    told = list(_contradictions(order))
    if told:
        raise PermanentError(_refusal(path, text, told))
    return order


def _fault(place: Place, kind: str, message: str, got: object) -> tuple[Place, str]:
    if kind == "missing":
        return place, "expected it, got nothing; an order must say it, there is no default"
    if kind == "extra_forbidden":
        return place, "unknown key; remove it or correct its name"
    return place, f"{message.replace('Input should be', 'expected')}, got {got!r}"[:300]


def _refusal(path: Path, text: str, told: list[tuple[Place, str]]) -> str:
    return "\n".join(
        f"{path}, line {_line_of(place, text)}: {'.'.join(map(str, place)) or 'the order'}: {reason}"
        for place, reason in told
    )


def _line_of(place: Place, text: str) -> int:
    """Return the line of a key, or of the innermost table on the way to it (1-based).

    >>> _line_of(("data", "first"), "first = 1\\n[data]\\nfirst = -1")
    3
    """
    lines = [line.split("#")[0] for line in text.splitlines()]
    found = 0
    for part in place:
        if isinstance(part, int):  # TOML does not write the number of an item
            continue
        named = re.compile(rf"(?:^|[\s\[{{,.]){re.escape(part)}\s*[=\].]")
        found = next((i for i in range(found, len(lines)) if named.search(lines[i])), found)
    return found + 1


def _contradictions(order: Order) -> Iterator[tuple[Place, str]]:
    """Yield what no single key shows."""
    kind = order.kind
    if not order.precisions:
        yield ("precisions",), "expected at least one, got none"
    if kind is TriggerKind.FOUNDING:
        if order.parent is not None:
            yield ("parent",), f"expected none in a search of kind founding, got {order.parent!r}"
        if order.pseudo_labels:
            yield ("pseudo_labels",), "expected false in a search of kind founding: no parent can answer"
    else:
        if order.parent is None:
            yield ("parent",), f"expected the folder of an earlier search for kind {kind}, got nothing"
        if order.limits.max_edit_distance is None:
            yield (
                ("limits", "max_edit_distance"),
                f"expected a number of genes for kind {kind}, got nothing; only a founding has no bound",
            )
    if kind is TriggerKind.DATA and order.data is None:
        yield ("data",), "expected new rows for kind data, got nothing; a task's sources are what founded it"
    places = [] if order.data is None else [(("data",), order.data), (("data", "replay"), order.data.replay)]
    for place, rows in places:
        if rows is not None and rows.last is not None and rows.last <= rows.first:
            yield (*place, "last"), f"expected more than first = {rows.first}, got {rows.last}"
