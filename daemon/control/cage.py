"""The cage of a search: a process that may read its brief and its libraries, write its own folder, no more.

``python -I -S cage.py GRANTS -- COMMAND...`` locks itself in and becomes COMMAND; the pid stays. GRANTS is a
file with ``Grants`` as JSON. ``workers.start`` calls it for a search, and asks ``shortcoming`` first.

* Landlock holds the files: what is not granted can neither be opened, listed, made, renamed nor removed, and
  a process outside can be neither signalled nor traced. It takes no privilege and cannot be taken off.
* Seccomp holds what Landlock leaves open: sockets of every kind (UDP, a UNIX socket by its path), and what
  works on a path or a neighbour without opening it: chmod, chown, truncate, scheduling, limits.
* A cage that cannot be locked starts nothing: exit 71.
* It does not hide that a path exists, nor its size and times, and it does not limit memory or CPU time: that
  is the supervisor's work (``workers``).
* Before version 6 of Landlock (Linux 6.12) a search could still signal a process of its own user.
* It imports the standard library alone, so that nothing of ours runs before the cage is locked.

Source: Linux, Documentation/userspace-api/landlock.rst and seccomp_filter.rst; include/uapi/linux/landlock.h,
ABI 1 to 7, seccomp.h, filter.h and audit.h.
"""

import ctypes
import errno
import json
import os
import platform
import stat
import struct
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

NOT_LOCKED = 71
"""Exit code when the kernel refuses the cage (EX_OSERR of sysexits.h)."""

# -- Landlock ----------------------------------------------------------------------

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION, _PATH_BENEATH = 1, 1
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR, _REMOVE_DIR, _REMOVE_FILE = (1 << bit for bit in range(6))
_MAKE_DIR, _MAKE_REG = 1 << 7, 1 << 8
_REFER, _TRUNCATE, _IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15

_ON_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV
"""Rights that a rule on a file may name; the kernel refuses others there."""

_READ = _READ_FILE | _READ_DIR
# No links, FIFOs, sockets or devices: who reads what it left must not be led elsewhere or kept waiting.
_WRITE = _READ | _WRITE_FILE | _TRUNCATE | _MAKE_REG | _MAKE_DIR | _REMOVE_FILE | _REMOVE_DIR | _REFER


def _handled(abi: int) -> tuple[int, int, int]:
    """Return everything that this version can forbid: file rights, network rights, scopes.

    >>> [hex(rights) for rights in _handled(1)]
    ['0x1fff', '0x0', '0x0']
    >>> [hex(rights) for rights in _handled(7)]
    ['0xffff', '0x3', '0x3']
    """
    files = (1 << 13) - 1
    for since, right in ((2, _REFER), (3, _TRUNCATE), (5, _IOCTL_DEV)):
        files |= right if abi >= since else 0
    # TCP: bind and connect. Scopes: abstract UNIX sockets, and signals to processes outside.
    return files, 0b11 if abi >= 4 else 0, 0b11 if abi >= 6 else 0


# -- seccomp -------------------------------------------------------


@dataclass(frozen=True)
class _Machine:
    """Numbers of system calls of one architecture: refused, and allowed on oneself (pid 0) alone."""

    audit: int
    refused: tuple[int, ...]
    on_self: tuple[int, ...]
    foreign_from: int = 1 << 31


# Refused, in this order: socket and io_uring_setup (which opens sockets too); truncate; chmod, fchmodat and
# fchmodat2; chown, lchown and fchownat; setxattr, lsetxattr, removexattr, lremovexattr, setxattrat,
# removexattrat and file_setattr; utime, utimes, futimesat and utimensat; setpriority, sched_setparam,
# sched_setscheduler, sched_setattr and ioprio_set. fchmod and its like need an open file, granted above.
# Allowed on oneself: sched_setaffinity and prlimit64. aarch64 has fewer: some calls have no old form there.
_MACHINES = {
    "x86_64": _Machine(
        audit=0xC000003E,
        refused=(
            *(41, 425, 76, 90, 268, 452, 92, 94, 260, 188, 189, 197, 198, 463, 466, 469),
            *(132, 235, 261, 280, 141, 142, 144, 314, 251),
        ),
        on_self=(203, 302),
        foreign_from=0x40000000,  # the x32 ABI: the same calls under other numbers
    ),
    "aarch64": _Machine(
        audit=0xC00000B7,
        refused=(198, 425, 45, 53, 452, 54, 5, 6, 14, 15, 463, 466, 469, 88, 140, 118, 119, 274, 30),
        on_self=(122, 261),
    ),
}

_SET_NO_NEW_PRIVS, _GET_SECCOMP, _SET_SECCOMP, _FILTER = 38, 21, 22, 2
_LOAD, _IF_EQUAL, _IF_AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_NUMBER_AT, _ARCH_AT, _FIRST_ARGUMENT_AT = 0, 4, 16
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000 | errno.EACCES


