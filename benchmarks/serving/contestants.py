"""Who is measured: how each is started, what it answers, and the bursts of one turn.

* A contestant has one turn a run: it is started on the servers' core, alone there; every door is asked once
  and the numbers are held against the runtime's; then each cell gets a burst; then it is ended.
* `Ours` is the runtime alone, Instar, and Instar without telemetry, all in one turn and cell by cell, in
  ``LAPS`` short bursts that take turns, since these are compared most closely, and a processor changes its
  pace from second to second. Which comes first changes from lap to lap.
* Who cannot do a form has no such cell.
"""

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, TypeVar

from benchmarks.serving import environments, stage, tree
from benchmarks.serving.asks import Form
from benchmarks.serving.course import MODELS, Cell, Course, rest_answer, verify
from benchmarks.serving.load import Burst, Door, joined
from benchmarks.serving.quiet import Watch, calmest
from policies.errors import PermanentError

RAW, INSTAR, SILENT, UVICORN = "raw", "Instar", "Instar, telemetry off", "uvicorn, tick batching"
LAPS = 3
_READY_S, _KNOCK_S = 120.0, 0.1


Bursts = dict[tuple[str, Cell], Burst]
One = TypeVar("One")


class Contestant(Protocol):
    """Whoever has a turn."""

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of its columns."""
        ...

    def turn(self, course: Course, number: int) -> Bursts:
        """Measure everything once; ``number`` is that of the run."""
        ...


@dataclass(frozen=True)
class Peer:
    """A server that is a script of ``peers/``, started with ``HTTP_PORT GRPC_PORT FOLDER`` and ``extra``.

    Args:
        name: Its column.
        environment: Of `environments.PEERS`; Instar's own if None.
        script: Its file.
        forms: What it answers.
        extra: Its further arguments.
    """

    name: str
    environment: str | None
    script: str
    forms: tuple[Form, ...]
    extra: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Return its one column."""
        return (self.name,)

    def turn(self, course: Course, number: int) -> Bursts:  # noqa: ARG002  the same in every run
        """Start it, look whether it answers rightly, measure, end it."""
        with self._up(course) as (process, http, grpc):
            doors = {form: Door(grpc if form is Form.GRPC else http, process.pid) for form in self.forms}
            _await(self.name, process, doors[Form.JSON], course)
            frames = {}
            for form, door in doors.items():
                frames |= verify(self.name, [(door, Cell(model, form)) for model in MODELS], course)
            cells = [Cell(model, form) for form in self.forms for model in MODELS]
            return {
                (self.name, cell): course.burst(doors[cell.form], cell, frames.get(cell, 0)) for cell in cells
            }

    @contextlib.contextmanager
    def _up(self, course: Course) -> Iterator[tuple[subprocess.Popen[bytes], str, str]]:
        """Run it; yield its process and its two addresses."""
        python = environments.python_of(self.environment) if self.environment else Path(sys.executable)
        ports = [str(stage.free_port()) for _ in range(2)]
        script = [
            str(python),
            str(environments.SCRIPTS / self.script),
            *ports,
            str(course.folder),
            *self.extra,
        ]
        with self.log(course).open("wb") as log:
            process = subprocess.Popen(
                ["taskset", "-c", str(stage.SERVER_CORE), *script],
                env=environments.environment(course.folder),
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )
            try:
                http, grpc = (f"{stage.HOST}:{port}" for port in ports)
                yield process, http, grpc
            finally:
                tree.end(process.pid)
                process.wait()

    def log(self, course: Course) -> Path:
        """Return where its words go."""
        return course.folder / f"{self.name.replace(' ', '-').replace(',', '')}.log"


