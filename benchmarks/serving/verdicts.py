"""What the bursts come to: the rows of the throughput part. Pure.

* A ratio is taken in each run and the median of these is judged: a run in which the machine was slow spoils
  both sides of its own ratio.
* MLServer stands with whichever of its two modes is faster in that cell.
* Against the four others, the fastest of them in that cell is judged, and each is told.
* Who is absent is never beaten: a row that needs them is not measured, and says why.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from benchmarks.serving.asks import Form
from benchmarks.serving.contestants import INSTAR, RAW, SILENT, UVICORN
from benchmarks.serving.course import Cell
from benchmarks.serving.load import Burst
from benchmarks.serving.quiet import LIMIT
from benchmarks.serving.row import Figure, Row, at_least, number

MLSERVERS = ("MLServer", "MLServer, 1 worker")
OTHERS = ("LitServe", "BentoML", "PyTriton", "Ray Serve")
WORDS = {"mlp": "MLP", "conv": "conv model"}

MLP, CONV = Cell("mlp", Form.JSON), Cell("conv", Form.JSON)
MLP_BINARY, CONV_BINARY = Cell("mlp", Form.BINARY), Cell("conv", Form.BINARY)
MLP_GRPC, CONV_GRPC = Cell("mlp", Form.GRPC), Cell("conv", Form.GRPC)
CELLS = (CONV, MLP, CONV_BINARY, MLP_BINARY, CONV_GRPC, MLP_GRPC)

AGAINST_RAW: Mapping[Cell, float | None] = {CONV: 0.75, MLP: 0.40, MLP_BINARY: 0.60, CONV_BINARY: None}
AGAINST_MLSERVER = {MLP: 6.0, CONV: 2.4, MLP_GRPC: 2.0, CONV_GRPC: 2.0}
AGAINST_OTHERS = {MLP: 12.0, CONV: 4.5}
TELEMETRY = 0.92


@dataclass
class Book:
    """All bursts, by column and cell in the order of the runs; and who is absent, with the reason."""

    bursts: dict[tuple[str, Cell], list[Burst]] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)

    def add(self, turn: Mapping[tuple[str, Cell], Burst]) -> None:
        """Write down a turn."""
        for key, burst in turn.items():
            self.bursts.setdefault(key, []).append(burst)

    def drop(self, names: Sequence[str], reason: str) -> None:
        """Strike out columns whose turn failed: their runs no longer match the others'."""
        self.absent |= dict.fromkeys(names, reason)
        self.bursts = {key: found for key, found in self.bursts.items() if key[0] not in names}

    def has(self, name: str, cell: Cell) -> bool:
        """Tell whether a column was measured in a cell."""
        return (name, cell) in self.bursts

    def figure(self, name: str, cell: Cell, of: Callable[[Burst], float]) -> Figure:
        """Return one figure of a column in a cell."""
        return Figure.of([of(burst) for burst in self.bursts[name, cell]])

    def ratio(self, one: str, other: str, cell: Cell) -> Figure:
        """Return how many times the rate of ``other`` that of ``one`` is, run by run."""
        pairs = zip(self.bursts[one, cell], self.bursts[other, cell], strict=True)
        return Figure.of([ours.rate / theirs.rate for ours, theirs in pairs])

    def fastest(self, names: Sequence[str], cell: Cell) -> str | None:
        """Return the column with the greatest median rate; None where none was measured."""
        there = [name for name in names if self.has(name, cell)]
        return max(there, key=lambda name: self.figure(name, cell, _rate).median, default=None)

    def columns(self, cell: Cell) -> list[str]:
        """Return the columns of a cell, but for ours."""
        return [name for name, one in self.bursts if one == cell and name != INSTAR]


def rows(book: Book) -> list[Row]:
    """Return all rows."""
    judged = [against_raw(book, cell, floor) for cell, floor in AGAINST_RAW.items()]
    judged += [against_mlserver(book, cell, floor) for cell, floor in AGAINST_MLSERVER.items()]
    judged += [against_others(book, cell, floor) for cell, floor in AGAINST_OTHERS.items()]
    judged += [telemetry(book, cell) for cell in (MLP, MLP_BINARY, CONV, CONV_BINARY)]
    kinds = (("requests a second", "1/s", _rate), ("CPU time of a request", "µs", _cpu), ("p99", "ms", _p99))
    told = [_told(book, cell, *kind) for kind in kinds for cell in CELLS if book.has(INSTAR, cell)]
    return [*judged, *told, company(book)]


def company(book: Book) -> Row:
    """Return the row of what other programs had of the processors during all bursts."""
    others = Figure.of([burst.others for bursts in book.bursts.values() for burst in bursts])
    note = "the machine was not quiet: these figures are not to be quoted" if others.median > LIMIT else ""
    return Row("what others had of the processors meanwhile", "", others, "cores", note=note)


