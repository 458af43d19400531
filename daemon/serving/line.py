"""A line: one HTTP/2 client, whose calls are answered as soon as each is ready.

* All that is to be sent in a turn of the loop goes out in one write.
* Streams that are reset are bounded (``RESETS``), by whomever; who breaks a bound of the connection gets
  GOAWAY with ``ENHANCE_YOUR_CALM``.
* Patience ends: with the greeting and a head (``head_s``), a message (``body_s``, or the call's own time), an
  answer that is not taken (``WRITE_S``), idleness. ``Exchange.sweep`` compares ``expires`` with its clock
  once a second: no timer a call.
* A client that does not read is not read. One that says GOAWAY is answered before it is left.

``intake.py`` reads, ``call.py`` knows gRPC, ``h2`` HTTP/2. Called by the event loop; knows no model.

Source: RFC 9113; CVE-2023-44487 (rapid reset), CVE-2025-8671 (resets that the server is made to send).
"""

import asyncio
import math
from functools import partial
from typing import TYPE_CHECKING, cast

from h2.errors import ErrorCodes
from h2.exceptions import H2Error
from hyperframe.frame import GoAwayFrame

from daemon.serving.call import BrokenHead, Call, framed, refusal
from daemon.serving.connection import LINGER_S, WRITE_S
from daemon.serving.gate import Flood
from daemon.serving.intake import PING, Http2, Intake, TooMany
from daemon.serving.refusals import Late, Malformed
from policies.errors import InstarError

if TYPE_CHECKING:
    from daemon.serving.exchange import Exchange

RESETS, RESETS_A_S = 1000, 33
"""Burst and rate, as nghttp2 has them; every answer gives one back."""
SOON_S = 1.0
_ANY_STREAM = Http2.HIGHEST_ALLOWED_STREAM_ID


