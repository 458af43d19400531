"""What a search costs the service beside it: latency of instar-serve at the demo's load, alone and beside one.

    python benchmarks/search/neighbour.py [--rounds 5] [--seconds 9]

A server with the bundle of ``benchmarks/serving/swap.py``, pinned to the first processor as the demo does it,
answers the example's camera at 100 requests/s: an open loop in a process of its own, latency counted from the
moment when a request was due, so with the camera's own lateness; ``wire`` counts from when it was sent. A
founding search of the example's digits, started by ``workers.start`` with one thread as an adaptation has it,
is stopped (SIGSTOP) while nothing shall be beside the server, and goes on in the other phases:

* ``idle``: nothing but server and camera.
* ``search``: the search goes on as control starts it, at SCHED_IDLE.
* ``unprotected``: the control. The same search at normal priority.

Prints one JSON line a phase, with the cores that the search had in it, and the ratio of the medians of the
rounds' p99 to that of ``idle``. The first second of a phase does not count.
"""

import argparse
import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from daemon.control import workers
from daemon.control.workers import Allowance, Worker
from policies.clock import SystemClock
from policies.document import load_task
from policies.terms import Artefact, Brief, Limits, TriggerKind
from policies.wire import canonical, digest_bytes

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "meter-reader"
PHASES = ("idle", "search", "unprotected")
RATE, SETTLE_S, BEGIN_S = 100.0, 1.0, 60.0
ALLOWANCE = Allowance(cpu_s=3600.0, memory_bytes=3_000_000_000, wall_s=3600.0, threads=1)