class Ours:
    """The runtime alone, Instar, and Instar without telemetry."""

    def __init__(self) -> None:
        self.silent = stage.supports("--telemetry")
        self.grpc = stage.supports("--grpc")
        self.names = (RAW, INSTAR, *([SILENT] if self.silent else []))
        self.forms = tuple(form for form in Form if form is not Form.GRPC or self.grpc)

    def turn(self, course: Course, number: int) -> Bursts:
        """Start the servers, look whether they answer rightly, measure cell by cell, end them."""
        found: Bursts = {}
        lap = replace(course, seconds=max(1, course.seconds // LAPS))
        with contextlib.ExitStack() as stack:
            doors: dict[tuple[str, Cell], Door] = {}
            for name in self.names[1:]:
                for model in MODELS:
                    doors |= stack.enter_context(self._up(course, name, model, number))
            frames = verify(INSTAR, [(door, cell) for (_, cell), door in doors.items()], course)
            for cell in [Cell(model, form) for form in self.forms for model in MODELS]:
                there = [name for name in self.names if name != RAW or cell.form is not Form.GRPC]
                laps: dict[str, list[Burst]] = {name: [] for name in there}
                for name in [name for at in range(LAPS) for name in rotated(there, number + at)]:
                    if name == RAW:
                        burst = calmest(lambda cell=cell: raw(lap, cell.model))
                    else:
                        burst = lap.burst(doors[name, cell], cell, frames.get(cell, 0))
                    laps[name].append(burst)
                found |= {(name, cell): joined(mine) for name, mine in laps.items()}
        return found

    @contextlib.contextmanager
    def _up(
        self, course: Course, name: str, model: str, number: int
    ) -> Iterator[dict[tuple[str, Cell], Door]]:
        """Run one server of one model; yield its doors."""
        state = course.folder / f"{'silent' if name == SILENT else 'instar'}-{model}-{number}"
        state.mkdir()
        digest = stage.put(state, course.file(model).read_bytes())
        flags = ("--telemetry", "off", "--sample-bytes-per-s", "0") if name == SILENT else ()
        served = stage.start(state, model, *flags, grpc=self.grpc)
        try:
            stage.apply(state, model, 1, digest)
            http = f"{served.host}:{served.port}"
            yield {
                (name, Cell(model, form)): Door(
                    f"{served.host}:{served.grpc}" if form is Form.GRPC else http, served.process.pid
                )
                for form in self.forms
            }
        finally:
            served.stop()


def rotated(everybody: list[One], number: int) -> list[One]:
    """Return the order of a run, or of a lap.

    >>> rotated(["a", "b", "c"], 4)
    ['b', 'c', 'a']
    """
    first = number % len(everybody)
    return everybody[first:] + everybody[:first]


def raw(course: Course, model: str) -> Burst:
    """Measure the runtime alone.

    Raises:
        PermanentError: Its process failed.
    """
    lengths = [str(course.warm_s), str(course.seconds)]
    command = [sys.executable, "-m", "benchmarks.serving.raw", str(course.file(model)), *lengths]
    watch = Watch.start()
    done = subprocess.run(command, cwd=stage.ROOT, capture_output=True, text=True, check=False)
    others = watch.others(0.0)
    if done.returncode != 0:
        raise PermanentError(f"expected the runtime alone to run, got:\n{done.stderr[-600:]}")
    return Burst(**json.loads(done.stdout), others=others)


def _await(name: str, process: subprocess.Popen[bytes], door: Door, course: Course) -> None:
    """Wait until all models answer.

    Raises:
        PermanentError: They do not in time, or the process has ended.
    """
    until, missing = time.monotonic() + _READY_S, list(MODELS)
    while missing:
        try:
            rest_answer(door, course.ask(Cell(missing[0], Form.JSON)))
            del missing[0]
        except PermanentError as error:
            if process.poll() is not None or time.monotonic() > until:
                raise PermanentError(f"expected {name} to answer within {_READY_S:g} s: {error}") from error
            time.sleep(_KNOCK_S)


PEERS = (
    Peer(UVICORN, None, "uvicorn_tick.py", (Form.JSON, Form.BINARY)),
    Peer("MLServer", "mlserver", "mlserver_serve.py", (Form.JSON, Form.GRPC), ("0",)),
    Peer("MLServer, 1 worker", "mlserver", "mlserver_serve.py", (Form.JSON, Form.GRPC), ("1",)),
    Peer("LitServe", "litserve", "litserve_serve.py", (Form.JSON,)),
    Peer("BentoML", "bentoml", "bentoml_serve.py", (Form.JSON,)),
    Peer("PyTriton", "pytriton", "pytriton_serve.py", (Form.JSON, Form.BINARY, Form.GRPC)),
    Peer("Ray Serve", "ray", "ray_serve.py", (Form.JSON,)),
)
