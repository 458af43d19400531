"""The one place that knows everything: puts ``instard`` together and runs it.

* One control plane a state folder: the second exits with a clear word.
* A first policy that is refused stops the start; a later one that is refused does not.
* Two doors: the UNIX socket for what changes the world, the TCP listener for what shows it, and labels.
* With a fleet file there is a control plane a device class beside the main one, and the devices' doors.
"""

import asyncio
import contextlib
import logging
import os
import signal
import sys
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from starlette.applications import Starlette
from starlette.routing import Route

from daemon.console.events import Bell, events
from daemon.console.pages import pages
from daemon.console.telemetry import telemetry
from daemon.control import socket as control_socket
from daemon.control.book import Book
from daemon.control.jobs import Jobs
from daemon.control.law import Law
from daemon.control.operators import Operators
from daemon.control.performer import Performer
from daemon.control.schedule import HOUSEKEEPING_S, SNAPSHOT_S, VERIFY_S, Schedule
from daemon.control.sensors import Sensors
from daemon.control.shadows import Shadows
from daemon.control.targets.choice import open_target, parse
from daemon.control.targets.target import Target
from daemon.control.turn import Turn
from daemon.control.views import Views
from daemon.fleet.jobs import TurnstileJobs
from daemon.fleet.roll import load_fleet
from daemon.fleet.yard import FRESH_S, Yard, open_yard
from daemon.ops import logs, sd
from daemon.ops.doors import bind, bind_unix, door, opened
from daemon.ops.files import persist
from daemon.ops.metrics import ControlMetrics
from daemon.outside.opening import open_intake
from daemon.outside.records import Record
from daemon.rooms import check_rooms
from daemon.settings import ControlSettings
from daemon.store.blobs import Blobs
from daemon.store.journal import Journal
from daemon.store.lock import StateLock
from daemon.store.samples import Samples
from policies.clock import Clock, SystemClock
from policies.document import load_task
from policies.errors import InstarError, PolicyError
from policies.terms import Datatype, Source, Task

if TYPE_CHECKING:
    from daemon.outside.intake import Intake

log = logging.getLogger(__name__)

EXIT_CONFIG = 78
DRAIN_S = 5.0
MAX_SAMPLES = 200_000
"""Raw rows that are kept of each database; the oldest go first, founding rows stay."""


@dataclass
class Control:
    """A control plane, whole; tests make one without processes."""

    settings: ControlSettings
    task: Task
    book: Book
    law: Law
    jobs: Jobs
    shadows: Shadows
    sensors: Sensors
    samples: Samples
    link: Target
    intake: "Intake | None"
    turn: Turn
    operators: Operators
    views: Views
    metrics: ControlMetrics
    clock: Clock


def assemble(
    settings: ControlSettings, clock: Clock, link: Target | None = None, jobs_of: type[Jobs] = Jobs
) -> Control:
    """Put a control plane together over a state folder, which it may create.

    Args:
        settings: Where things live.
        clock: The control plane's.
        link: The target; None opens the one that the settings name.
        jobs_of: The class of its jobs.

    Raises:
        InstarError: The task, the policy or the journal is refused.
    """
    for folder in (settings.state, settings.run, settings.jobs, settings.reports, settings.snapshots):
        folder.mkdir(parents=True, exist_ok=True)
    task = load_task(settings.task)
    book = Book(Journal(settings.journal), clock)
    blobs = Blobs(settings.blobs)
    law = Law(settings.policy, settings.signers, task, book, blobs)
    protocol = law.policy.modification_protocol
    samples = Samples(settings.samples, _role_key(settings.state), protocol.data)
    _found(task, settings.task.parent, samples)
    sensors = Sensors(task, protocol.monitoring, settings.spool, samples, settings.snapshots, settings.seed)
    jobs = jobs_of(task, law, book, blobs, samples, settings.jobs, settings.seed)
    link = link or open_target(parse(settings.target), task.model, settings.serve_socket, blobs)
    link.abilities.check(law.policy)
    intake = open_intake(
        link, task.model, lambda: book.ledger, settings.blobs, settings.spool, settings.turn_s
    )
    shadows = Shadows(task.model, law, book, settings.blobs, settings.spool, settings.jobs)
    jobs.off_cpus = shadows.off_cpus = frozenset(() if settings.serve_cpu is None else (settings.serve_cpu,))
    performer = Performer(book, law, jobs, shadows, blobs, link, task.model, settings.reports)
    metrics = ControlMetrics(task.model)
    metrics.interval(settings.turn_s)
    book.listeners.append(metrics.entry)
    turn = Turn(book, law, jobs, shadows, sensors, samples, link, performer, metrics)
    operators = Operators(book, law, blobs, link, performer)
    views = Views(task, book, law, turn, sensors, blobs, settings.reports)
    live = book.ledger.live
    sensors.load(None if live is None else live.generation)
    return Control(
        *(settings, task, book, law, jobs, shadows, sensors, samples, link, intake, turn),
        *(operators, views, metrics, clock),
    )


