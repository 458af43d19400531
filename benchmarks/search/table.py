"""The table of all search benchmarks: runs the parts, keeps their rows, writes the page.

    make bench-search                              all parts, five seeds
    make bench-search ARGS='--only engine,export'  some of them; the rows of the others stay as they were
    make bench-search ARGS=--write                 nothing is run; the page is written anew

* A part is a module of this folder with ``rows(seeds, quick)``. One that is not there is left out, and said
  so.
* ``docs/benchmarks/search.json`` keeps each part's rows with the date, the machine, the versions, the
  command, the seeds and the seconds of the run that made them; it is written after each part.
* ``docs/benchmarks/search.md`` is the page that people read. Both are replaced whole.
* A part that fails is told and left as it was; the others run on, and the exit code is 1.
"""

import argparse
import importlib
import importlib.util
import json
import os
import platform
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.search.row import Figure, Row
from policies.errors import PermanentError

__all__ = ["Figure", "Row"]

Rows = Callable[[Sequence[int], bool], list[Row]]
Book = dict[str, dict[str, Any]]

PARTS = (
    "step",
    "cold",
    "engine",
    "export",
    "latency",
    "hypervolume",
    "memory",
    "drift",
    "forgetting",
    "neighbour",
)
FOLDER = Path(__file__).resolve().parents[2] / "docs" / "benchmarks"
SEEDS = 5
_LIBRARIES = ("torch", "numpy", "onnx", "onnxruntime")
_NEIGHBOUR_LIMIT = 1.5
HEAD = (
    "| measured | target | Instar | unit | beside it, in the same run | ratio | |\n"
    "|---|---|---|---|---|---|---|"
)
_ABOUT = """# Search benchmarks

Written by `make bench-search`; do not edit. Each figure is the median over the seeds of its run, with the
least and the greatest in brackets. CPU time is that of one thread (`time.process_time`), and peers run beside
Instar in the same run: ratios can be compared between machines, milliseconds cannot. A row without a target
is told, not judged.
"""


def say(line: str) -> None:
    """Tell a person how far the benchmark is."""
    print(f"{datetime.now(UTC):%H:%M:%S} {line}", file=sys.stderr, flush=True)


# -- running ----------------------------------------------------------------------------------------------


def run(part: str, seeds: Sequence[int], quick: bool, command: str) -> dict[str, Any]:
    """Run one part and return what is kept of it."""
    module = importlib.import_module(f"benchmarks.search.{part}")
    began, used = time.monotonic(), cpu_s()
    found = neighbour(module.summary(module.rows())) if part == "neighbour" else module.rows(seeds, quick)
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "machine": machine(),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in _LIBRARIES},
        "command": command,
        "seeds": list(seeds),
        "quick": quick,
        "wall_s": round(time.monotonic() - began, 1),
        "cpu_s": round(cpu_s() - used, 1),
        "how": (module.__doc__ or "").strip(),
        "rows": [asdict(row) for row in found],
    }


def neighbour(told: dict[str, Any]) -> list[Row]:
    """Return the rows of ``neighbour``, whose own summary has medians alone."""
    p99 = told["p99_ms"]
    if any(p99[phase] is None for phase in ("idle", "search")):
        raise PermanentError(
            "expected a phase of each kind in which nobody else computed, got none; run it on a quiet machine"
        )
    phases = {"idle": "idle", "crowd": "one search a processor", "unprotected": "the same, unprotected"}
    peers = {name: Figure.of([p99[phase]]) for phase, name in phases.items() if p99[phase] is not None}
    return [
        Row(
            "p99 of the service beside a search",
            "<= 1.5 x its idle p99",
            Figure.of([p99["search"]]),
            "ms",
            peers=peers,
            ratio="; ".join(
                f"{phase} {p99[f'{phase}/idle']:g} x idle"
                for phase in ("search", "crowd", "unprotected")
                if p99[f"{phase}/idle"] is not None
            ),
            met=p99["search/idle"] <= _NEIGHBOUR_LIMIT,
            note="medians over quiet rounds; wall time",
        )
    ]


def cpu_s() -> float:
    """Return the CPU-seconds of this process and of its children that have ended."""
    both = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in both)


