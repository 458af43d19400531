"""The command ``instar``: what an operator sees of the loop, and the orders an operator gives.

* Reads and orders go over control's UNIX socket; ``audit verify`` and ``check`` need no running process.
* ``main`` is the one place where errors become exit codes: 0 done or well, 1 error, 2 degraded or refused,
  3 unreachable, 64 usage.
* Every verb has ``--json``; colour obeys NO_COLOR; ids may be shortened to a unique beginning.

It never imports control.
"""

import json
import sys
import time
from collections.abc import Callable
from importlib.metadata import version as installed
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import RenderableType
from rich.live import Live
from rich.text import Text

from daemon.console import lint, orders, screen, searching
from daemon.console.client import Control, EntryView, Refused, Unreachable
from daemon.console.health import Health, diagnose
from daemon.console.options import (
    ERROR,
    OK,
    REFUSED,
    UNREACHABLE,
    USAGE,
    Json,
    State,
    socket_of,
    state_of,
    tell,
    terminal,
    warn,
)
from policies.clock import SystemClock
from policies.errors import InstarError
from policies.status import Status

_PAGE = 1000
"""Journal entries a request when the whole journal is looked through."""

app = typer.Typer(
    name="instar",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help=(
        "Watch and steer an Instar: what is served, what drifts, what waits for you.\n\n"
        "Exit codes: 0 done or well, 1 error, 2 degraded or refused, 3 unreachable, 64 usage."
    ),
)
audit = typer.Typer(no_args_is_help=True, help="Check the journal.")
policy = typer.Typer(no_args_is_help=True, help="The policy in force.")

_CODES: tuple[tuple[type[InstarError], int], ...] = ((Unreachable, UNREACHABLE), (Refused, REFUSED))

# Every Typer has its usage error here, whether it brings its own click or not.
_UsageError: type[Exception] = typer.BadParameter.__bases__[0]


@app.command()
def status(
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Keep showing it until Ctrl-C.")] = False,
    interval: Annotated[float, typer.Option("--interval", min=0.2, help="Seconds between two looks.")] = 2.0,
    state: State = None,
    as_json: Json = False,
) -> int:
    """Show one screen: what is served, how it fares, what is open, what is blocked and what would help.

    Exits 0 when all is well or on its way, 2 when something is degraded.
    """
    socket = socket_of(state_of(state))
    if not watch:
        view = _status(socket)
        tell(as_json, view.model_dump(mode="json"), screen.status(view))
        return REFUSED if diagnose(view).health is Health.DEGRADED else OK
    return follow(lambda: _status(socket), as_json, lambda: time.sleep(interval))


def follow(look: Callable[[], Status], as_json: bool, pause: Callable[[], None]) -> int:
    """Show the status again and again until a person stops it; a control that went away may come back."""
    console = terminal()
    full = console.is_terminal and not as_json
    try:
        with Live(console=console, screen=full, auto_refresh=False) as live:
            while True:
                found, drawn = _look(look)
                if as_json:
                    sys.stdout.write(json.dumps(found) + "\n")
                    sys.stdout.flush()
                elif full:
                    live.update(drawn, refresh=True)
                else:
                    console.print(drawn)
                pause()
    except KeyboardInterrupt:
        return OK


def _look(look: Callable[[], Status]) -> tuple[dict[str, Any], RenderableType]:
    try:
        view = look()
    except Unreachable as error:
        return {"error": str(error)}, Text(f"● {error}", style="red")
    return view.model_dump(mode="json"), screen.status(view)


def _status(socket: Path) -> Status:
    with Control(socket) as control:
        return control.status()


@app.command()
def candidates(state: State = None, as_json: Json = False) -> int:
    """List all candidates, the latest first."""
    with Control(socket_of(state_of(state))) as control:
        found = control.candidates()
    data = [view.model_dump(mode="json") for view in found]
    tell(as_json, data, screen.candidates(found, SystemClock().now()))
    return OK


@app.command()
def show(
    name: Annotated[str, typer.Argument(metavar="ID", help="The id, or a unique beginning of it.")],
    state: State = None,
    as_json: Json = False,
) -> int:
    """Show one candidate: why it exists, what the guards say, all digests, where its report lies."""
    with Control(socket_of(state_of(state))) as control:
        found = control.candidate(name)
    drawn = screen.candidate(found.candidate, found.subject, SystemClock().now())
    tell(as_json, found.model_dump(mode="json"), drawn)
    return OK


