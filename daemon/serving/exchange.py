"""The exchange: takes gRPC clients in, bounds their number and their patience, and sees them out.

* More than ``max_connections`` at once are told to come later.
* Once a second every client's time is looked at (``sweep``).
* ``drain``: no new client; everybody is told to ask elsewhere, may still ask until that is known, and is
  answered. What is open when the time is over is closed.

``line.py`` is one client. Called by ``main.py``; knows no model. What the calls mean, ``rpc.py`` knows.
"""

import asyncio
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from daemon.ops.doors import BACKLOG, bind, bind_unix
from daemon.serving.call import PREFIX_BYTES, Call, Reply, Unimplemented
from daemon.serving.connection import Work
from daemon.serving.front import CODES as OUTCOMES
from daemon.serving.line import Line
from daemon.serving.reception import FRESH_S, SWEEP_S
from daemon.serving.refusals import Busy
from policies.clock import Clock
from policies.errors import InstarError, PermanentError

LEAST_WINDOW = 1 << 20
HELD_MESSAGES = 4
"""So many messages of the largest size may be on their way at once on a line, or more that are smaller."""
LEAST_HELD_BYTES = 4 << 20
_UNIX = "unix:"

Method = Callable[[Call, Reply], Work | None]


@dataclass(frozen=True, slots=True)
class Service:
    """What is answered. ``methods`` by their whole names; ``model`` is the one that needs a run.

    A method answers at once or later, once, and returns what the call waits for. ``lost`` counts, by its
    outcome, a call to ``model`` whose message was never read.
    """

    methods: Mapping[bytes, Method]
    model: bytes
    lost: Callable[[str], None]


class Exchange:
    """All lines of the gRPC door.

    Args:
        service: Answers.
        clock: Tells who is late.
        max_body: Bytes of one message.
        max_connections: At once.
        head_s: Within which a client must greet, and a head come, from its first byte.
        body_s: Within which a call's message must come.
        idle_s: How long a client may wait with its next call.
    """

    def __init__(
        self,
        service: Service,
        clock: Clock,
        *,
        max_body: int,
        max_connections: int,
        head_s: float,
        body_s: float,
        idle_s: float,
    ) -> None:
        self._service, self.methods, self.now = service, service.methods, clock.monotonic
        self._most, self.max_body = max_connections, max_body
        self.head_s, self.body_s, self.idle_s = head_s, body_s, idle_s
        # A whole message fits: no window is opened for a stream, and for a connection every ``step`` bytes.
        self.window = max(LEAST_WINDOW, max_body + PREFIX_BYTES)
        self.step = self.window // 2
        self.most_held = max(LEAST_HELD_BYTES, HELD_MESSAGES * max_body)
        self.second = 0
        self._open: set[Line] = set()
        self._opening: asyncio.Task[asyncio.Server] | None = None
        self._sweeper: asyncio.Task[None] | None = None
        self._empty = asyncio.Event()

    @property
    def count(self) -> int:
        """Connections that are open."""
        return len(self._open)

    # -- for lines ------------------------------------------------------------------------------------------

    def admit(self, line: Line) -> bool:
        """Take a client in; False when there are too many."""
        self._open.add(line)
        self._empty.clear()
        return len(self._open) <= self._most

    def leave(self, line: Line) -> None:
        """Let a client go."""
        self._open.discard(line)
        if not self._open:
            self._empty.set()

    def lost(self, call: Call, outcome: str) -> None:
        """Count a call to the model that nobody read."""
        if call.path == self._service.model:
            self._service.lost(outcome)

    def refused(self, call: Call, error: InstarError) -> None:
        """Count a call to the model that is refused unread."""
        shed = isinstance(error, Busy)
        self.lost(call, "shed" if shed else OUTCOMES.get(type(error), (0, "client_error"))[1])

    @staticmethod
    def unknown(path: bytes) -> Unimplemented:
        """Return the refusal of a method that is not offered."""
        return Unimplemented(f"expected a method that is offered, got {path[:200].decode('latin-1')}")

    # -- for the process ------------------------------------------------------------------------------------

    def start(self, address: str, loop: asyncio.AbstractEventLoop) -> str:
        """Take calls in at ``HOST:PORT`` or ``unix:PATH``; return the address, with the port that it has.

        Raises:
            PermanentError: The address cannot be had.
        """
        if address.startswith(_UNIX):
            listener = bind_unix(Path(address.removeprefix(_UNIX)))
        else:
            listener = bind(address)
        try:
            listener.listen(BACKLOG)
        except OSError as error:
            listener.close()
            raise PermanentError(f"expected to listen on {address} for gRPC, got {error}") from error
        self._opening = loop.create_task(self._serve(listener, loop))
        self._sweeper = loop.create_task(self._sweep())
        if address.startswith(_UNIX):
            return address
        return f"{address.rpartition(':')[0]}:{listener.getsockname()[1]}"

    async def _serve(self, listener: socket.socket, loop: asyncio.AbstractEventLoop) -> asyncio.Server:
        return await loop.create_server(lambda: Line(self), sock=listener, backlog=BACKLOG)

    async def drain(self, seconds: float) -> None:
        """See everybody out, for at most so many seconds."""
        if self._opening is not None:
            (await self._opening).close()
        for line in list(self._open):
            line.drain()
        if not await self._gone(min(seconds, FRESH_S)):
            for line in list(self._open):
                line.part()
            if not await self._gone(max(0.0, seconds - FRESH_S)):
                for line in list(self._open):
                    line.close()
        if self._sweeper is not None:
            self._sweeper.cancel()

    async def _gone(self, seconds: float) -> bool:
        """Tell whether all clients are gone within so many seconds."""
        try:
            async with asyncio.timeout(seconds):
                if self._open:
                    await self._empty.wait()
        except TimeoutError:
            return False
        return True

    async def _sweep(self) -> None:
        while True:
            self.sweep()
            await asyncio.sleep(SWEEP_S)

    def sweep(self) -> None:
        """Do what is due on every line."""
        self.second += 1
        now = self.now()
        for line in [each for each in self._open if each.expires <= now]:
            line.expire()
