"""A process and all that it started: their CPU time, and their end.

Read from ``/proc``; a process that ends meanwhile is no longer counted. What a server's processes used before
they ended is in their parent's count of its children.
"""

import contextlib
import os
import signal
import time
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
_STOP_S, _LOOK_S = 20.0, 0.02


def pids(root: int) -> list[int]:
    """Return a process and its descendants."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (told := _stat(int(entry.name))) is not None:
            children.setdefault(int(told[1]), []).append(int(entry.name))
    found = [root]
    for pid in found:
        found += children.get(pid, [])
    return found


def cpu_s(root: int) -> float:
    """Return the CPU-seconds that a tree has used, with those of its children that have ended."""
    stats = [told for pid in pids(root) if (told := _stat(pid)) is not None]
    return sum(sum(int(ticks) for ticks in told[11:15]) for told in stats) / _TICKS


def end(root: int) -> None:
    """End a tree: the root is asked, and what is left of the tree is killed."""
    members = _members(root)
    with contextlib.suppress(ProcessLookupError):
        os.kill(root, signal.SIGTERM)
    _await_end({root: members[root]} if root in members else {})
    for pid, began in members.items():
        if alive(pid, began):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    _await_end(members)


def alive(pid: int, began: str | None = None) -> bool:
    """Tell whether a process runs: it is there, it is no zombie, and it is the one that began then.

    Args:
        pid: Its number, which may by now be somebody else's.
        began: When it began, in ticks since the machine's start; None takes whoever has the number.
    """
    told = _stat(pid)
    return told is not None and told[0] != "Z" and began in (None, told[19])


def _members(root: int) -> dict[int, str]:
    """Return the processes of a tree, each with when it began."""
    return {pid: told[19] for pid in pids(root) if (told := _stat(pid)) is not None}


def _await_end(members: dict[int, str]) -> None:
    until = time.monotonic() + _STOP_S
    while time.monotonic() < until and any(alive(pid, began) for pid, began in members.items()):
        time.sleep(_LOOK_S)


def _stat(pid: int) -> list[str] | None:
    """Return the fields of ``/proc/PID/stat`` from the state on (proc_pid_stat(5), field 3)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
