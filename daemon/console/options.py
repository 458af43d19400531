"""What all verbs of ``instar`` share: flags, exit codes, where the state lies, and how an answer is told.

* Exit codes: 0 done or well, 1 error, 2 degraded or refused, 3 unreachable, 64 usage.
* ``--json`` prints one JSON value on standard output and nothing else there; words go to standard error.
* Nobody is asked anything unless both ends are a terminal.
"""

import getpass
import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console, RenderableType
from rich.text import Text

OK = 0
ERROR = 1
REFUSED = 2
UNREACHABLE = 3
USAGE = 64

MIN_REASON = 10
_PIPE_WIDTH = 400
_SYSTEM_STATE = Path("/var/lib/instar")


def _reason(text: str | None) -> str | None:
    if text is not None and len(text.strip()) < MIN_REASON:
        raise typer.BadParameter(f"expected at least {MIN_REASON} characters: the journal keeps it for good")
    return text


State = Annotated[
    Path | None,
    typer.Option(
        "--state",
        envvar="INSTAR_STATE",
        metavar="DIR",
        show_default="./.instar, ./.instar/demo or /var/lib/instar",
        help="The state folder of the instard to talk to.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]
Reason = Annotated[
    str, typer.Option("--reason", callback=_reason, help="Why; at least 10 characters, journalled.")
]
OptionalReason = Annotated[
    str | None, typer.Option("--reason", callback=_reason, help="Why; at least 10 characters, journalled.")
]
By = Annotated[
    str | None, typer.Option("--by", show_default="your login name", help="Who gives the order; journalled.")
]


def state_of(given: Path | None) -> Path:
    """Return the state folder: the given one, else a local one, else the system's.

    Of ``./.instar`` and the demo's ``./.instar/demo`` the first that holds a journal is taken.
    """
    if given is not None:
        return given
    local = Path(".instar")
    for folder in (local, local / "demo"):
        if (folder / "journal.db").is_file():
            return folder
    return local if local.is_dir() else _SYSTEM_STATE


def socket_of(state: Path) -> Path:
    """Return control's socket in a state folder."""
    return state / "run" / "control.sock"


def who(given: str | None) -> str:
    """Return who gives an order: the given name, else the login name, also behind sudo."""
    return given or os.environ.get("SUDO_USER") or getpass.getuser()


def interactive() -> bool:
    """Tell whether a person can be asked."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def terminal(*, stderr: bool = False) -> Console:
    """Return where words go; a pipe gets wide lines, so that grep finds whole sentences."""
    console = Console(stderr=stderr, highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = _PIPE_WIDTH
    return console


def tell(as_json: bool, data: Any, screen: RenderableType) -> None:
    """Print an answer in the form that was asked for."""
    if as_json:
        sys.stdout.write(json.dumps(data, ensure_ascii=False, indent=2) + "\n")
        sys.stdout.flush()
    else:
        terminal().print(screen)


def warn(text: RenderableType) -> None:
    """Print something that a person must see, also beside JSON."""
    terminal(stderr=True).print(text, soft_wrap=isinstance(text, Text))
