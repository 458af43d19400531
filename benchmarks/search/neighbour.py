"""What a search costs the service beside it: latency of instar-serve at the demo's load, alone and not.

    python benchmarks/search/neighbour.py [--rounds 4] [--seconds 7]

A server with the bundle of ``benchmarks/serving/digits.py``, pinned to the first processor as the demo does
it, answers the example's camera at 100 requests/s: an open loop in a process of its own, latency counted from
the moment when a request was due, so with the camera's own lateness; ``wire`` counts from when it was sent.
Founding searches of the example's digits, one a processor, each started by ``workers.start`` with one thread
as an adaptation has it, are stopped (SIGSTOP) while they shall not be there:

* ``idle``: nothing but server and camera.
* ``search``: one search, as control starts it: at SCHED_IDLE, its session at ``workers.SESSION_NICE``.
* ``crowd``: one a processor, so that the server has none for itself, each as control starts it.
* ``unprotected``: the control. The same crowd at normal priority, its sessions too.

Prints one JSON line a phase, with the cores that the searches had and those that anybody else had; then the
median over the rounds, and its ratio to that of ``idle``. A phase in which others had more than 0.15 cores
says nothing and does not count; where none is left the answer is null.
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
from dataclasses import dataclass
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
PHASES = ("idle", "search", "crowd", "unprotected")
RATE, SETTLE_S, BEGIN_S = 100.0, 1.0, 60.0
OTHERS_CORES = 0.15
ALLOWANCE = Allowance(cpu_s=3600.0, memory_bytes=3_000_000_000, wall_s=3600.0, threads=1)


def digits() -> ModuleType:
    """Return the serving benchmarks' module that knows how to make a bundle and start a server."""
    path = ROOT / "benchmarks" / "serving" / "digits.py"
    spec = importlib.util.spec_from_file_location("digits", path)
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
        # Nothing is measured yet, and a busy machine must not keep it from beginning.
        schedule(worker.pid, protected=False)
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
def serving(state: Path) -> Iterator[tuple[str, int]]:
    """Start a server with a bundle; yield its address and its pid."""
    known = digits()
    state.mkdir()
    digest = known.make_bundle(state, 0)
    server, host, port = known.start(state)
    try:
        known.apply(state, 1, digest)
        yield f"http://{host}:{port}", server.pid
    finally:
        server.terminate()
        server.wait(30)