def swap() -> ModuleType:
    """Return the serving benchmark, which knows how to make a bundle and start a server."""
    path = ROOT / "benchmarks" / "serving" / "swap.py"
    spec = importlib.util.spec_from_file_location("swap", path)
    if spec is None or spec.loader is None:
        raise SystemExit(f"expected a module at {path}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def brief(folder: Path) -> Path:
    """Write the brief of a founding search that has more to do than a benchmark lasts."""
    rows = 4000
    with np.load(EXAMPLE / "digits.npz", allow_pickle=False) as digits:
        x, y = digits["x"][:rows], digits["y"][:rows].astype(np.int64)
    role, regime = (np.arange(rows) % 5 == 0).astype(np.uint8), np.ones(rows, np.uint8)
    np.savez(folder / "data.npz", x=x, y=y, role=role, regime=regime)
    asked = Brief(
        id="search-1",
        kind=TriggerKind.FOUNDING,
        task=load_task(EXAMPLE / "task.toml"),
        seed=1,
        budget_cpu_s=ALLOWANCE.cpu_s,
        max_memory_bytes=ALLOWANCE.memory_bytes,
        threads=1,
        limits=Limits(
            max_params=400_000, max_size_bytes=2_000_000, max_p99_ms=25.0, max_edit_distance=10_000
        ),
        data=Artefact(path="data.npz", digest=digest_bytes((folder / "data.npz").read_bytes())),
        parent_generation=0,
        parent_genome=None,
        parent_state=None,
        parent_archive=None,
    )
    path = folder / "brief.json"
    path.write_bytes(canonical(asked))
    return path


@contextlib.contextmanager
def searching(folder: Path) -> Iterator[Worker]:
    """Start a search, wait until it trains, stop it; it is ended at the end."""
    folder.mkdir()
    clock = SystemClock()
    worker = workers.start("search", brief(folder), folder, "result.json", ALLOWANCE, clock)
    try:
        until = time.monotonic() + BEGIN_S
        while '"phase":"train"' not in _text(folder / "out" / "progress.json"):
            if worker.process is None or worker.process.poll() is not None or time.monotonic() > until:
                said = _text(folder / "log")[-1500:]
                raise SystemExit(f"expected a search that trains within {BEGIN_S:g} s, got:\n{said}")
            time.sleep(0.1)
        os.kill(worker.pid, signal.SIGSTOP)
        yield worker
    finally:
        worker.stop()


@contextlib.contextmanager
def serving(state: Path) -> Iterator[str]:
    """Start a server with a bundle; yield its address."""
    known = swap()
    state.mkdir()
    digest = known.make_bundle(state, 0)
    server, host, port = known.start(state)
    try:
        known.apply(state, 1, digest)
        yield f"http://{host}:{port}"
    finally:
        server.terminate()
        server.wait(30)


@contextlib.contextmanager
def filming(url: str, log: Path) -> Iterator[None]:
    """Let the example's camera send at the demo's rate; it sends no labels."""
    command = [sys.executable, str(EXAMPLE / "camera.py"), "--url", url, "--model", swap().MODEL]
    command += ["--rate", str(RATE), "--log", str(log), "--label-delay-s", "1e6", "1e6"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as camera:
        try:
            yield
        finally:
            camera.terminate()
            camera.wait(30)


def enter(phase: str, pid: int) -> None:
    """Let the search stand still, go on, or go on as if nothing protected the server."""
    policy = os.SCHED_OTHER if phase == "unprotected" else os.SCHED_IDLE
    for thread in Path(f"/proc/{pid}/task").iterdir():
        # A thread may end between the two lines.
        with contextlib.suppress(ProcessLookupError):
            os.sched_setscheduler(int(thread.name), policy, os.sched_param(0))
    os.kill(pid, signal.SIGSTOP if phase == "idle" else signal.SIGCONT)


def rows(rounds: int = 5, seconds: float = 9.0) -> list[dict[str, Any]]:
    """Return one row a phase: what was asked, what failed, latencies, and the cores that the search had."""
    windows = []
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        log = here / "camera.log"
        with (
            serving(here / "state") as url,
            searching(here / "search-1") as worker,
            filming(url, log),
        ):
            time.sleep(SETTLE_S)
            for number in range(rounds):
                # Turned from round to round, so that what drifts with time meets all phases.
                for phase in PHASES[number % 3 :] + PHASES[: number % 3]:
                    enter(phase, worker.pid)
                    time.sleep(SETTLE_S)
                    began, used = time.time(), workers.process_cpu_s(worker.pid) or 0.0
                    time.sleep(seconds)
                    ended, used = time.time(), (workers.process_cpu_s(worker.pid) or 0.0) - used
                    windows.append((number + 1, phase, began, ended, used))
        lines = [json.loads(line) for line in log.read_text().splitlines()]
    return [_row(window, lines) for window in windows]


def summary(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the medians over the rounds, and their ratios to ``idle``."""
    told: dict[str, Any] = {}
    for key in ("p50_ms", "p99_ms", "wire_p50_ms", "wire_p99_ms"):
        middle = {
            phase: float(np.median([row[key] for row in found if row["phase"] == phase])) for phase in PHASES
        }
        told[key] = {phase: round(value, 3) for phase, value in middle.items()}
        told[key] |= {f"{phase}/idle": round(middle[phase] / middle["idle"], 2) for phase in PHASES[1:]}
    return told


def _row(window: tuple[int, str, float, float, float], lines: list[dict[str, Any]]) -> dict[str, Any]:
    number, phase, began, ended, used = window
    mine = [line for line in lines if began <= line["at"] < ended]
    good = [line for line in mine if line["status"] == 200]
    row = {"round": number, "phase": phase, "requests": len(mine), "failed": len(mine) - len(good)}
    for name, key in (("", "ms"), ("wire_", "wire_ms")):
        p50, p99 = np.percentile([line[key] for line in good], [50, 99])
        row |= {f"{name}p50_ms": round(float(p50), 3), f"{name}p99_ms": round(float(p99), 3)}
    return row | {"search_cores": round(used / (ended - began), 2)}


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except FileNotFoundError:
        return ""


def main() -> None:
    """Print the rows and what they come to."""
    parser = argparse.ArgumentParser(description="Latency of a server beside a search.")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of three phases")
    parser.add_argument("--seconds", type=float, default=9.0, help="length of a phase, after one to settle")
    flags = parser.parse_args()
    found = rows(flags.rounds, flags.seconds)
    for row in found:
        print(json.dumps(row))
    print(json.dumps(summary(found)))


if __name__ == "__main__":
    main()
