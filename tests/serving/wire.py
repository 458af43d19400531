"""A connection without a network: a transport as strict as the real one, a desk, and time in hand."""

import asyncio
import re
import threading
import time
from collections.abc import Callable

from daemon.serving.connection import Connection, Respond
from daemon.serving.metrics import ServeMetrics
from daemon.serving.reading import Request
from daemon.serving.reception import Reception
from policies.clock import StandingClock

MODEL = "meter-reader"
INFER = f"/v2/models/{MODEL}/infer".encode()


class Transport(asyncio.Transport):
    """Keeps what is written; raises where uvloop's does."""

    def __init__(self, protocol: Connection, client_reads: bool = True, high: int = 65536) -> None:
        super().__init__()
        self.protocol, self.client_reads, self._high = protocol, client_reads, high
        self.sent = b""
        self.buffered = 0
        self.eof = self.gone = self.half = self.aborted = self._stuffed = False
        self.reading = True

    def write(self, data: bytes) -> None:
        if self.gone or self.eof:
            raise RuntimeError("expected an open transport to write to, it is closed")
        self.sent += data
        if not self.client_reads:
            self.buffered += len(data)
            if self.buffered > self._high and not self._stuffed:
                self._stuffed = True
                self.protocol.pause_writing()

    def read_by_client(self) -> None:
        """The client reads everything, and goes on reading."""
        self.client_reads, self.buffered = True, 0
        if self._stuffed:
            self._stuffed = False
            self.protocol.resume_writing()

    def get_write_buffer_size(self) -> int:
        return self.buffered

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        if self.gone:
            raise RuntimeError("expected an open transport to end, it is closed")
        self.eof = True

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        if self.gone:
            raise RuntimeError("expected an open transport to read from, it is closed")
        self.reading = True

    def is_closing(self) -> bool:
        return self.gone

    def close(self) -> None:
        if not self.gone:
            self.gone = True
            asyncio.get_running_loop().call_soon(self.protocol.connection_lost, None)

    def abort(self) -> None:
        self.aborted = True
        self.close()


class Work:
    gone = False


class Desk:
    """Answers with the request's target at once; ``/later…`` when ``answer`` is called."""

    def __init__(self) -> None:
        self.asked: list[Request] = []
        self.later: list[tuple[Request, Respond, Work]] = []
        self.size = 0

    def handle(self, request: Request, respond: Respond) -> Work | None:
        self.asked.append(request)
        if request.target.startswith(b"/later"):
            self.later.append((request, respond, Work()))
            return self.later[-1][2]
        respond(200, request.target + b"." * self.size, ())
        return None

    def answer(self) -> None:
        request, respond, _ = self.later.pop(0)
        respond(200, request.target, ())


class Wire:
    """One reception, and connections to it."""

    def __init__(self, max_body: int = 1000, most: int = 100) -> None:
        self.clock, self.desk = StandingClock(), Desk()
        self.metrics = ServeMetrics(MODEL, "0")
        self.reception = Reception(
            self.desk.handle,
            self.metrics,
            self.clock,
            max_body=max_body,
            max_connections=most,
            head_s=10.0,
            body_s=20.0,
            idle_s=75.0,
        )
        self.transport = self.connect()

    def connect(self, **kind) -> Transport:
        connection = Connection(self.reception)
        transport = Transport(connection, **kind)
        connection.connection_made(transport)
        return transport

    async def send(self, *parts: bytes, to: Transport | None = None) -> bytes:
        """Send parts, as long as the other side reads; return all that has come back so far."""
        transport = to or self.transport
        for part in parts:
            if transport.reading and not transport.gone:
                transport.protocol.data_received(part)
            await settled()
        return transport.sent

    async def half_close(self) -> None:
        if not self.transport.protocol.eof_received():
            self.transport.close()
        await settled()

    def passes(self, seconds: float) -> None:
        """Time goes by, and the reception looks at everybody's."""
        self.clock.advance(seconds)
        self.reception.sweep()

    def counted(self, outcome: str) -> int:
        name = f'instar_serve_requests_total{{model="{MODEL}",outcome="{outcome}"}}'
        (line,) = [each for each in self.metrics.text().decode().splitlines() if each.startswith(name)]
        return int(float(line.rpartition(" ")[2]))


async def settled() -> None:
    """Let everything that was called soon be called, also what that calls soon."""
    for _ in range(4):
        await asyncio.sleep(0)


def until(true: Callable[[], bool], deadline_s: float = 30.0) -> None:
    """Wait until something is true of another thread or process.

    Raises:
        TimeoutError: It does not become so.
    """
    end, tick = time.monotonic() + deadline_s, threading.Event()
    while not true():
        if time.monotonic() > end:
            raise TimeoutError(f"expected it to become true within {deadline_s:g} s, it did not")
        tick.wait(0.002)


def statuses(sent: bytes) -> list[int]:
    """Return the status codes of a stream of answers.

    >>> statuses(b"HTTP/1.1 100 Continue\\r\\n\\r\\nHTTP/1.1 200 OK\\r\\n\\r\\n")
    [100, 200]
    """
    return [int(code) for code in re.findall(rb"HTTP/1\.1 (\d{3}) ", sent)]


def post(target: bytes, body: bytes = b"", *headers: bytes) -> bytes:
    """Return a request with a body."""
    lines = [b"POST %b HTTP/1.1" % target, b"host: x", b"content-length: %d" % len(body), *headers]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def get(target: bytes, *headers: bytes) -> bytes:
    """Return a request without a body."""
    return b"\r\n".join([b"GET %b HTTP/1.1" % target, b"host: x", *headers]) + b"\r\n\r\n"
