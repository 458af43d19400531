"""An open loop: request i is due at i / rate, whatever the server does; latency counts from that moment.

    python -m benchmarks.serving.openloop HOST PORT ASK RATE SECONDS OUT

* A process of its own on ``CLIENT_CORE``: one thread, raw sockets, a timer of the kernel, no garbage
  collector; what sets it going (`Loop`) may meanwhile order swaps.
* A server that stalls cannot hide it: what was due meanwhile is late by as much. So is the client itself: how
  late it was with sending is in the trace, and `Trace.say` tells it.
* ASK is a file with one whole HTTP request. Every answer is held against the others: status 200, and lengths
  that HTTP/1.1 gives. What it contains, ``storm`` checks.
* What got no answer within ``_PATIENCE_S`` of the last is lost.
"""

import ctypes
import gc
import os
import select
import socket
import struct
import subprocess
import sys
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.serving.asks import Ask
from benchmarks.serving.stage import CLIENT_CORE, HOST, ROOT, Served
from daemon.ops import scheduling
from policies.errors import PermanentError

CONNECTIONS = 16
_PATIENCE_S = 5.0
_LEAD_S = 0.05
_MONOTONIC, _NONBLOCK, _ABSOLUTE = 1, os.O_NONBLOCK, 1
_BUFFER = 1 << 16


@dataclass(frozen=True)
class Trace:
    """What became of every request, in order: seconds on the monotonic clock, NaN where it never happened."""

    due: NDArray[np.float64]
    sent: NDArray[np.float64]
    done: NDArray[np.float64]
    status: NDArray[np.int64]

    @classmethod
    def read(cls, path: Path) -> "Trace":
        """Return what a loop has left in a file."""
        with np.load(path, allow_pickle=False) as kept:
            return cls(kept["due"], kept["sent"], kept["done"], kept["status"])

    @property
    def lost(self) -> int:
        """How many were not answered with 200."""
        return int((self.status != 200).sum())

    @property
    def good(self) -> NDArray[np.bool_]:
        """Which were."""
        return np.asarray(self.status == 200)

    def ms(self, share: float, since: float = -np.inf, until: float = np.inf) -> float:
        """Return a quantile of the latency, in ms from the moment due, of what was due in an interval.

        >>> moments = np.arange(4.0)
        >>> Trace(moments, moments, moments + 0.001, np.full(4, 200)).ms(0.5)
        1.0
        """
        mine = self.good & (self.due >= since) & (self.due < until)
        return round(float(np.quantile((self.done - self.due)[mine], share) * 1e3), 3)

    @property
    def client_ms(self) -> float:
        """How late the client itself was with sending, 99th percentile, in ms."""
        return round(float(np.nanquantile(self.sent - self.due, 0.99) * 1e3), 3)

    def say(self) -> str:
        """Return the trace in words."""
        return (
            f"{len(self.due)} sent, {self.lost} lost; p50 {self.ms(0.5)} p90 {self.ms(0.9)} "
            f"p99 {self.ms(0.99)} max {self.ms(1.0)} ms; client late p99 {self.client_ms} ms"
        )


class Loop:
    """A loop in a process of its own, which begins at once."""

    def __init__(self, served: Served, asked: Ask, rate: float, seconds: float, folder: Path) -> None:
        self._out = folder / "trace.npz"
        request = folder / "ask"
        request.write_bytes(raw(asked))
        self._out.unlink(missing_ok=True)
        command = [sys.executable, "-m", "benchmarks.serving.openloop", served.host, str(served.port)]
        command += [str(request), str(rate), str(seconds), str(self._out)]
        self.process = subprocess.Popen(command, cwd=ROOT, start_new_session=True)

    @property
    def running(self) -> bool:
        """Whether it still sends or waits."""
        return self.process.poll() is None

    def trace(self) -> Trace:
        """Wait for its end and return what it saw.

        Raises:
            PermanentError: It broke off.
        """
        if code := self.process.wait():
            raise PermanentError(f"expected the open loop to end well, it ended with {code}; see above")
        return Trace.read(self._out)


