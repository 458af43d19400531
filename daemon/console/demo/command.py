"""``instar demo``: the flags, the processes' lifetime, the table, and the exit status.

* Exit status with ``--exit``: 0 only if the loop really closed, else 1, with every reason.
* Without it the service stays up, on the drifted camera, until Ctrl-C.
* However the demo ends, its processes end with it.
"""

import signal
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from daemon.console.demo import scene as scenes
from daemon.console.demo import table
from daemon.console.demo.line import Line
from daemon.console.demo.narrative import Narrative
from daemon.console.demo.processes import Processes, check_ports
from daemon.console.demo.reckoning import reckon
from daemon.console.demo.result import Figures, faults
from daemon.console.demo.scene import PRINCIPAL, Scene
from daemon.console.demo.story import Story, Stuck
from daemon.console.demo.wishes import HOST, Ports, Wishes
from daemon.console.options import ERROR, OK, terminal
from policies.clock import SystemClock

_INTERRUPTED = 130


def demo(
    state: Annotated[
        Path, typer.Option(metavar="DIR", help="State folder; made afresh unless --keep.")
    ] = Path(".instar/demo"),
    example: Annotated[Path, typer.Option(metavar="DIR", help="The example's folder.")] = Path(
        "examples/meter-reader"
    ),
    rate: Annotated[float, typer.Option(help="Requests a second, 20 to 150.")] = 100.0,
    drift: Annotated[str, typer.Option(help="tilt-fade, noise or blur.")] = "tilt-fade",
    strength: Annotated[float, typer.Option(help="How much of the drift, 0 to 3; 1 is whole.")] = 1.0,
    budget: Annotated[
        float | None,
        typer.Option(
            min=1.0,
            metavar="CPU-S",
            show_default="as in the policy",
            help="Budget of one search, in CPU-seconds.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of camera and searches.")] = 1,
    quiet_s: Annotated[float, typer.Option(help="The quiet while between commissioning and drift.")] = 30.0,
    wait_for_me: Annotated[
        bool, typer.Option("--wait-for-me", help="Let a person approve or decline the adaptation.")
    ] = False,
    leave: Annotated[
        bool, typer.Option("--exit", help="Leave after the table; 0 only if the loop really closed.")
    ] = False,
    keep: Annotated[bool, typer.Option("--keep", help="Go on with the state that is there.")] = False,
    ports: Annotated[
        str, typer.Option(metavar="SERVE/METRICS/CONTROL", help="Ports, on the loopback address.")
    ] = "8080/8082/8090",
    no_color: Annotated[bool, typer.Option("--no-color", help="No colour.")] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the table's figures there, too.")
    ] = None,
) -> int:
    """Run the whole story on this machine: serve, drift, detect, search, judge, approve, swap.

    A camera reads digits through the data plane; after a quiet while it tilts and its light fades. The daemon
    notices, searches, has its candidate judged and signed, swaps it in, and a table says what that was worth.
    The approving key is made on the spot and guards nothing: it is a DEMO KEY.
    """
    wishes = Wishes(
        state=state,
        example=example,
        rate=rate,
        drift=drift,
        strength=strength,
        budget_cpu_s=budget,
        seed=seed,
        quiet_s=quiet_s,
        wait_for_me=wait_for_me,
        leave=leave,
        keep=keep,
        ports=Ports.parse(ports),
    )
    console = terminal()
    console.no_color = console.no_color or no_color
    check_ports(wishes.ports.named())
    scene = scenes.prepare(wishes)
    # A supervisor's stop is an interrupt, too: the children must end either way.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    return _run(scene, wishes, console, json_file)


def _run(scene: Scene, wishes: Wishes, console: Console, json_file: Path | None) -> int:
    clock = SystemClock()
    began = clock.monotonic()
    narrative = Narrative(console, lambda: clock.monotonic() - began)
    narrative.show(_banner(scene))
    try:
        with Processes(scene.logs) as processes, Line(scene.socket) as line:
            story = Story(scene, wishes, processes, line, narrative, clock, time.sleep)
            figures = _play(story, scene, wishes, processes)
            narrative.show(table.render(figures))
            if json_file is not None:
                table.write(figures, json_file)
            if not wishes.leave:
                narrative.show(_invitation(scene, wishes))
                story.linger()
            return ERROR if faults(figures) else OK
    except KeyboardInterrupt:
        narrative.still()
        narrative.say("interrupted; everything is stopped")
        return _INTERRUPTED if wishes.leave else OK


def _play(story: Story, scene: Scene, wishes: Wishes, processes: Processes) -> Figures:
    """Play the story and reckon; one that got stuck is reckoned, too."""
    stuck = None
    try:
        story.play()
    except Stuck as error:
        stuck = str(error)
    if wishes.leave:
        # Only then is the count of requests that of the whole run.
        processes.stop("camera")
    story.close()
    oracle = story.oracle.verdict() if stuck is None else None
    return reckon(
        scene, wishes, story.moments, story.chronicle, story.bundles, oracle, story.oracle.test, stuck
    )


def _banner(scene: Scene) -> Panel:
    text = Text(
        f"DEMO KEY: {PRINCIPAL} signs with {scene.key}, made on the spot.\n"
        "Anyone at this machine can approve. Not for production."
    )
    return Panel(text, title="instar demo", style="bold red", expand=False)


def _invitation(scene: Scene, wishes: Wishes) -> Panel:
    ports = wishes.ports
    text = Text(
        f"Console   http://{HOST}:{ports.control}\n"
        f"Serving   http://{HOST}:{ports.serve}/v2/models/{scene.model}\n"
        f"Metrics   http://{HOST}:{ports.metrics}/metrics and http://{HOST}:{ports.control}/metrics\n"
        f"Status    instar status --state {scene.state}\n"
        f"Audit     instar audit verify --state {scene.state}\n"
        "Everything stays up, on the drifted camera, until Ctrl-C."
    )
    return Panel(text, title="Look around (DEMO KEY)", expand=False)