def against_raw(book: Book, cell: Cell, floor: float | None) -> Row:
    """Return the row of a cell against the runtime alone."""
    what, target = f"{words(cell)}: against the runtime alone", f"≥ {floor}" if floor else ""
    if reason := _missing(book, cell, (INSTAR, RAW)):
        return Row(what, target, None, "x raw", note=reason)
    beside = [name for name in book.columns(cell) if name not in (RAW, SILENT)]
    ours = book.ratio(INSTAR, RAW, cell)
    peers = {name: book.ratio(name, RAW, cell) for name in beside}
    met = at_least(ours, floor) if floor else None
    cost = [number(book.figure(name, cell, _cpu).median) for name in (INSTAR, RAW)]
    told = f"{_rates(book, cell, (INSTAR, RAW))}; {cost[0]} µs of CPU time a request, raw {cost[1]} µs"
    return Row(what, target, ours, "x raw", peers=peers, ratio=told, met=met)


def against_mlserver(book: Book, cell: Cell, floor: float) -> Row:
    """Return the row of a cell against MLServer's faster mode."""
    what, target = f"{words(cell)}: against MLServer", f"≥ {floor:g} x its faster mode"
    if reason := _missing(book, cell, (INSTAR, *MLSERVERS)):
        return Row(what, target, None, "x", note=reason)
    faster = book.fastest(MLSERVERS, cell)
    assert faster is not None
    ours = book.ratio(INSTAR, faster, cell)
    peers = {UVICORN: book.ratio(UVICORN, faster, cell)} if book.has(UVICORN, cell) else {}
    told = _rates(book, cell, (INSTAR, *MLSERVERS))
    return Row(what, target, ours, "x", peers=peers, ratio=told, met=at_least(ours, floor))


def against_others(book: Book, cell: Cell, floor: float) -> Row:
    """Return the row of a cell against the fastest of the four others."""
    what = f"{words(cell)}: against {', '.join(OTHERS)}"
    target = f"≥ {floor:g} x the fastest of them"
    if reason := _missing(book, cell, (INSTAR, *OTHERS)):
        return Row(what, target, None, "x", note=reason)
    fastest = book.fastest(OTHERS, cell)
    assert fastest is not None
    ours = book.ratio(INSTAR, fastest, cell)
    each = "; ".join(f"{number(book.ratio(INSTAR, name, cell).median)} x {name}" for name in OTHERS)
    peers = {UVICORN: book.ratio(UVICORN, fastest, cell)} if book.has(UVICORN, cell) else {}
    return Row(what, target, ours, "x", peers=peers, ratio=each, met=at_least(ours, floor))


def telemetry(book: Book, cell: Cell) -> Row:
    """Return the row of a cell with telemetry and capture against without."""
    what, target = f"{words(cell)}: telemetry and capture on, against off", f"≥ {TELEMETRY}"
    if reason := _missing(book, cell, (INSTAR, SILENT)):
        return Row(what, target, None, "x", note=reason)
    ours = book.ratio(INSTAR, SILENT, cell)
    told = _rates(book, cell, (INSTAR, SILENT))
    return Row(what, target, ours, "x", ratio=told, met=at_least(ours, TELEMETRY))


def words(cell: Cell) -> str:
    """Return a cell in words.

    >>> words(Cell("mlp", Form.JSON))
    'MLP, JSON'
    """
    return f"{WORDS[cell.model]}, {cell.form}"


def _told(book: Book, cell: Cell, what: str, unit: str, of: Callable[[Burst], float]) -> Row:
    peers = {name: book.figure(name, cell, of) for name in book.columns(cell)}
    return Row(f"{words(cell)}: {what}", "", book.figure(INSTAR, cell, of), unit, peers=peers)


def _missing(book: Book, cell: Cell, names: Sequence[str]) -> str:
    """Return why a row cannot be measured; empty when it can."""
    gone = [name for name in names if not book.has(name, cell)]
    return "; ".join(f"{name}: {book.absent.get(name) or _no_form(cell)}" for name in gone)


def _no_form(cell: Cell) -> str:
    return f"has no {cell.form} door"


def _rates(book: Book, cell: Cell, names: Sequence[str]) -> str:
    told = [f"{name} {number(book.figure(name, cell, _rate).median)}/s" for name in names]
    return ", ".join(told)


def _rate(burst: Burst) -> float:
    return burst.rate


def _cpu(burst: Burst) -> float:
    return burst.cpu_us


def _p99(burst: Burst) -> float:
    return burst.p99_ms