def raw(asked: Ask) -> bytes:
    """Return a request as it goes over a kept connection."""
    lines = [f"POST {asked.path} HTTP/1.1", f"Host: {HOST}", f"Content-Length: {len(asked.body)}"]
    lines += [f"{name}: {value}" for name, value in asked.headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + asked.body


def answer_size(buffer: bytes | bytearray) -> int | None:
    """Return how long the answer at the start of a buffer is, None while its head is not whole.

    >>> answer_size(b"HTTP/1.1 200 OK\\r\\ncontent-length: 3\\r\\n\\r\\nabc")
    41
    >>> answer_size(b"HTTP/1.1 200 OK\\r\\n")

    Raises:
        PermanentError: It says no length.
    """
    head = buffer.find(b"\r\n\r\n")
    if head < 0:
        return None
    lower = bytes(buffer[:head]).lower()
    at = lower.find(b"\r\ncontent-length:")
    if at < 0:
        raise PermanentError(f"expected an answer with a content-length, got {bytes(buffer[:head])!r}")
    return head + 4 + int(lower[at + 17 :].split(b"\r", 1)[0])


def timer(rate: float, first: float) -> int:
    """Return a descriptor that becomes readable at ``first`` and from then on ``rate`` times a second.

    Source: timerfd_create(2).
    """
    libc = ctypes.CDLL(None, use_errno=True)
    handle = int(libc.timerfd_create(_MONOTONIC, _NONBLOCK))
    every = round(1e9 / rate)
    spec = struct.pack("qqqq", *divmod(every, 10**9), *divmod(round(first * 1e9), 10**9))
    if handle < 0 or libc.timerfd_settime(handle, _ABSOLUTE, spec, None) < 0:
        raise OSError(ctypes.get_errno(), "expected a timer of the kernel")
    return handle


class _Client:
    """The loop itself. A request takes any connection that is free, and waits where none is."""

    def __init__(self, host: str, port: int, request: bytes, total: int) -> None:
        self._request, self._total = request, total
        self._poll = select.epoll()
        self._sockets = {}
        for _ in range(CONNECTIONS):
            connection = socket.create_connection((host, port))
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.setblocking(False)
            self._sockets[connection.fileno()] = connection
            self._poll.register(connection.fileno(), select.EPOLLIN)
        self._free, self._waiting = list(self._sockets), deque[int]()
        self._asked: dict[int, int] = {}
        self._buffers = {fileno: bytearray() for fileno in self._sockets}
        self.sent = np.full(total, np.nan)
        self.done = np.full(total, np.nan)
        self.status = np.zeros(total, np.int64)

    def run(self, rate: float) -> NDArray[np.float64]:
        """Send everything and hang up; return when each was due."""
        first = time.monotonic() + _LEAD_S
        clock = timer(rate, first)
        try:
            self._poll.register(clock, select.EPOLLIN)
            self._turn(clock)
        finally:
            os.close(clock)
            self._poll.close()
            for connection in self._sockets.values():
                connection.close()
        # Rounded as the kernel's timer is: a period of whole nanoseconds.
        return first + np.arange(self._total) * (round(1e9 / rate) / 1e9)

    def _turn(self, clock: int) -> None:
        due, open_ = 0, self._total
        while open_:
            events = self._poll.poll(_PATIENCE_S)
            if not events and due >= self._total:
                break
            for fileno, _ in events:
                if fileno == clock:
                    (times,) = struct.unpack("Q", os.read(clock, 8))
                    fresh = range(due, min(due + times, self._total))
                    self._waiting.extend(fresh)
                    due += len(fresh)
                else:
                    open_ -= self._receive(fileno)
            while self._free and self._waiting:
                self._send(self._free.pop(), self._waiting.popleft())

    def _send(self, fileno: int, number: int) -> None:
        self._asked[fileno] = number
        self.sent[number] = time.monotonic()
        came = self._sockets[fileno].send(self._request)
        if came != len(self._request):
            raise PermanentError(f"expected room for {len(self._request)} bytes to send, got {came}")

    def _receive(self, fileno: int) -> int:
        """Return how many requests have come to their end: one or none."""
        buffer = self._buffers[fileno]
        part = self._sockets[fileno].recv(_BUFFER)
        buffer += part
        size = answer_size(buffer) if part else len(buffer)
        if size is None or len(buffer) < size:
            return 0
        now, number = time.monotonic(), self._asked.pop(fileno, None)
        if not part:
            # The server closed it: what it was asked is lost, and it is asked no more.
            self._poll.unregister(fileno)
            if fileno in self._free:
                self._free.remove(fileno)
            return int(number is not None)
        if number is None or len(buffer) > size:
            raise PermanentError(f"expected one answer to one request, got {bytes(buffer)!r}")
        self.done[number], self.status[number] = now, int(buffer[9:12])
        buffer.clear()
        self._free.append(fileno)
        return 1


def main(arguments: list[str]) -> None:
    """Run a loop and keep its trace."""
    host, port, asked, rate, seconds, out = arguments
    scheduling.yield_nothing(CLIENT_CORE)
    client = _Client(host, int(port), Path(asked).read_bytes(), int(float(rate) * float(seconds)))
    gc.disable()
    due = client.run(float(rate))
    np.savez(out, due=due, sent=client.sent, done=client.done, status=client.status)


if __name__ == "__main__":
    main(sys.argv[1:])
