"""The table of all serving benchmarks: runs the parts, keeps their rows, writes the page.

    make bench-serving                             all parts, five runs
    make bench-serving ARGS='--only throughput'    some of them; the rows of the others stay as they were
    make bench-serving ARGS=--write                nothing is run; the page is written anew

* A part is a module of this folder with ``measure(runs, quick) -> list[Row]``, and may have ``versions()``.
  One that is not there is left out, and said so.
* ``docs/benchmarks/serving.json`` keeps each part's rows with the date, the machine, the versions, the
  command, the runs and the seconds that it took; it is written after each part.
* ``docs/benchmarks/serving.md`` is the page that people read. Both are replaced whole.
* A part that fails is told and left as it was; the others run on, and the exit code is 1.
"""

import argparse
import importlib
import importlib.util
import json
import platform
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.search.table import cpu_s, machine, say
from benchmarks.serving.row import Row
from policies.errors import PermanentError

Book = dict[str, dict[str, Any]]

PARTS = ("throughput", "storm", "swap", "beside", "memory", "devices")
FOLDER = Path(__file__).resolve().parents[2] / "docs" / "benchmarks"
RUNS = 5
_LIBRARIES = ("onnxruntime", "numpy")
HEAD = (
    "| what | target | measured | unit | | beside it, in the same run | told |\n|---|---|---|---|---|---|---|"
)
_ABOUT = """# Serving benchmarks

Written by `make bench-serving`; do not edit. Each figure is the median over the runs, with the least and the
greatest in brackets. Peers stand beside Instar in the same runs: ratios can be compared between machines,
rates and milliseconds cannot. A row without a target is told, not judged.

To repeat them: a Linux machine with two processors that nobody else uses, `apt-get install wrk
nghttp2-client`, then `make bench-serving`. Each peer is installed from its package, once, into
`.instar/peers`; the exact versions are in `benchmarks/serving/peers/*.txt`.
"""


def run(part: str, runs: int, quick: bool, command: str) -> dict[str, Any]:
    """Run one part and return what is kept of it."""
    module = importlib.import_module(f"benchmarks.serving.{part}")
    began, used = time.monotonic(), cpu_s()
    found = module.measure(runs, quick)
    more = module.versions() if hasattr(module, "versions") else {}
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "machine": f"{machine()} {platform.release()}",
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in _LIBRARIES}
        | more,
        "command": command,
        "runs": runs,
        "quick": quick,
        "wall_s": round(time.monotonic() - began, 1),
        "cpu_s": round(cpu_s() - used, 1),
        "how": (module.__doc__ or "").strip(),
        "rows": [asdict(row) for row in found],
    }


def there(part: str) -> bool:
    """Tell whether a part can be run."""
    return importlib.util.find_spec(f"benchmarks.serving.{part}") is not None


# -- the page ---------------------------------------------------------------------------------------------


def lines(rows: Sequence[Row]) -> list[str]:
    """Return the lines of a Markdown table, without its head."""
    found = []
    for row in rows:
        beside = "<br>".join(f"{name}: {figure}" for name, figure in row.peers.items())
        told = "; ".join(text for text in (row.ratio, row.note) if text)
        cells = (row.what, row.target, row.measured, row.unit, row.verdict, beside, told)
        found.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return found


def page(book: Book) -> str:
    """Return the whole page: what was judged, what was told, then what each part measures and how."""
    parts = [part for part in PARTS if part in book]
    every = [Row.read(record) for part in parts for record in book[part]["rows"]]
    judged = [row for row in every if row.target]
    told = [row for row in every if not row.target]
    text = [_ABOUT, summary(book, judged), "", HEAD, *lines(judged)]
    text += ["", "Told beside these:", "", HEAD, *lines(told)] if told else []
    for part in parts:
        text += ["", *_section(part, book[part])]
    return "\n".join(text) + "\n"


def summary(book: Book, judged: Sequence[Row]) -> str:
    """Return in a sentence how many targets are met, missed and not measured, and what is not there."""
    met, missed = (sum(row.met is answer for row in judged) for answer in (True, False))
    open_ = len(judged) - met - missed
    said = f"Of {len(judged)} targets {met} are met, {missed} missed and {open_} not measured."
    if absent := [part for part in PARTS if part not in book]:
        said += f" Parts that were not run: {', '.join(absent)}."
    few = [f"{part} ({kept['runs']})" for part, kept in book.items() if kept["runs"] < RUNS or kept["quick"]]
    return said + (f" Fewer than {RUNS} whole runs: {', '.join(few)}." if few else "")


def _section(part: str, kept: dict[str, Any]) -> list[str]:
    versions = ", ".join(f"{name} {number}" for name, number in kept["versions"].items())
    quick = "; quick, which is too little to quote" if kept["quick"] else ""
    return [
        f"## {part}",
        "",
        kept["how"].replace("``", "`"),
        "",
        f"- {kept['date']}, {kept['machine']}",
        f"- {versions}",
        f"- `{kept['command']}`; {kept['runs']} runs{quick}",
        f"- {kept['wall_s']:g} s; {kept['cpu_s']:g} CPU-s of processes that have ended",
    ]


def read_book(folder: Path) -> Book:
    """Return what earlier runs left; nothing the first time."""
    path = folder / "serving.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def write(book: Book, folder: Path) -> None:
    """Replace both files."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in (("serving.json", json.dumps(book, indent=1) + "\n"), ("serving.md", page(book))):
        part = folder / f"{name}.part"
        part.write_text(text)
        part.replace(folder / name)


# -- commands ---------------------------------------------------------------------------------------------


def main(arguments: list[str]) -> int:
    """Run the parts that are asked for and write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default=",".join(PARTS), help="parts, with commas between")
    parser.add_argument("--write", action="store_true", help="run nothing, write the page from what is kept")
    parser.add_argument("--runs", type=int, default=RUNS, help=f"default {RUNS}")
    parser.add_argument("--quick", action="store_true", help="less of everything, to see that it works")
    parser.add_argument("--into", type=Path, default=FOLDER, help=f"folder of both files; default {FOLDER}")
    options = parser.parse_args(arguments)
    if options.runs < 1:
        parser.error(f"expected at least one run, got {options.runs}")
    asked = [] if options.write else options.only.split(",")
    if unknown := set(asked) - set(PARTS):
        parser.error(f"expected parts among {', '.join(PARTS)}, got {', '.join(sorted(unknown))}")
    command = " ".join(["python -m benchmarks.serving.table", *arguments])
    failed = False
    for part in asked:
        if not there(part):
            say(f"{part}: not there, left out")
            continue
        say(f"{part}: begins")
        try:
            kept = run(part, options.runs, options.quick, command)
        except PermanentError as error:
            failed = True
            say(f"{part}: failed, its rows stay as they were: {error}")
            continue
        # Read again: another run may have written meanwhile.
        write(read_book(options.into) | {part: kept}, options.into)
        print("\n".join([f"\n{part}\n", HEAD, *lines([Row.read(row) for row in kept["rows"]])]), flush=True)
    if options.write:
        write(read_book(options.into), options.into)
    return int(failed)


if __name__ == "__main__":
    # Leave by the way out, so that no server stays behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.exit(main(sys.argv[1:]))
