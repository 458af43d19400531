"""``python -m search BRIEF OUT``: one search, as a process of its own. ``run ORDER``: the same for a person.

* BRIEF is the canonical JSON of a ``policies.terms.Brief``; paths in it are relative to its folder.
* OUT receives ``progress.json`` during the run, and at the end the artefacts and, last, ``result.json``.
* ``run`` makes the brief from a TOML order (``search.order``) and adds ``pareto.svg``. Words go to standard
  error, the result to standard output.
* Exit 0: a winner. Exit 3: refused, and OUT/refusal.json says why; the same brief will be refused again.
  Exit 130: a person stopped it. Anything else is a crash.
* Here alone clocks are read. The network is not used.
"""

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from policies.errors import PermanentError
from policies.terms import Brief, Genome, Point, Precision, SearchResult
from policies.wire import canonical
from search.admission import admit, read_brief
from search.errand import BRIEF, PROFILE, RESULT, keep_profile, prepare, read_result
from search.order import Order, read_order
from search.progress import write_whole
from search.run import Run, Tools
from search.sketch import Mark, front, pareto_svg
from search.space import to_genes
from search.spaces import BUILTIN as SPACES
from search.strategies import BUILTIN as STRATEGIES

REFUSED = 3
STOPPED = 130

_PICTURE = "pareto.svg"
_REFUSAL = "refusal.json"
_PROGRESS = "progress.json"
_CHECKPOINT = "checkpoint"
_PIPE_WIDTH = 200


def main(arguments: list[str]) -> int:
    """Run one search and return the exit code."""
    if arguments[:1] == ["run"]:
        return _run(arguments[1:])
    parser = argparse.ArgumentParser(
        prog="python -m search", description="Search for a candidate.", epilog="See also: run --help."
    )
    parser.add_argument("brief", type=Path, help="file with the brief; or run, and an order")
    parser.add_argument("out", type=Path, help="folder for the result")
    _add_strategy(parser)
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    try:
        search(options.brief, options.out, _tools(options.strategy, _say))
    except PermanentError as error:
        write_whole(options.out / _REFUSAL, canonical({"reason": str(error)}))
        _say(f"refused: {error}")
        return REFUSED
    return 0


def search(brief: Path, out: Path, tools: Tools) -> SearchResult:
    """Read a brief, search, and write the result.

    Raises:
        PermanentError: The brief is refused.
    """
    asked = read_brief(brief)
    admission = admit(asked, brief.parent, SPACES)
    return Run(admission, out, tools).search()