def _found(task: Task, folder: Path, samples: Samples) -> None:
    """Take the task's founding files in; rows that are there already stay as they are.

    Raises:
        PolicyError: A file is missing or is not what the task says.
    """
    for source in task.sources:
        path = folder / source.path
        try:
            with np.load(path, allow_pickle=False) as file:
                x, y = file["x"][source.first : source.last], file["y"][source.first : source.last]
        except (OSError, ValueError, KeyError) as error:
            raise PolicyError(f"expected arrays x and y in {path}, got {error}") from error
        _check_rows(x, task, source, path)
        samples.ingest_source(x, y.astype(np.int64), at=0.0)


def _check_rows(x: np.ndarray, task: Task, source: Source, path: Path) -> None:
    wanted, dtype = task.input.shape[1:], _dtype(task.input.datatype)
    if x.shape[1:] != wanted or len(x) != source.last - source.first:
        raise PolicyError(
            f"expected {source.last - source.first} rows of shape {wanted} in {path}, got {x.shape}"
        )
    # Rows of another type would not be those that are served: the store keeps one type for ever.
    if x.dtype != dtype:
        raise PolicyError(
            f"expected rows of {dtype} in {path} for input {task.input.datatype}, got {x.dtype}; "
            "convert the file, or correct the task"
        )
    if dtype.kind == "f" and not np.isfinite(x).all():
        raise PolicyError(
            f"expected finite numbers in {path}, {int((~np.isfinite(x)).sum())} are not; remove or fill them"
        )


def _dtype(datatype: Datatype) -> np.dtype[np.generic]:
    """Return numpy's type of an input.

    >>> _dtype(Datatype.FP32), _dtype(Datatype.UINT8)
    (dtype('float32'), dtype('uint8'))
    """
    return np.dtype(datatype.value.lower().replace("fp", "float"))


def _role_key(state: Path) -> bytes:
    """Return the secret that roles are drawn with; made once, readable by this user alone."""
    path = state / "role.key"
    if not path.is_file():
        persist(path, os.urandom(32), mode=0o600)
    return path.read_bytes()


async def serve(control: Control, yard: Yard | None = None) -> None:
    """Run until a signal: the schedule in its threads, the doors in this loop, lanes beside the main one."""
    settings, book = control.settings, control.book
    schedule = Schedule(control.clock, control.metrics, lambda jump: _jumped(book, jump))
    # Doors first: a port that is taken must not leave a worker behind. Operators are those of the group.
    lanes = {} if yard is None else yard.lanes
    open_to_devices = [] if yard is None else yard.doors(DRAIN_S)
    planes = [control, *lanes.values()]
    listeners = [bind_unix(plane.settings.control_socket, 0o660) for plane in planes]
    listeners += [bind(settings.listen), *(listener for _, listener in open_to_devices)]
    _begin(control, schedule, "")
    for lane, plane in lanes.items():
        _begin(plane, schedule, f":{lane}")
    if yard is not None:
        schedule.every(FRESH_S, "releases", yard.keep_fresh)
        schedule.every(SNAPSHOT_S, "telemetry", yard.forget)
    inner = [control_socket.app(p.views, p.operators, p.law, p.turn) for p in planes]
    bell = Bell()
    book.listeners.append(lambda _kind, _body: bell.ring())
    outer = Starlette(routes=routes(control, bell))
    doors = [door(app, DRAIN_S) for app in (*inner, outer)] + [each for each, _ in open_to_devices]
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    open_doors = [asyncio.create_task(d.serve([s])) for d, s in zip(doors, listeners, strict=True)]
    await opened(doors, open_doors)
    schedule.start()
    watchdog = asyncio.create_task(_watch(control, schedule))
    sd.notify(READY="1", STATUS=control.views.phase())
    log.info("open: console=%s operators=%s", settings.listen, settings.control_socket)
    await asyncio.wait([asyncio.create_task(stop.wait()), *open_doors], return_when="FIRST_COMPLETED")
    sd.notify(STOPPING="1")
    log.info("stopping: the turn ends, workers stop, the monitors are kept")
    bell.close()
    for each in doors:
        each.should_exit = True
    watchdog.cancel()
    await asyncio.to_thread(schedule.stop)
    await asyncio.gather(*open_doors)
    for plane in planes:
        await asyncio.to_thread(_stop, plane)
    if yard is not None:
        yard.close()
    log.info("stopped")