class Line(Intake):
    """One client."""

    __slots__ = ("_active", "_dirty", "_parting", "_paused_since", "_resets", "_resets_at", "_transport")

    _transport: asyncio.Transport

    def __init__(self, exchange: "Exchange") -> None:
        super().__init__(exchange)
        self._resets = 0
        self._resets_at = self._active = 0.0
        self._paused_since = math.inf
        self._dirty = self._parting = False

    @property
    def busy(self) -> bool:
        """Whether an answer is owed."""
        return bool(self._calls or self._outbox)

    # -- asyncio.Protocol -----------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take a client in, or turn it away when there are too many."""
        self._transport = cast(asyncio.Transport, transport)
        exchange = self._exchange
        now = exchange.now()
        self._active = self._midway_since = self._resets_at = now
        if exchange.admit(self):
            self.expires = now + exchange.head_s
            self._flush()
        else:
            self._end(ErrorCodes.ENHANCE_YOUR_CALM, "expected fewer connections; come later")

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  asyncio's name
        """Forget a client, and whatever it waited for."""
        self._closing = True
        self._exchange.leave(self)
        for call in self._calls.values():
            self._abandon(call)
        self._calls.clear()
        self._ready.clear()

    def data_received(self, data: bytes) -> None:
        """Read on."""
        if self._closing:
            return
        try:
            self._feed(data)
        except Flood as flood:
            self._end(ErrorCodes.ENHANCE_YOUR_CALM, str(flood))
        except H2Error:
            # h2 has its GOAWAY ready.
            self._leave()
        else:
            if self._ready:
                self._begin_all()
            if self._gate.said_goodbye:
                self._part()
            self._touch()

    def pause_writing(self) -> None:
        """Wait for a slow reader; not for ever, and for nothing that it asks meanwhile."""
        self._outbox.paused = True
        self._paused_since = self._exchange.now()
        self._expire_by(self._paused_since + WRITE_S)
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        """Go on."""
        self._outbox.paused = False
        self._paused_since = math.inf
        if not self._closing:
            self._transport.resume_reading()
            self._outbox.go_on()
            self._touch()

    # -- answers --------------------------------------------------------------------------------------------

    def _begin_all(self) -> None:
        ready, self._ready = self._ready, []
        now = self._exchange.now()
        for call in ready:
            # Not when it was taken back meanwhile, nor after a refusal too many.
            if self._calls.get(call.stream) is call and not self._closing:
                self._begin(call, now)

    def _begin(self, call: Call, now: float) -> None:
        exchange = self._exchange
        if (verdict := call.verdict) is None:
            self._held -= call.size
            self._active = now
            self._gate.credit(1, 0)
            try:
                call.finish(now, exchange.max_body)
            except InstarError as error:
                verdict = error
        if verdict is not None:
            exchange.refused(call, verdict)
            self._reply(call, verdict)
            return
        work = exchange.methods[call.path](call, partial(self._reply, call))
        if call.stream in self._calls:
            call.work = work

    def _reply(self, call: Call, said: bytes | InstarError) -> None:
        """Answer a call; nothing, when its client is gone."""
        if self._closing or self._calls.pop(call.stream, None) is None:
            return
        if isinstance(said, bytes):
            self._resets = max(0, self._resets - 1)
            now = self._exchange.now()
            self._active = now
            self._outbox.send(call.stream, framed(said), now)
            if self._outbox:
                self._expire_by(now + WRITE_S)
        elif isinstance(said, BrokenHead):
            self._reset(call.stream, ErrorCodes.PROTOCOL_ERROR)
        elif isinstance(said, TooMany):
            self._reset(call.stream, ErrorCodes.REFUSED_STREAM)
        else:
            self._h2.send_headers(call.stream, refusal(said), end_stream=True)
            if not call.ended:
                # What is still on its way is not needed (RFC 9113, 8.1).
                self._reset(call.stream, ErrorCodes.NO_ERROR)
        self._touch()

    def _reset(self, stream: int, code: ErrorCodes) -> None:
        self._h2.reset_stream(stream, code)
        self._reset_counts()

    def _reset_counts(self) -> None:
        now = self._exchange.now()
        back = int((now - self._resets_at) * RESETS_A_S)
        if back:
            self._resets, self._resets_at = max(0, self._resets - back), now
        self._resets += 1
        if self._resets > RESETS:
            text = f"expected calls that wait for their answers, got {RESETS} that were reset"
            self._end(ErrorCodes.ENHANCE_YOUR_CALM, text)

    def _touch(self) -> None:
        """Have what is to be sent written once, at the end of this turn of the loop or in the next."""
        if not self._dirty:
            self._dirty = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._dirty = False
        self._write()
        if self._parting and not self.busy:
            self._leave()

    def _write(self, last: bytes = b"") -> None:
        data = self._h2.data_to_send() + last
        if data and not self._transport.is_closing():
            self._transport.write(data)

    # -- the end --------------------------------------------------------------------------------------------

    def expire(self) -> None:
        """Do what is due, and tell when to look again."""
        now, exchange = self._exchange.now(), self._exchange
        head_until = min(self._midway_since, math.inf if self._greeted else self._active) + exchange.head_s
        write_until = min(self._paused_since, self._outbox.since) + WRITE_S
        if self._closing or write_until <= now:
            self._transport.abort()
            return
        if head_until <= now:
            self._end(ErrorCodes.ENHANCE_YOUR_CALM, "expected the whole head in time; send it faster")
            return
        unread = [call for call in self._calls.values() if not call.ended]
        for call in unread:
            if call.due <= now:
                self._judge(call, self._overdue(call, now))
        self._begin_all()
        if self._closing:
            return
        if not self.busy and self._active + exchange.idle_s <= now:
            self._part()
            self._touch()
        waits = [call.due for call in unread if call.due > now]
        idle_until = max(now + SOON_S, self._active + exchange.idle_s)
        self.expires = min(head_until, write_until, idle_until, *waits)

    @staticmethod
    def _overdue(call: Call, now: float) -> InstarError:
        if call.late(now):
            return Late("expected the whole message within the call's own time, it did not come")
        return Malformed("expected the whole message in time, it did not come; send it faster")

    def drain(self) -> None:
        """Tell the client to ask elsewhere; then, when it knows, which of its calls is the last."""
        if not self._closing and not self._parting:
            self._h2.ping(PING)
            self._write(_goaway(_ANY_STREAM))

    def part(self) -> None:
        """Take no more calls, and leave after the last answer."""
        if not self._closing:
            self._part()
            self._touch()

    def _part(self) -> None:
        if not self._parting:
            self._parting = True
            self._last = self._h2.highest_inbound_stream_id
            self._write(_goaway(self._last))

    def _end(self, code: ErrorCodes, text: str) -> None:
        """Tell why, and leave with nothing more read or answered."""
        if not self._closing:
            self._h2.close_connection(code, text.encode())
            self._leave()

    def _leave(self) -> None:
        if not self._closing:
            self._closing = True
            self._write()
            self._transport.close()
        self.expires = self._exchange.now() + LINGER_S

    def close(self) -> None:
        """Leave, whatever is owed."""
        self._transport.abort()


def _goaway(last: int) -> bytes:
    # Not by h2: it would answer nothing any more.
    return GoAwayFrame(0, last_stream_id=last).serialize()
