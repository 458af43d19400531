"""A connection: one HTTP/1.1 client, who is answered in order, and with patience that has an end.

* Requests of a connection are answered in order, one at a time; what is pipelined waits, bounded.
* Head and body are bounded in bytes and in time; so are idleness and a client that does not read its answer:
  for one that does not, nothing more is read or begun.
  ``Reception.sweep`` compares ``expires`` with its clock once a second: no timer a request.
* What is wrong on the wire is answered (400, 408, 413, 431), after what is owed, and the connection closed,
  gently: a refused body may still be on its way, and a reset would take the refusal from the client.
* A client that closed its own side still gets its answers. One that is gone takes its job with it.

``reading.py`` makes requests of the bytes. Called by the event loop; knows no model.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from http import HTTPStatus
from typing import TYPE_CHECKING, Protocol, cast

import orjson

from daemon.serving.reading import MOST_HEAD_BYTES, NEVER, Reading, Request
from daemon.serving.refusals import RETRY_S

if TYPE_CHECKING:
    from daemon.serving.reception import Reception

Header = tuple[bytes, bytes]
JSON: Header = (b"content-type", b"application/json")
AGAIN: Header = (b"retry-after", str(int(RETRY_S)).encode())

MOST_PIPELINED = 16
LINGER_S = 2.0
WRITE_S = 30.0
_LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus}


class Work(Protocol):
    """What a request waits for; told when its client is gone."""

    gone: bool


Respond = Callable[[int, bytes, tuple[Header, ...]], None]
Handler = Callable[[Request, Respond], Work | None]


def error_body(text: str) -> bytes:
    """Return the protocol's error body."""
    return orjson.dumps({"error": text})