def _add_strategy(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--strategy", choices=sorted(STRATEGIES), default="nsga2")


def _tools(strategy: str, say: Callable[[str], None]) -> Tools:
    return Tools(STRATEGIES[strategy], time.process_time, time.perf_counter, say)


def _say(line: str) -> None:
    print(line, flush=True)


# -- for a person -----------------------------------------------------------------------------------------


def _run(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m search run", description="Search as an order says, with no daemon."
    )
    parser.add_argument("order", type=Path, help="the order, TOML; docs/search.md has its keys")
    parser.add_argument("--out", type=Path, help="folder for the result; default: ORDER-result beside it")
    parser.add_argument("--json", action="store_true", help="print the result's JSON and nothing else")
    _add_strategy(parser)
    options = parser.parse_args(arguments)
    out = options.out or options.order.with_name(f"{options.order.stem}-result")
    words = _console(stderr=True)
    signal.signal(signal.SIGINT, _stop_once)
    try:
        order, brief = _prepare(options.order, out)
        result = _watched(brief, out, options.strategy, words)
        picture, kept = _finish(order, options.order.parent, brief, result, out)
    except PermanentError as error:
        if out.is_dir() and os.access(out, os.W_OK):
            write_whole(out / _REFUSAL, canonical({"reason": str(error)}))
        words.print(Text(f"refused: {error}", style="red"), soft_wrap=True)
        return REFUSED
    except KeyboardInterrupt:
        words.print(f"stopped; the same command {_again(out / _CHECKPOINT)}", soft_wrap=True)
        return STOPPED
    if options.json:
        _say(canonical(result).decode())
    else:
        _tell(brief, result, picture, _files(out, kept))
    return 0


def _again(checkpoint: Path) -> str:
    return f"goes on from {checkpoint}" if checkpoint.exists() else "begins anew: nothing was kept yet"


def _stop_once(_signal: int, _frame: object) -> None:
    # A terminal sends Ctrl-C to every process, and a console that stands before this one passes it on:
    # the second must not break into the ending that the first began.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise KeyboardInterrupt


def _prepare(path: Path, out: Path) -> tuple[Order, Brief]:
    """Read an order and make the folder ready; what an earlier run ended with is taken away."""
    order = read_order(path)
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name in (RESULT, _REFUSAL, _PROGRESS, _PICTURE):
            (out / name).unlink(missing_ok=True)
        return order, prepare(order, path.parent, out)
    except OSError as error:
        raise PermanentError(f"expected a folder for the result at {out}, got {error}") from error


def _watched(brief: Brief, out: Path, strategy: str, words: Console) -> SearchResult:
    """Search, with a bar on a terminal, and with a line for each phase elsewhere."""
    bar = Live(get_renderable=lambda: _bar(out, brief), console=words, refresh_per_second=2, transient=True)
    with bar if words.is_terminal else nullcontext():
        return search(out / BRIEF, out, _tools(strategy, lambda line: words.print(line, soft_wrap=True)))


def _bar(out: Path, brief: Brief) -> RenderableType:
    """Return how far the search is, from the file that it keeps for everybody."""
    try:
        told: dict[str, Any] = json.loads((out / _PROGRESS).read_bytes())
    except FileNotFoundError:
        return Text("reading the brief")
    row = Table.grid(padding=(0, 1))
    row.add_row(
        Text(told["phase"], style="bold"),
        ProgressBar(total=max(told["total"], 1), completed=told["done"], width=30),
        f"{told['done']}/{told['total']}",
        f"{told['cpu_s']:.1f} of {brief.budget_cpu_s:g} CPU-s",
        Text(told["message"].removeprefix(f"{told['phase']}: "), overflow="ellipsis", no_wrap=True),
    )
    return row


def _finish(
    order: Order, base: Path, brief: Brief, result: SearchResult, out: Path
) -> tuple[Mark | None, Path | None]:
    """Draw the picture and keep the costs; return the incumbent, and where the costs were kept."""
    earlier = None if order.parent is None else read_result(base / order.parent)
    incumbent = incumbent_of(result, earlier)
    if any(point.measured for point in result.points):
        title = f"{brief.task.name}: search of kind {brief.kind}, seed {brief.seed}"
        picture = pareto_svg(result, lambda genome: _precision(brief, genome), incumbent, title)
        write_whole(out / _PICTURE, picture.encode())
    return incumbent, keep_profile(order, base, out)


def incumbent_of(result: SearchResult, earlier: SearchResult | None) -> Mark | None:
    """Return what the winner is to replace.

    Args:
        result: Its evidence says what the incumbent does on today's rows.
        earlier: The result that made the incumbent; its archive says how fast that is.

    Returns:
        None at founding, and where one of the two is not known.
    """
    before = next((one.value for one in result.evidence if one.name == "accuracy_before"), None)
    if before is None or earlier is None:
        return None
    points = (*result.points, *earlier.points)
    known = next((point for point in points if point.genome == earlier.winner), None)
    return None if known is None else Mark("incumbent", before, known.latency_ms)


def _precision(brief: Brief, genome: Genome) -> Precision:
    space = SPACES[brief.task.modality](brief.task, brief.precisions)
    return Precision.INT8 if space.quantised(to_genes(space, genome)[None])[0] else Precision.FP32


# -- the screen -------------------------------------------------------------------------------------------


def _console(*, stderr: bool = False) -> Console:
    console = Console(stderr=stderr, highlight=False, markup=False)
    if not console.is_terminal:
        console.width = _PIPE_WIDTH
    return console


def _files(out: Path, kept: Path | None) -> list[Path]:
    names = (RESULT, "bundle.onnx", _PICTURE, PROFILE, "archive.json", "state.safetensors")
    there = [out / name for name in names if (out / name).is_file()]
    return there if kept is None else [*there, kept]


def _tell(brief: Brief, result: SearchResult, incumbent: Mark | None, files: list[Path]) -> None:
    screen = _console()
    shown = [point for point in front(result.points) if point.measured]
    shown += [one for one in result.points if one.genome == result.winner and one.measured]
    if shown:
        screen.print(_table(brief, result, list(dict.fromkeys(shown))))
    else:
        screen.print("no new row has a label, so nothing could be ranked: the parent was brought up to date")
    winner = next((one for one in shown if one.genome == result.winner), None)
    # The incumbent's equal: a winner may be slower than it, and then proves nothing against it.
    equal = [one for one in shown if incumbent is not None and one.latency_ms <= incumbent.latency_ms]
    best = max(equal, key=lambda one: one.accuracy, default=None)
    for name, mark in (("winner", winner), ("incumbent", incumbent), ("no slower", best)):
        if mark is not None:
            screen.print(f"{name:9}  accuracy {mark.accuracy:.4f} at {mark.latency_ms:.4g} ms")
    screen.print(
        f"{result.architectures} architectures, {result.cpu_s:.1f} of {brief.budget_cpu_s:g} CPU-s, "
        f"{result.wall_s:.1f} s\n"
    )
    for path in files:
        screen.print(str(path), soft_wrap=True)


def _table(brief: Brief, result: SearchResult, shown: list[Point]) -> Table:
    table = Table(title="The front, the fastest first", title_justify="left", box=None, pad_edge=False)
    table.add_column("architecture", overflow="fold")
    for name in ("accuracy", "ms", "params"):
        table.add_column(name, justify="right")
    table.add_column("precision")
    table.add_column("")
    for point in shown:
        wins = point.genome == result.winner
        table.add_row(
            "".join(str(gene) for gene in point.genome.genes),
            f"{point.accuracy:.4f}",
            f"{point.latency_ms:.4g}",
            f"{point.params:,}",
            _precision(brief, point.genome).value,
            "winner" if wins else "",
            style="bold" if wins else "",
        )
    return table


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