def machine() -> str:
    """Return the processor's name, and how many there are."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores, {platform.system()}"


def there(part: str) -> bool:
    """Tell whether a part can be run."""
    return importlib.util.find_spec(f"benchmarks.search.{part}") is not None


# -- the page ---------------------------------------------------------------------------------------------


def lines(rows: Sequence[Row]) -> list[str]:
    """Return the lines of a Markdown table, without its head."""
    found = []
    for row in rows:
        beside = "<br>".join(f"{name}: {figure}" for name, figure in row.peers.items())
        what = f"{row.what} ({row.note})" if row.note else row.what
        cells = (what, row.target, str(row.ours), row.unit, beside, row.ratio, row.verdict)
        found.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return found


def page(book: Book) -> str:
    """Return the whole page: one table of everything, then what each part measures and how."""
    parts = [part for part in PARTS if part in book]
    rows = {part: [Row.read(record) for record in book[part]["rows"]] for part in parts}
    every = [row for part in parts for row in rows[part]]
    missed, judged = (sum(row.met is answer for row in every) for answer in (False, True))
    absent = [part for part in PARTS if part not in book]
    unknown = f" Not measured here: {', '.join(absent)}." if absent else ""
    few = [f"{part} ({len(book[part]['seeds'])})" for part in parts if len(book[part]["seeds"]) < SEEDS]
    unknown += f" Fewer than {SEEDS} seeds: {', '.join(few)}." if few else ""
    text = [_ABOUT, f"Of {missed + judged} targets {judged} are met and {missed} missed.{unknown}", "", HEAD]
    text += [line for part in parts for line in lines(rows[part])]
    for part in parts:
        kept = book[part]
        versions = ", ".join(f"{name} {number}" for name, number in kept["versions"].items())
        text += ["", f"## {part}", "", *_prose(kept["how"]), ""]
        text += [
            f"- {kept['date']}, {kept['machine']}; {versions}",
            f"- `{kept['command']}`; seeds {', '.join(map(str, kept['seeds']))}"
            + ("; quick, which is too little to quote" if kept["quick"] else ""),
            f"- {kept['cpu_s']:g} CPU-s, {kept['wall_s']:g} s",
        ]
    return "\n".join(text) + "\n"


def _prose(how: str) -> list[str]:
    """Return a module's docstring as Markdown: its indented lines are code."""
    found: list[str] = []
    code = False
    for line in how.replace("``", "`").splitlines():
        indented = line.startswith("    ")
        if indented and not code:
            found.append("```")
        if code and line.strip() and not indented:
            found[len(found) - 1 : len(found)] = ["```", ""]
        code = indented or (code and not line.strip())
        found.append(line[4:] if indented else line)
    return [*found, "```"] if code else found


def read_book(folder: Path) -> Book:
    """Return what earlier runs left; nothing the first time."""
    path = folder / "search.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def write(book: Book, folder: Path) -> None:
    """Replace both files."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in (("search.json", json.dumps(book, indent=1) + "\n"), ("search.md", page(book))):
        part = folder / f"{name}.part"
        part.write_text(text)
        part.replace(folder / name)


# -- commands ---------------------------------------------------------------------------------------------


def alone(rows: Rows, about: str | None) -> None:
    """Be the command line of one part: run it and print its table; nothing is kept."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    _add_seeds(parser)
    options = parser.parse_args()
    print("\n".join([HEAD, *lines(rows(range(1, options.seeds + 1), options.quick))]))


def _add_seeds(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seeds", type=int, default=SEEDS, help=f"how many, from 1 on; default {SEEDS}")
    parser.add_argument("--quick", action="store_true", help="less of everything, to see that it works")


def main(arguments: list[str]) -> int:
    """Run the parts that are asked for and write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default=",".join(PARTS), help="parts, with commas between")
    parser.add_argument("--write", action="store_true", help="run nothing, write the page from what is kept")
    _add_seeds(parser)
    options = parser.parse_args(arguments)
    asked = [] if options.write else options.only.split(",")
    if unknown := set(asked) - set(PARTS):
        parser.error(f"expected parts among {', '.join(PARTS)}, got {', '.join(sorted(unknown))}")
    command = " ".join(["python -m benchmarks.search.table", *arguments])
    failed = False
    for part in asked:
        if not there(part):
            say(f"{part}: not there, left out")
            continue
        say(f"{part}: begins")
        try:
            kept = run(part, range(1, options.seeds + 1), options.quick, command)
        except PermanentError as error:
            failed = True
            say(f"{part}: failed, its rows stay as they were: {error}")
            continue
        # Read again: another run may have written meanwhile.
        write(read_book(FOLDER) | {part: kept}, FOLDER)
        print("\n".join([f"\n{part}\n", HEAD, *lines([Row.read(row) for row in kept["rows"]])]), flush=True)
    if options.write:
        write(read_book(FOLDER), FOLDER)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
