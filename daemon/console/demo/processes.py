"""The processes of a demo: started with a log each, watched, and always ended.

* Every one is a process group of its own, so that Ctrl-C reaches the demo alone, and it ends them in order.
* A process that ends by itself ends the story, with its last words.
* Ended politely first, then for good: none outlives ``stop``.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from daemon.console.demo.wishes import HOST
from policies.errors import PermanentError

GRACE_S = 15.0
_LAST_LINES = 8


def script(name: str) -> str:
    """Return the path of an entry script of this very installation.

    Raises:
        PermanentError: There is none beside this interpreter.
    """
    path = Path(sys.executable).with_name(name)
    if not path.is_file():
        raise PermanentError(f"expected the command {name} beside {sys.executable}; install instar first")
    return str(path)


def check_ports(ports: Mapping[str, int]) -> None:
    """Refuse ports that somebody has.

    Raises:
        PermanentError: It names the port and what it is for.
    """
    for name, port in ports.items():
        with socket.socket() as probe:
            # As servers bind: the last connections of a former run do not count as somebody.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError as error:
                raise PermanentError(
                    f"expected port {port} to be free for {name}, got: {error.strerror}; end whoever has it "
                    "(an earlier demo?), or give --ports SERVE/METRICS/CONTROL"
                ) from error


class Processes:
    """All children; a context manager that leaves none."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._loyal: set[str] = set()

    def __enter__(self) -> Self:
        """Begin."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End every child."""
        self.stop()

    def start(self, name: str, argv: Sequence[str], *, passing: bool = False) -> None:
        """Start a child; its words go to ``<name>.out`` and ``<name>.log``.

        Args:
            name: What to call it.
            argv: Its command.
            passing: It may end by itself, and yields the processor to all others.
        """
        with (self._logs / f"{name}.out").open("wb") as out, (self._logs / f"{name}.log").open("wb") as log:
            child = subprocess.Popen(
                argv, stdin=subprocess.PIPE, stdout=out, stderr=log, start_new_session=True
            )
        self._children[name] = child
        if passing:
            os.setpriority(os.PRIO_PROCESS, child.pid, 19)
        else:
            self._loyal.add(name)

    def tell(self, name: str, line: str) -> None:
        """Write one line to a child's standard input.

        Raises:
            PermanentError: It does not listen any more.
        """
        pipe = self._children[name].stdin
        try:
            if pipe is not None:
                pipe.write(line.encode() + b"\n")
                pipe.flush()
        except OSError as error:
            raise PermanentError(self._epitaph(name)) from error

    def ended(self, name: str) -> bool:
        """Tell whether a passing child has ended.

        Raises:
            PermanentError: It failed.
        """
        code = self._children[name].poll()
        if code:
            raise PermanentError(self._epitaph(name))
        return code is not None

    def check(self) -> None:
        """Look after those that must not end.

        Raises:
            PermanentError: One has; it says which, and its last words.
        """
        for name in self._loyal:
            if self._children[name].poll() is not None:
                raise PermanentError(self._epitaph(name))

    def stop(self, *names: str) -> None:
        """End these children, or all, the latest first; what does not listen is killed."""
        chosen = names or tuple(reversed(self._children))
        for name in chosen:
            child = self._children.pop(name, None)
            self._loyal.discard(name)
            if child is not None:
                _end(child)

    def _epitaph(self, name: str) -> str:
        path = self._logs / f"{name}.log"
        words = path.read_text(encoding="utf-8", errors="replace").splitlines()[-_LAST_LINES:]
        told = "\n  ".join(words) or "it said nothing"
        code = self._children[name].poll()
        return f"expected {name} to run on, it ended with exit code {code}; its log {path} ends:\n  {told}"


def _end(child: subprocess.Popen[bytes]) -> None:
    if child.stdin is not None:
        # It may have gone before us, with a line of ours unread.
        with contextlib.suppress(BrokenPipeError):
            child.stdin.close()
    if child.poll() is None:
        child.terminate()
        try:
            child.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