@contextlib.contextmanager
def filming(url: str, log: Path) -> Iterator[int]:
    """Let the example's camera send at the demo's rate, and no labels; yield its pid."""
    command = [sys.executable, str(EXAMPLE / "camera.py"), "--url", url, "--model", digits().MODEL]
    command += ["--rate", str(RATE), "--log", str(log), "--label-delay-s", "1e6", "1e6"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as camera:
        try:
            yield camera.pid
        finally:
            camera.terminate()
            camera.wait(30)


def schedule(pid: int, *, protected: bool) -> None:
    """Schedule a search as control does, or as any other process."""
    policy = os.SCHED_IDLE if protected else os.SCHED_OTHER
    for thread in Path(f"/proc/{pid}/task").iterdir():
        # A thread may end between the two lines.
        with contextlib.suppress(ProcessLookupError):
            os.sched_setscheduler(int(thread.name), policy, os.sched_param(0))
    # Kernels that do not schedule by session have no such file.
    with contextlib.suppress(FileNotFoundError):
        Path(f"/proc/{pid}/autogroup").write_text(str(workers.SESSION_NICE if protected else 0))


def enter(phase: str, searches: list[int]) -> None:
    """Let searches stand still, go on, or go on as if nothing protected the server."""
    at_work = {"idle": 0, "search": 1}.get(phase, len(searches))
    for place, pid in enumerate(searches):
        schedule(pid, protected=phase != "unprotected")
        os.kill(pid, signal.SIGCONT if place < at_work else signal.SIGSTOP)


@dataclass(frozen=True)
class Window:
    """One phase: when it was, and the cores that the searches and others had in it."""

    round: int
    phase: str
    began: float
    ended: float
    search_cores: float
    others_cores: float


def watch(number: int, phase: str, seconds: float, searches: list[int], ours: list[int]) -> Window:
    """Let a phase go by."""
    enter(phase, searches)
    time.sleep(SETTLE_S)
    before, began = (_used_s(searches), _used_s(ours), _busy_s()), time.time()
    time.sleep(seconds)
    after, ended = (_used_s(searches), _used_s(ours), _busy_s()), time.time()
    lasted = ended - began
    search, own, busy = ((b - a) / lasted for a, b in zip(before, after, strict=True))
    return Window(number, phase, began, ended, round(search, 2), round(max(0.0, busy - search - own), 2))


def rows(rounds: int = 4, seconds: float = 7.0) -> list[dict[str, Any]]:
    """Return one row a phase: what was asked, what failed, latencies, and who had the processors."""
    windows = []
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        here = Path(folder)
        url, server = stack.enter_context(serving(here / "state"))
        searches = [
            stack.enter_context(searching(here / f"search-{place}")).pid
            for place in range(len(os.sched_getaffinity(0)))
        ]
        log = here / "camera.log"
        with filming(url, log) as camera:
            ours = [server, camera, os.getpid()]
            for number in range(rounds):
                # Turned from round to round, so that what drifts with time meets all phases.
                turned = PHASES[number % len(PHASES) :] + PHASES[: number % len(PHASES)]
                windows += [watch(number + 1, phase, seconds, searches, ours) for phase in turned]
        lines = [json.loads(line) for line in log.read_text().splitlines()]
    return [_row(window, lines) for window in windows]


def summary(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the medians over the quiet rounds, and their ratios to ``idle``; None where there is none.

    >>> quiet = {"p50_ms": 1.0, "p99_ms": 4.0, "wire_p50_ms": 1.0, "wire_p99_ms": 3.0, "others_cores": 0.0}
    >>> beside = quiet | {"phase": "search", "p99_ms": 5.0}
    >>> told = summary([quiet | {"phase": "idle"}, beside, beside | {"p99_ms": 99.0, "others_cores": 1.0}])
    >>> told["p99_ms"]["search/idle"], told["p99_ms"]["crowd/idle"], told["rounds"]["search"]
    (1.25, None, 1)
    """
    quiet = {
        phase: [row for row in found if row["phase"] == phase and row["others_cores"] <= OTHERS_CORES]
        for phase in PHASES
    }
    told: dict[str, Any] = {"rounds": {phase: len(rounds) for phase, rounds in quiet.items()}}
    for key in ("p50_ms", "p99_ms", "wire_p50_ms", "wire_p99_ms"):
        middle = {
            phase: float(np.median([row[key] for row in rounds])) if rounds else None
            for phase, rounds in quiet.items()
        }
        idle = middle["idle"]
        told[key] = {phase: None if value is None else round(value, 3) for phase, value in middle.items()}
        for phase in PHASES[1:]:
            value = middle[phase]
            told[key][f"{phase}/idle"] = None if idle is None or value is None else round(value / idle, 2)
    return told


def _row(window: Window, lines: list[dict[str, Any]]) -> dict[str, Any]:
    mine = [line for line in lines if window.began <= line["at"] < window.ended]
    good = [line for line in mine if line["status"] == 200]
    row: dict[str, Any] = {"round": window.round, "phase": window.phase}
    row |= {"requests": len(mine), "failed": len(mine) - len(good)}
    for name, key in (("", "ms"), ("wire_", "wire_ms")):
        p50, p99 = np.percentile([line[key] for line in good], [50, 99])
        row |= {f"{name}p50_ms": round(float(p50), 3), f"{name}p99_ms": round(float(p99), 3)}
    return row | {"search_cores": window.search_cores, "others_cores": window.others_cores}


def _used_s(pids: list[int]) -> float:
    return sum(workers.process_cpu_s(pid) or 0.0 for pid in pids)


def _busy_s() -> float:
    """Return the CPU-seconds that all processors have been at work, since the machine's start."""
    counts = [int(count) for count in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return (sum(counts) - counts[3] - counts[4]) / os.sysconf("SC_CLK_TCK")


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except FileNotFoundError:
        return ""


def main() -> None:
    """Print the rows and what they come to."""
    parser = argparse.ArgumentParser(description="Latency of a server beside a search.")
    parser.add_argument("--rounds", type=int, default=4, help="rounds of four phases")
    parser.add_argument("--seconds", type=float, default=7.0, help="length of a phase, after one to settle")
    flags = parser.parse_args()
    found = rows(flags.rounds, flags.seconds)
    for row in found:
        print(json.dumps(row))
    print(json.dumps(summary(found)))


if __name__ == "__main__":
    main()