class Connection(Reading):
    """One client."""

    __slots__ = (
        "_eof",
        "_halted",
        "_held",
        "_keep",
        "_paused",
        "_queue",
        "_refusal",
        "_unread",
        "_work",
        "closing",
        "fresh",
    )

    def __init__(self, reception: "Reception") -> None:
        super().__init__(reception)
        self._queue: deque[tuple[Request, bool]] = deque()
        self._work: Work | None = None
        self._keep = True
        # Of what came too early, ``_unread`` is kept; while the client does not read, no answer is begun.
        self._held = self._paused = self._halted = self._eof = False
        self._unread = b""
        self._refusal: tuple[int, str] | None = None
        self.closing = False
        self.fresh = True

    # -- asyncio.Protocol -----------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take a client in, or turn it away when there are too many."""
        self._transport = cast(asyncio.Transport, transport)
        if self._reception.admit(self):
            self.expires = self._reception.idle_until()
        else:
            self._fail(503, "expected fewer connections, there are as many as this server keeps; come later")

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  asyncio's name
        """Forget a client, and whatever it waited for."""
        self._reception.leave(self)
        if self._work is not None:
            self._work.gone = True
        for request, _ in self._queue:
            self._reception.abandoned(request.target)
        if not self._reading_head and not self._deaf:
            self._reception.abandoned(self._target)
        self._queue.clear()
        self._parser, self._unread = None, b""
        self._deaf = self.closing = True

    def data_received(self, data: bytes) -> None:
        """Read on."""
        if self._held:
            self._unread += data
        elif not self._deaf:
            self._read(data)

    def _read(self, data: bytes) -> None:
        """Parse in pieces, so that no packet fills the queue or a head beyond its bound; keep the rest."""
        for start in range(0, len(data), MOST_HEAD_BYTES):
            if self._paused or len(self._queue) >= MOST_PIPELINED:
                self._held, self._unread = True, data[start:]
                break
            self._feed(data[start : start + MOST_HEAD_BYTES] if len(data) > MOST_HEAD_BYTES else data)
            if self._deaf:
                return
        if len(self._queue) >= MOST_PIPELINED:
            self._held = True
        if self._held:
            self._transport.pause_reading()

    def _read_on(self) -> None:
        """Parse what was kept, once there is room, and let more come."""
        if self._held and not self._paused and not self._deaf and len(self._queue) < MOST_PIPELINED:
            data, self._unread, self._held = self._unread, b"", False
            self._read(data)
            if not self._held and not self.closing:
                self._transport.resume_reading()
            if self._eof and not self.busy and not self.closing:
                self._transport.close()

    def eof_received(self) -> bool:
        """Stay as long as an answer is owed."""
        self._eof = True
        return self.busy and not self.closing

    def pause_writing(self) -> None:
        """Wait for a slow reader; not for ever."""
        self._paused = True
        self.expires = self._reception.now() + WRITE_S
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        """Go on."""
        self._paused = False
        if self.closing:
            self.expires = self._reception.now() + LINGER_S
            return
        self._wait()
        if self._halted:
            self._halted = False
            asyncio.get_running_loop().call_soon(self._next)
        if not self._held:
            self._transport.resume_reading()
        self._read_on()

    def _wait(self) -> None:
        """Set until when the client may take its time: for a body, a head, the next request."""
        if self.busy:
            self.expires = NEVER
        elif not self._reading_head:
            self.expires = self._reception.body_until()
            self._go_on()
        elif self._head_bytes:
            self.expires = self._reception.head_until()
        else:
            self.expires = self._reception.idle_until()

    def _whole(self, request: Request, keep: bool) -> None:
        """Have a request answered, after those before it."""
        self.fresh = False
        if self.busy or self._paused:
            self._queue.append((request, keep))
            self._halted = self._halted or not self.busy
            self.busy = True
        else:
            self._begin(request, keep)

    # -- answers --------------------------------------------------------------------------------------------

    def _begin(self, request: Request, keep: bool) -> None:
        self.busy, self.expires = True, NEVER
        self._keep = self._keep and keep
        head_only = request.method == b"HEAD"

        def respond(status: int, body: bytes, headers: tuple[Header, ...]) -> None:
            self._respond(status, body, headers, head_only)

        work = self._reception.handle(request, respond)
        # It may have been answered already, and the next one begun.
        if self.busy and work is not None and not self.closing:
            self._work = work

    def _respond(self, status: int, body: bytes, headers: tuple[Header, ...], head_only: bool) -> None:
        self._work = None
        if self.closing or self._transport.is_closing():
            return
        last = self._eof and not self._queue and not self._unread and self._refusal is None
        keep = self._keep and not self._reception.draining and not last
        self._write(status, body, headers, keep, head_only)
        self.busy = False
        if not keep:
            self._linger()
        elif self._queue:
            # Not here: a client that pipelines a thousand requests would come a thousand calls deep.
            self.busy, self._halted = True, self._paused
            if not self._paused:
                asyncio.get_running_loop().call_soon(self._next)
        elif self._refusal is not None:
            self._refuse(*self._refusal)
        elif not self._paused:
            self._wait()

    def _next(self) -> None:
        if self.closing or not self._queue:
            return
        try:
            self._begin(*self._queue.popleft())
            self._read_on()
        except Exception:
            # As the loop leaves a client when ``data_received`` breaks off: not one who waits for ever.
            self._transport.abort()
            raise

    def _write(
        self, status: int, body: bytes, headers: tuple[Header, ...], keep: bool, head_only: bool
    ) -> None:
        parts = [_LINES[status], self._reception.date]
        parts += [b"%b: %b\r\n" % header for header in headers]
        if not keep:
            parts.append(b"connection: close\r\n")
        elif self._version == "1.0":
            parts.append(b"connection: keep-alive\r\n")
        parts.append(b"content-length: %d\r\n\r\n" % len(body))
        if not head_only:
            parts.append(body)
        self._transport.write(b"".join(parts))

    def _fail(self, status: int, text: str) -> None:
        """Refuse what is on the wire, after the answers that are owed, and close."""
        if self._deaf:
            return
        self._deaf = True
        if self.busy:
            self._refusal = status, text
        else:
            self._refuse(status, text)

    def _refuse(self, status: int, text: str) -> None:
        headers = (JSON, AGAIN) if status == HTTPStatus.SERVICE_UNAVAILABLE else (JSON,)
        self._write(status, error_body(text), headers, keep=False, head_only=False)
        self._linger()

    def _linger(self) -> None:
        """Close our side, and read to nowhere for a moment: a reset would overtake the answer."""
        self.closing, self._deaf, self.busy = True, True, False
        self._held, self._unread = False, b""
        self.expires = self._reception.now() + (
            WRITE_S if self._transport.get_write_buffer_size() else LINGER_S
        )
        if self._eof or not self._transport.can_write_eof():
            self._transport.close()
        else:
            self._transport.write_eof()
            self._transport.resume_reading()

    def expire(self) -> None:
        """Do what is due: a request that does not come is refused, an idle or deaf client is left."""
        if self.closing or self._transport.get_write_buffer_size():
            self._transport.abort()
        elif self._reading_head and not self._head_bytes:
            self._transport.close()
        else:
            part = "head" if self._reading_head else "body"
            self._reception.late(self._target)
            self._fail(
                408, f"expected the whole {part} of a request in time, it did not come; send it faster"
            )

    def drain(self) -> None:
        """Leave a client that waits for nothing; one with a request under way is left after its answer."""
        if (
            not self.busy
            and not self.closing
            and not self.fresh
            and not self._head_bytes
            and self._reading_head
        ):
            self._transport.close()

    def close(self) -> None:
        """Leave, whatever is owed."""
        self._transport.abort()
