"""One-shot worker processes: search and guards, started, watched, charged and ended from outside.

* A worker is a command and a folder; its outcome is a file it leaves there, or its absence.
* It gets idle scheduling, a CPU limit by the kernel, a memory limit and a deadline by the supervisor.
* A search runs in a cage (``cage``): its rooms, its folder and what its brief names, nothing else of ours.
  Where the machine cannot make one it still runs, with a warning, and ``Worker.caged`` says so.
* It outlives a killed control plane: the next start finds it by its pid file and goes on waiting for it.
* An exit code or a missing file is an answer ("failed"), never an exception.
"""

import importlib.util
import json
import logging
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from daemon.control import cage
from daemon.control.cage import Grants
from daemon.ops.memory import first_to_go
from daemon.ops.scheduling import keep_off
from policies.clock import Clock
from policies.errors import PermanentError
from policies.world import JobState

log = logging.getLogger(__name__)

_TICKS = os.sysconf("SC_CLK_TCK")

_ROOMS = {"search": ("search", "policies")}
"""Modules that run in a cage, and the rooms that each may import. The panel needs the gate, and has none."""

_LIBRARIES = ("/usr", "/bin", "/lib", "/lib32", "/lib64")
_MACHINE = (
    *("/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/ld.so.preload", "/etc/localtime"),
    *("/dev/urandom", "/proc/self", "/proc/cpuinfo", "/proc/meminfo", "/sys/devices/system/cpu"),
    "/sys/class/powercap/intel-rapl:0/energy_uj",
)
"""What an interpreter with torch and onnxruntime reads of the machine it runs on."""

SESSION_NICE = 10
"""A search's session among others, as ``nice`` counts (sched(7), autogroup): a tenth of what another has.

Less keeps the neighbours' tail no better, and lets a search on a busy machine starve until its deadline.
"""

_CAGE = "cage.json"
"""In a worker's folder, out of its reach: what it was granted."""


@dataclass(frozen=True)
class Allowance:
    """What a worker may use, enforced from outside it; ``off_cpus`` are those that a search keeps off."""

    cpu_s: float
    memory_bytes: int
    wall_s: float
    threads: int
    off_cpus: frozenset[int] = frozenset()


