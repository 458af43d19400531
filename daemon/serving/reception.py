"""The reception: takes clients in, bounds their number and their patience, and sees them out.

* More than ``max_connections`` at once are told to come later.
* Once a second every connection's time is looked at (``sweep``).
* ``drain``: no new client; who is idle is left, who waits gets its answer, and who has just come and not
  asked yet has a moment to ask. What is open when the time is over is closed.

Called by ``main.py``. What requests mean, ``front.py`` knows.
"""

import asyncio
import socket
from collections.abc import Callable
from email.utils import formatdate

from daemon.ops.doors import BACKLOG
from daemon.serving.connection import Connection, Handler, Respond, Work
from daemon.serving.heads import Heads
from daemon.serving.metrics import ServeMetrics
from daemon.serving.reading import Request
from policies.clock import Clock

SWEEP_S = 1.0
FRESH_S = 1.0
"""How long a client that has just come may wait with its first request when the server drains."""


class Reception:
    """All connections of the inference port.

    Args:
        handler: Answers one request.
        metrics: Counts what never becomes a request.
        clock: Dates the answers, and tells who is late.
        max_body: Bytes of one body.
        max_connections: At once.
        head_s: Within which a request's head must come, from its first byte.
        body_s: Within which its body must come.
        idle_s: How long a connection may wait for its next request.
    """

    def __init__(
        self,
        handler: Handler,
        metrics: ServeMetrics,
        clock: Clock,
        *,
        max_body: int,
        max_connections: int,
        head_s: float,
        body_s: float,
        idle_s: float,
    ) -> None:
        self.handle: Callable[[Request, Respond], Work | None] = handler
        self.now = clock.monotonic
        self._clock, self._metrics = clock, metrics
        self.max_body, self.heads = max_body, Heads()
        self._most, self._head_s, self._body_s, self._idle_s = max_connections, head_s, body_s, idle_s
        self._open: set[Connection] = set()
        self._server: asyncio.Server | None = None
        self._sweeper: asyncio.Task[None] | None = None
        self._empty = asyncio.Event()
        self.draining = False
        self.date = b""
        self._redate()

    @property
    def count(self) -> int:
        """Connections that are open."""
        return len(self._open)

    # -- for connections ------------------------------------------------------------------------------------

    def admit(self, connection: Connection) -> bool:
        """Take a connection in; False when there are too many."""
        self._open.add(connection)
        self._empty.clear()
        return len(self._open) <= self._most

    def leave(self, connection: Connection) -> None:
        """Let a connection go."""
        self._open.discard(connection)
        if not self._open:
            self._empty.set()

    def idle_until(self) -> float:
        """Return when a connection that begins to wait now has waited long enough."""
        return self.now() + self._idle_s

    def head_until(self) -> float:
        """Return until when a head that begins now must have come."""
        return self.now() + self._head_s

    def body_until(self) -> float:
        """Return until when a body that begins now must have come."""
        return self.now() + self._body_s

    def refused(self, target: bytes, fail: Callable[[int, str], None], came: str) -> None:
        """Refuse a body that is too large."""
        self.late(target)
        fail(413, f"expected a body of at most {self.max_body} bytes, got {came}")

    def late(self, target: bytes) -> None:
        """Count a request to the model that was given up before it was whole."""
        if target.partition(b"?")[0].endswith(b"/infer"):
            self._metrics.count("client_error")

    abandoned = late

    # -- for the process ------------------------------------------------------------------------------------

    async def open(self, listener: socket.socket) -> None:
        """Begin to take clients in."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: Connection(self), sock=listener, backlog=BACKLOG)
        self._sweeper = loop.create_task(self._sweep())

    async def drain(self, seconds: float) -> None:
        """See everybody out, for at most so many seconds."""
        self.draining = True
        if self._server is not None:
            self._server.close()
        for connection in list(self._open):
            connection.drain()
        try:
            async with asyncio.timeout(min(seconds, FRESH_S)):
                await self._gone()
        except TimeoutError:
            for connection in list(self._open):
                connection.fresh = False
                connection.drain()
        try:
            async with asyncio.timeout(max(0.0, seconds - FRESH_S)):
                await self._gone()
        except TimeoutError:
            for connection in list(self._open):
                connection.close()
        if self._sweeper is not None:
            self._sweeper.cancel()

    async def _gone(self) -> None:
        if self._open:
            await self._empty.wait()

    async def _sweep(self) -> None:
        while True:
            self.sweep()
            await asyncio.sleep(SWEEP_S)

    def sweep(self) -> None:
        """Do what is due on every connection."""
        self._redate()
        now = self.now()
        for connection in [each for each in self._open if each.expires < now]:
            connection.expire()

    def _redate(self) -> None:
        self.date = f"date: {formatdate(self._clock.now(), usegmt=True)}\r\n".encode()