@app.command()
def history(
    after: Annotated[
        int | None,
        typer.Option("--after", min=0, metavar="SEQ", show_default="the end", help="Show what follows SEQ."),
    ] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=10_000, help="At most so many.")] = 50,
    kind: Annotated[str | None, typer.Option("--kind", help="Only entries of this kind.")] = None,
    state: State = None,
    as_json: Json = False,
) -> int:
    """Show the journal, in order: the last entries, or those after a sequence number."""
    with Control(socket_of(state_of(state))) as control:
        found = control.history(after, limit, kind) if after is not None else _last(control, limit, kind)
    tell(as_json, [entry.model_dump(mode="json") for entry in found], screen.history(found))
    return OK


def _last(control: Control, limit: int, kind: str | None) -> tuple[EntryView, ...]:
    """Return the last ``limit`` entries of a kind; of all kinds, a count finds them at once."""
    if kind is None:
        return control.history(max(0, control.status().journal_entries - limit), limit)
    found: tuple[EntryView, ...] = ()
    block = control.history(0, _PAGE, kind)
    while block:
        found = (*found, *block)[-limit:]
        block = control.history(block[-1].seq, _PAGE, kind)
    return found


@audit.command("verify")
def audit_verify(state: State = None, as_json: Json = False) -> int:
    """Verify the journal's chain on disk, from its outside head back to the first entry; needs no instard.

    Exits 0 when every entry is as it was written, 2 with the sequence number where it is not.
    """
    from daemon.store.journal import verify

    path = state_of(state) / "journal.db"
    if not path.is_file():
        warn(Text(f"instar: expected a journal at {path}, there is none; is --state right?", style="red"))
        return ERROR
    found = verify(path)
    data = {"entries": found.entries, "valid": found.valid, "seq": found.seq, "reason": found.reason}
    if found.valid:
        line = Text(f"✓ {found.entries:,} entries, every link holds: {path}", style="green")
    else:
        at = "its end" if found.seq is None else f"entry {found.seq}"
        line = Text(f"✗ {path} is not as it was written at {at}: {found.reason}", style="bold red")
    tell(as_json, data, line)
    return OK if found.valid else REFUSED


@app.command()
def check(
    path: Annotated[Path, typer.Argument(metavar="POLICY", help="The policy file, TOML.")],
    task: Annotated[
        Path | None, typer.Option("--task", metavar="TASK", help="It must fit this task.")
    ] = None,
    signers: Annotated[
        Path | None, typer.Option("--signers", metavar="FILE", help="Check POLICY.sig against these signers.")
    ] = None,
    as_json: Json = False,
) -> int:
    """Check a policy file before it is put in force; every fault names its key, clause and line.

    Also says how many gate rows each margin takes. Exits 2 when there is a fault.
    """
    found = lint.check(path, task, signers, SystemClock().now())
    data = {
        "digest": found.digest,
        "version": None if found.policy is None else found.policy.version,
        "faults": list(found.faults),
        "notes": list(found.notes),
        "required_rows": {margin.key: margin.rows for margin in found.margins},
    }
    tell(as_json, data, screen.lint(found))
    return REFUSED if found.faults else OK


@app.command()
def version(as_json: Json = False) -> int:
    """Print the installed version."""
    tell(as_json, {"version": installed("instar")}, Text(f"instar {installed('instar')}"))
    return OK


@app.command(
    "demo",
    add_help_option=False,
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
)
def run_demo(context: typer.Context) -> int:
    """Run the whole story on this machine: serve, drift, detect, search, judge, approve, swap."""
    # The demo starts processes and loads much; no other verb pays for it, and it brings its own flags.
    from daemon.console.demo import demo

    story = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    story.command()(demo)
    return _code(story(context.args, prog_name="instar demo", standalone_mode=False))


for order in (orders.approve, orders.decline, orders.rollback, orders.freeze, orders.thaw):
    app.command(rich_help_panel="Orders, journalled")(order)
policy.command("reload")(orders.policy_reload)
app.add_typer(policy, name="policy")
app.add_typer(audit, name="audit")
app.add_typer(searching.app, name="search")


def _code(answer: object) -> int:
    return answer if isinstance(answer, int) else OK


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    try:
        return _code(app(argv, prog_name="instar", standalone_mode=False))
    except _UsageError as error:
        error.show()  # type: ignore[attr-defined]
        return USAGE
    except typer.Abort:
        return ERROR
    except InstarError as error:
        warn(Text(f"instar: {error}", style="red"))
        return next((code for kind, code in _CODES if isinstance(error, kind)), ERROR)