@dataclass
class Worker:
    """One process at work; ``process`` is None for one that a former control plane started."""

    folder: Path
    result: Path
    pid: int
    allowance: Allowance
    deadline: float
    process: subprocess.Popen[bytes] | None
    caged: bool = False
    cpu_s: float = 0.0
    ended: str | None = None

    def poll(self, monotonic: float) -> JobState:
        """Look at the process once, and end it when it oversteps its allowance."""
        if self.ended is not None:
            return JobState.DONE if self.ended == "done" else JobState.FAILED
        alive = self._alive()
        if alive:
            over = self._overstep(monotonic)
            if over is None:
                return JobState.RUNNING
            self._kill()
            self.ended = over
            return JobState.FAILED
        self.ended = self._verdict()
        return JobState.DONE if self.ended == "done" else JobState.FAILED

    def stop(self) -> None:
        """End the process now."""
        if self._alive():
            self._kill()
            self.ended = self.ended or "stopped"

    def _alive(self) -> bool:
        used = process_cpu_s(self.pid)
        if used is not None:
            self.cpu_s = max(self.cpu_s, used)
        if self.process is not None:
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            if self.process.poll() is None:
                return True
            # The kernel adds a child's whole use to ours when it is reaped: the difference is its own.
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            self.cpu_s = max(self.cpu_s, spent)
            return False
        return is_ours(self.pid, self.folder)

    def _overstep(self, monotonic: float) -> str | None:
        if monotonic > self.deadline:
            return f"took longer than {self.allowance.wall_s:.0f} s"
        if self.cpu_s > self.allowance.cpu_s:
            return f"used {self.cpu_s:.0f} CPU-s of {self.allowance.cpu_s:.0f} allowed"
        held = process_rss_bytes(self.pid)
        if held is not None and held > self.allowance.memory_bytes:
            return f"held {held / 1e6:.0f} MB of {self.allowance.memory_bytes / 1e6:.0f} MB allowed"
        return None

    def _kill(self) -> None:
        try:
            os.kill(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            return
        if self.process is not None:
            self.process.wait()

    def _verdict(self) -> str:
        if self.result.is_file():
            return "done"
        refusal = self.result.parent / "refusal.json"
        if refusal.is_file():
            try:
                return f"refused: {str(json.loads(refusal.read_bytes())['reason'])[:500]}"
            except (OSError, ValueError, KeyError, TypeError):
                return "refused, and its refusal.json is unreadable"
        code = None if self.process is None else self.process.returncode
        if code is not None and code < 0:
            return f"killed by {signal.Signals(-code).name}"
        return f"ended with exit code {code} and no {self.result.name}"


def process_cpu_s(pid: int) -> float | None:
    """Return the CPU-seconds a living process has used, or None."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def process_rss_bytes(pid: int) -> int | None:
    """Return the resident bytes of a living process, or None."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (FileNotFoundError, ProcessLookupError, IndexError):
        return None
    return pages * resource.getpagesize()


def is_ours(pid: int, folder: Path) -> bool:
    """Tell whether a pid is a living worker of this folder (a pid may have been given anew)."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return str(folder / "out").encode() in command.split(b"\0") and state != "Z"


def start(module: str, case: Path, folder: Path, result: str, allowance: Allowance, clock: Clock) -> Worker:
    """Start ``python -m module CASE OUT`` in a folder.

    Args:
        module: ``search`` or ``guards``.
        case: The file it reads.
        folder: Its own folder; output goes to ``folder/out``, what it prints to ``folder/log``.
        result: The file in ``out`` whose presence means success.
        allowance: What it may use.
        clock: For the deadline.
    """
    out = folder / "out"
    out.mkdir(parents=True, exist_ok=True)
    for stale in (out / result, out / "refusal.json", out / "progress.json"):
        stale.unlink(missing_ok=True)
    threads = str(allowance.threads)
    environment = os.environ | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    command = [sys.executable, "-m", module, str(case), str(out)]
    caged = _make_cage(module, case, folder)
    if caged:
        # Isolated and without site: the cage is locked before any file that could be changed is run.
        command[1:1] = ["-P"]
        command[:0] = [sys.executable, "-I", "-S", cage.__file__, str(folder / _CAGE), "--"]
        environment |= {"PYTHONPATH": str(folder / "rooms"), "TMPDIR": str(folder / "tmp")}
    with (folder / "log").open("ab") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
    _restrain(process.pid, allowance)
    # The panel keeps its share, since it times networks for a verdict.
    if module != "guards":
        _yield_as_a_group(process.pid)
        log.info("worker %s: %s", folder.name, first_to_go(process.pid))
        if allowance.off_cpus:
            log.info("worker %s: %s", folder.name, keep_off(process.pid, allowance.off_cpus))
    (folder / "pid").write_text(str(process.pid))
    return Worker(
        folder=folder,
        result=out / result,
        pid=process.pid,
        allowance=allowance,
        deadline=clock.monotonic() + allowance.wall_s,
        process=process,
        caged=caged,
    )


def find(folder: Path, result: str, allowance: Allowance, monotonic: float) -> Worker | None:
    """Return the worker that a former control plane left in a folder: at work, or done; else None."""
    try:
        pid = int((folder / "pid").read_text())
    except (FileNotFoundError, ValueError):
        return None
    path = folder / "out" / result
    if not path.is_file() and not is_ours(pid, folder):
        return None
    caged = (folder / _CAGE).is_file()
    return Worker(folder, path, pid, allowance, monotonic + allowance.wall_s, process=None, caged=caged)


def _make_cage(module: str, case: Path, folder: Path) -> bool:
    """Lay out the cage of a module that must have one; return whether its worker will be in it."""
    (folder / _CAGE).unlink(missing_ok=True)
    if module not in _ROOMS:
        return False
    (folder / "tmp").mkdir(exist_ok=True)
    rooms = {room: _package(room) for room in _ROOMS[module]}
    libraries = (*dict.fromkeys((sys.prefix, sys.base_prefix, *_LIBRARIES)), *map(str, rooms.values()))
    own = Grants(
        execute=libraries,
        read=(*_MACHINE, *_artefacts(case), str(case), str(folder)),
        write=(str(folder / "out"), str(folder / "tmp"), "/dev/null"),
    )
    others = Grants(own.execute, own.read[:-1], ())
    lacks = cage.shortcoming()
    if lacks is None and (hole := others.over(folder.resolve())):
        lacks = f"the state lies inside {hole}, which a search must read; move one of them"
    if lacks is not None:
        log.warning("worker %s runs without a cage, and could read all that this user can: %s", folder, lacks)
        return False
    # Links to its rooms alone: the folder that holds them may hold the state too.
    (folder / "rooms").mkdir(exist_ok=True)
    for room, place in rooms.items():
        (folder / "rooms" / room).unlink(missing_ok=True)
        (folder / "rooms" / room).symlink_to(place)
    (folder / _CAGE).write_bytes(own.to_json())
    return True


def _package(name: str) -> Path:
    """Return where a package lies, without importing it.

    Raises:
        PermanentError: There is none.
    """
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise PermanentError(f"expected a package {name} to be installed, found none; install instar again")
    return Path(spec.submodule_search_locations[0]).resolve()


def _artefacts(case: Path) -> Iterator[str]:
    """Yield the file of every artefact that a brief names; paths are relative to the brief's folder."""
    waiting = [json.loads(case.read_bytes())]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict) and value.keys() == {"path", "digest"}:
            yield str(case.parent / value["path"])
        elif isinstance(value, dict | list):
            waiting += value.values() if isinstance(value, dict) else value


def _restrain(pid: int, allowance: Allowance) -> None:
    # Idle scheduling keeps the data plane's tail latency; nice alone does not (see docs).
    try:
        os.sched_setscheduler(pid, os.SCHED_IDLE, os.sched_param(0))
        hard = int(allowance.cpu_s) + 30
        resource.prlimit(pid, resource.RLIMIT_CPU, (hard, hard))
    except ProcessLookupError:
        log.info("worker %s ended before it was restrained", pid)
    except PermissionError as error:
        log.warning("worker %s runs without idle scheduling: %s", pid, error)


def _yield_as_a_group(pid: int) -> None:
    """Let a search's session count for little among the sessions of this machine.

    The panel's is left as it is: it times networks.
    """
    # Where the kernel schedules by session (autogroup), idle is idle inside the session alone, and the kernel
    # even places others on its processor: worse than no protection (benchmarks/search/neighbour.py).
    try:
        Path(f"/proc/{pid}/autogroup").write_text(str(SESSION_NICE))
    except (FileNotFoundError, ProcessLookupError):
        log.debug("worker %s has no session to be scheduled by", pid)
    except OSError as error:
        log.warning("worker %s yields inside its session alone: %s", pid, error)