def _program(machine: _Machine) -> bytes:
    """Return the filter as classic BPF: one comparison a call, each with its own verdict."""
    refuse = (_RETURN, 0, 0, _REFUSE)
    code = [(_LOAD, 0, 0, _ARCH_AT), (_IF_EQUAL, 1, 0, machine.audit), refuse]
    code += [(_LOAD, 0, 0, _NUMBER_AT), (_IF_AT_LEAST, 0, 1, machine.foreign_from), refuse]
    for number in machine.refused:
        code += [(_IF_EQUAL, 0, 1, number), refuse]
    for number in machine.on_self:
        code += [(_IF_EQUAL, 0, 4, number), (_LOAD, 0, 0, _FIRST_ARGUMENT_AT), (_IF_EQUAL, 0, 1, 0)]
        code += [(_RETURN, 0, 0, _ALLOW), refuse]
    code.append((_RETURN, 0, 0, _ALLOW))
    return b"".join(struct.pack("=HBBI", *line) for line in code)


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_char_p))


# -- the cage ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Grants:
    """What a caged process may touch: files, or folders with all that lies below them.

    A path that does not exist is passed over: it would be refused anyway.
    """

    execute: tuple[str, ...]
    read: tuple[str, ...]
    write: tuple[str, ...]

    def to_json(self) -> bytes:
        """Return the grants for the cage's command line."""
        return json.dumps(asdict(self), indent=1).encode()

    @classmethod
    def from_json(cls, raw: bytes) -> "Grants":
        """Read what ``to_json`` wrote."""
        return cls(**{name: tuple(paths) for name, paths in json.loads(raw).items()})

    def over(self, path: Path) -> str | None:
        """Return a granted folder that ``path`` lies in, or None.

        >>> Grants(execute=("/usr",), read=(), write=()).over(Path("/usr/share/state"))
        '/usr'
        """
        above = {str(path), *(str(parent) for parent in path.parents)}
        granted = self.execute + self.read + self.write
        return next((each for each in granted if str(Path(each).resolve()) in above), None)


def shortcoming() -> str | None:
    """Return what this machine lacks for a whole cage, in words; None where it lacks nothing."""
    if _landlock(_CREATE_RULESET, None, 0, _VERSION) < 1:
        return f"no Landlock in this kernel ({os.strerror(ctypes.get_errno())})"
    if platform.machine() not in _MACHINES:
        return f"no list of system calls for {platform.machine()}"
    if _prctl(_GET_SECCOMP) < 0:
        return f"no seccomp in this kernel ({os.strerror(ctypes.get_errno())})"
    return None


def lock(grants: Grants) -> None:
    """Lock this process in, for good; what it starts later is in it too.

    Raises:
        OSError: The kernel refuses.
    """
    abi = _done(_landlock(_CREATE_RULESET, None, 0, _VERSION), "ask for Landlock's version")
    files, network, scopes = _handled(abi)
    # An older kernel takes the longer record as long as what it does not know is zero.
    wanted = struct.pack("=QQQ", files, network, scopes)
    ruleset = _done(_landlock(_CREATE_RULESET, wanted, len(wanted), 0), "make a Landlock ruleset")
    for paths, rights in ((grants.execute, _READ | _EXECUTE), (grants.read, _READ), (grants.write, _WRITE)):
        for path in paths:
            _allow(ruleset, path, rights & files)
    _done(_prctl(_SET_NO_NEW_PRIVS, 1), "give up new privileges")
    _done(_landlock(_RESTRICT_SELF, ruleset, 0), "enter the Landlock ruleset")
    os.close(ruleset)
    code = _program(_MACHINES[platform.machine()])
    program = _Program(len(code) // 8, code)
    _done(_prctl(_SET_SECCOMP, _FILTER, ctypes.addressof(program)), "enter the seccomp filter")


def _allow(ruleset: int, path: str, rights: int) -> None:
    try:
        handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        if not stat.S_ISDIR(os.fstat(handle).st_mode):
            rights &= _ON_FILES
        rule = struct.pack("=Qi", rights, handle)
        _done(_landlock(_ADD_RULE, ruleset, _PATH_BENEATH, rule, 0), f"grant {path}")
    finally:
        os.close(handle)


def _landlock(number: int, *arguments: int | bytes | None) -> int:
    # Numbers as wide as a register: of a bare int the upper half would be anything.
    wide = (ctypes.c_long(each) if isinstance(each, int) else each for each in arguments)
    return int(ctypes.CDLL(None, use_errno=True).syscall(ctypes.c_long(number), *wide))


def _prctl(option: int, *arguments: int) -> int:
    wide = (ctypes.c_ulong(each) for each in (*arguments, 0, 0, 0, 0)[:4])
    return int(ctypes.CDLL(None, use_errno=True).prctl(option, *wide))


def _done(answer: int, what: str) -> int:
    if answer < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"expected to {what}, the kernel says {os.strerror(code)}")
    return answer


def main(arguments: Sequence[str]) -> int:
    """Lock in and become the command; return only when that fails."""
    if len(arguments) < 3 or arguments[1] != "--":
        print("usage: cage.py GRANTS -- COMMAND [ARGUMENT...]", file=sys.stderr)
        return 2
    grants, command = Grants.from_json(Path(arguments[0]).read_bytes()), list(arguments[2:])
    try:
        lock(grants)
        os.execv(command[0], command)
    except OSError as error:
        print(f"not started: {error}", file=sys.stderr)
    return NOT_LOCKED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
