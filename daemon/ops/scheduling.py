"""What a process may tell the kernel's scheduler about itself, or about a worker that it has just started.

* ``yield_nothing`` is for the one that answers requests: a CPU of its own where one is named, a short slice,
  and weight for its session. ``instar-serve`` calls it once, before it starts a thread: threads inherit.
* ``keep_off`` is for whoever starts a search beside it: the CPUs that remain.
* Nothing here takes a privilege. What the kernel does not know or does not allow is told in words, for the
  log, and is no error; a named CPU that this process may not use is one, since somebody asked for it.
* A service manager's own settings (CPUWeight, AllowedCPUs) weigh more than all of this; see the units.

Idle priority of workers, and the weight of their sessions: ``daemon.control.workers``.

Source: sched(7) on autogroups; sched_setattr(2); Linux 6.12, kernel/sched/syscalls.c: of a normal task
``sched_runtime`` is the slice that it asks for, from 0.1 to 100 ms.
"""

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Set
from pathlib import Path

from policies.errors import PermanentError

SLICE_NS = 100_000
"""Shorter slices have earlier deadlines: who asks for little at a time gets it soon. The kernel's least."""

SESSION_NICE = -10
"""The serving session among others, as ``nice`` counts: nine times what another has."""

_SET_GET = {"x86_64": (314, 315), "aarch64": (274, 275)}
"""Numbers of sched_setattr and sched_getattr by architecture."""

# size, policy, flags, nice, priority, runtime, deadline, period: ``struct sched_attr``, first version.
_ATTR = struct.Struct("=IIQiIQQQ")

_AUTOGROUP = Path("/proc/self/autogroup")


def yield_nothing(pin: int | None = None) -> tuple[str, ...]:
    """Ask for the processor soon and before others; return what came of it, one sentence a measure.

    Args:
        pin: The CPU to stay on; None leaves that to the kernel.

    Raises:
        PermanentError: This process may not use that CPU.
    """
    pinned = () if pin is None else (_stay_on(pin),)
    return *pinned, _short_slice(), _heavy_session()


def keep_off(pid: int, cpus: Set[int]) -> str:
    """Keep a process that was just started off some CPUs; return what came of it.

    It may choose anew: a service manager's AllowedCPUs is what it could not change.

    Args:
        pid: Of the process; threads that it starts from now on inherit.
        cpus: What it shall leave alone.
    """
    try:
        rest = os.sched_getaffinity(pid) - cpus
        if not rest:
            return f"cpus: {pid} stays where it was, nothing is left beside {_listed(cpus)}"
        os.sched_setaffinity(pid, rest)
    except OSError as error:
        return f"cpus: {pid} stays where it was ({error.strerror})"
    return f"cpus: {pid} keeps to {_listed(rest)}"


def slice_ns(pid: int = 0) -> int | None:
    """Return the slice of a thread (0: this one), None where the kernel has no such thing."""
    numbers = _SET_GET.get(platform.machine())
    record = ctypes.create_string_buffer(_ATTR.size)
    if numbers is None or _call(numbers[1], pid, record, _ATTR.size, 0):
        return None
    return int(_ATTR.unpack(record.raw)[5]) or None


def _stay_on(cpu: int) -> str:
    try:
        os.sched_setaffinity(0, {cpu})
    except OSError as error:
        allowed = _listed(os.sched_getaffinity(0))
        raise PermanentError(
            f"expected to stay on CPU {cpu}, got {error.strerror}; this process may use {allowed}: name one "
            "of these, or leave the pinning to the service manager"
        ) from error
    return f"cpus: {cpu} alone"


def _short_slice() -> str:
    """Ask for a short slice, for this thread and those that it starts."""
    numbers = _SET_GET.get(platform.machine())
    if numbers is None:
        return f"slice: the kernel's (no number of sched_setattr for {platform.machine()})"
    policy = os.sched_getscheduler(0)
    if policy not in (os.SCHED_OTHER, os.SCHED_BATCH):
        return f"slice: the kernel's (policy {policy} has none)"
    wanted = _ATTR.pack(_ATTR.size, policy, 0, os.getpriority(os.PRIO_PROCESS, 0), 0, SLICE_NS, 0, 0)
    if code := _call(numbers[0], 0, wanted, 0):
        return f"slice: the kernel's ({os.strerror(code)})"
    # A kernel before 6.12 takes the wish, says nothing, and forgets it.
    if slice_ns() != SLICE_NS:
        return "slice: the kernel's (it takes no wish before 6.12)"
    return f"slice: {SLICE_NS // 1000} us"


def _heavy_session() -> str:
    """Give this process's session more than others have, where sessions are what the kernel schedules by."""
    if os.getsid(0) != os.getpid():
        # Somebody's terminal: what else runs in it would weigh as much, a search too.
        return "session: as it was (shared with others)"
    try:
        # Opened, not made: where the kernel has no such file there shall be none.
        with _AUTOGROUP.open("r+") as file:
            file.write(str(SESSION_NICE))
    except FileNotFoundError:
        return "session: as it was (the kernel does not schedule by session)"
    except OSError as error:
        return f"session: as it was ({error.strerror})"
    return f"session: nice {SESSION_NICE}"


def _call(number: int, *arguments: object) -> int:
    """Make a system call; return its error number, 0 where it worked."""
    # Numbers as wide as a register: of a bare int the upper half would be anything.
    wide = [ctypes.c_long(each) if isinstance(each, int) else each for each in arguments]
    if ctypes.CDLL(None, use_errno=True).syscall(ctypes.c_long(number), *wide) < 0:
        return ctypes.get_errno() or errno.EINVAL
    return 0


def _listed(cpus: Set[int]) -> str:
    return ", ".join(map(str, sorted(cpus))) or "none"