def _begin(control: Control, schedule: Schedule, lane: str) -> None:
    """Verify the journal, find what a former process left, and put the plane's work on the schedule."""
    settings = control.settings
    control.turn.verify()
    control.jobs.recover()
    control.shadows.recover()
    control.book.write("control.started", pid=os.getpid(), version=version("instar"), target=settings.target)
    if not control.link.abilities.splits:
        log.warning(
            "target=%s: its traffic cannot be split, a newcomer on probation takes all of it", settings.target
        )
    schedule.every(settings.turn_s, f"turn{lane}", lambda: _turn(control))
    schedule.every(VERIFY_S, f"verify{lane}", control.turn.verify)
    schedule.every(SNAPSHOT_S, f"snapshot{lane}", lambda: _snapshot(control))
    schedule.every(HOUSEKEEPING_S, f"housekeeping{lane}", lambda: _keep_house(control))


def _stop(control: Control) -> None:
    try:
        _snapshot(control)
    finally:
        control.jobs.stop()
        control.shadows.stop()
    control.samples.close()
    control.link.close()
    if control.intake is not None:
        control.intake.close()
    control.book.journal.close()


def routes(control: Control, bell: Bell) -> list[Route]:
    """Return what the TCP listener answers."""
    page = Page(control)
    return [
        *pages(page, lambda task, labels: _labels(control, task, labels)),
        telemetry(None if control.intake is None else partial(_telemetry, control, control.intake)),
        events(page.history, bell),
    ]


async def _watch(control: Control, schedule: Schedule) -> None:
    """Pet the service manager's watchdog while turns really end, and only then."""
    demanded_s = sd.watchdog_s()
    begun = control.clock.monotonic()
    while demanded_s is not None:
        last = schedule.last_run.get("turn", begun)
        if control.clock.monotonic() - last < demanded_s:
            sd.notify(WATCHDOG="1")
        await asyncio.sleep(demanded_s / 4)


class Page:
    """What the pages may see."""

    def __init__(self, control: Control) -> None:
        views = control.views
        self.status = views.status
        self.candidates = views.candidates
        self.history = views.history
        self.report = views.report
        self.metrics = control.metrics.exposition


def _turn(control: Control) -> None:
    begun = {} if control.intake is None else control.intake.begun()
    if control.turn.run() is not None and control.intake is not None:
        control.intake.read(begun)
    with control.turn.lock:
        control.metrics.fold(
            stages=control.views.count_stages(),
            frozen=control.book.ledger.frozen is not None,
            chain_valid=control.turn.journal_valid,
            verified_at=control.turn.verified_at,
            budget_used=control.views.budget_used(),
            newcomer_share=0.0 if control.turn.observed is None else control.turn.observed.newcomer_share,
            pending_since=control.views.pending_since(),
            free_bytes=control.views.free_bytes(),
        )


def _snapshot(control: Control) -> None:
    with control.turn.lock:
        control.sensors.save()


def _keep_house(control: Control) -> None:
    """Bound the samples, and say how much the state holds."""
    gone = control.samples.trim(MAX_SAMPLES)
    if gone:
        log.info("samples=%d oldest rows forgotten", gone)
    with control.turn.lock:
        control.jobs.prune()
    settings = control.settings
    folders = {"blobs": settings.blobs, "samples": settings.samples, "spool": settings.spool}
    held = {kind: _size_bytes(folder) for kind, folder in folders.items()}
    held["journal"] = settings.journal.stat().st_size
    control.metrics.stored(held)


def _size_bytes(folder: Path) -> int:
    """Return the bytes of all files in a folder; one that goes away meanwhile counts for nothing."""
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            total += path.stat().st_size
    return total


def _labels(control: Control, task: str, labels: list[tuple[str, int | str]]) -> int:
    if task != control.task.name:
        raise KeyError(task)
    return control.sensors.take_labels(labels, control.clock.now())


def _telemetry(
    control: Control, intake: "Intake", task: str, key: str, records: list[Record]
) -> tuple[int, bool]:
    if task != control.task.name:
        raise KeyError(task)
    return intake.take(key, records, control.clock.now())


def _jumped(book: Book, jump: float) -> None:
    book.write("clock.jumped", seconds=round(jump, 3))
    log.warning("the wall clock jumped by %.1f s", jump)


def instard() -> None:
    """Run the control plane; the command ``instard``."""
    settings = ControlSettings.from_args(sys.argv[1:], dict(os.environ))
    logs.setup(settings.log_level)
    try:
        check_rooms()
        with StateLock(settings.state / "instard.lock"), contextlib.ExitStack() as held:
            fleet = None if settings.fleet is None else load_fleet(settings.fleet)
            jobs_of = Jobs if fleet is None else TurnstileJobs
            control = assemble(settings, SystemClock(), jobs_of=jobs_of)
            yard = None if fleet is None else open_yard(fleet, control, SystemClock(), assemble, held)
            asyncio.run(serve(control, yard))
    except (InstarError, OSError) as error:
        log.critical("%s", error)
        sys.stderr.write(f"instard: {error}\n")
        sys.exit(EXIT_CONFIG)
