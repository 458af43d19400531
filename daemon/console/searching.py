"""``instar search``: a search without a daemon, for one order that a person wrote.

* The search is a process of its own, as it is for control: the console loads nothing of it.
* The terminal is the search's: its bar, its words and its result are its own. Ctrl-C goes on to it.
* Its exit code is ours.

It talks to no control plane, and nothing is journalled: what is found is served only if it is proposed.
"""

import signal
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from daemon.console.options import Json

_KILLED = 128
"""A shell's exit code for a process that a signal ended, less the signal."""

app = typer.Typer(
    no_args_is_help=True,
    help=(
        "Search for a network without a daemon.\n\n"
        "A search reads an order (TOML: the task, the rows, the budget, the limits) and leaves a folder with "
        "the winner as ONNX, the result as JSON and a picture of the Pareto front. It talks to no instard."
    ),
)


@app.command("run")
def run(
    order: Annotated[
        Path, typer.Argument(metavar="ORDER.toml", exists=True, dir_okay=False, help="The order, TOML.")
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", show_default="ORDER-result, beside it", help="For the result."),
    ] = None,
    strategy: Annotated[
        str | None, typer.Option("--strategy", metavar="NAME", help="How genomes are proposed.")
    ] = None,
    as_json: Json = False,
) -> int:
    """Search as an order says; leaves the winner as ONNX, a Pareto plot and the result as JSON.

    Ctrl-C stops it; the same command goes on from where it was. docs/search.md has the keys of an order.

    Exit codes: 0 a winner, 2 a wrong option, 3 refused with the reason, 130 stopped.
    """
    command = [sys.executable, "-P", "-m", "search", "run", str(order)]
    command += [] if out is None else ["--out", str(out)]
    command += [] if strategy is None else ["--strategy", strategy]
    command += ["--json"] if as_json else []
    return _attended(command)


def _attended(command: list[str]) -> int:
    """Run a process on our terminal and return its exit code."""
    with subprocess.Popen(command) as child:
        while True:
            try:
                code = child.wait()
            except KeyboardInterrupt:
                child.send_signal(signal.SIGINT)
            else:
                return code if code >= 0 else _KILLED - code
