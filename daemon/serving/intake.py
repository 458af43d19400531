"""The intake: the half of a line that reads. HTTP/2 becomes whole calls, within bounds, or refused ones.

* What comes in one piece is read whole before anything of it is answered: a call that is taken back in the
  same breath is never begun.
* Bounded: streams at once (``REFUSED_STREAM`` beyond), bytes of messages that are not whole, answers that
  wait for the client's windows, the client's notes of settings; frames, ``gate.py`` bounds. Windows are
  opened in large steps, and a stream's needs not be: a whole message fits.
* A client that is gone, or takes its call back, takes its job with it.

``line.py`` answers and ends. Source: RFC 9113, 5.1.2, 5.2 and 8.1.
"""

import asyncio
import math
from abc import abstractmethod
from typing import TYPE_CHECKING, cast

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import (
    DataReceived,
    Event,
    PingAckReceived,
    RemoteSettingsChanged,
    RequestReceived,
    StreamEnded,
    StreamReset,
    WindowUpdated,
)
from h2.settings import SettingCodes, Settings

from daemon.serving.blocks import BlockDecoder, BlockEncoder
from daemon.serving.call import Call
from daemon.serving.gate import Flood, Gate
from daemon.serving.outbox import Outbox
from daemon.serving.reading import MOST_HEAD_BYTES, NEVER
from daemon.serving.refusals import RETRY_S, Busy
from policies.errors import InstarError

if TYPE_CHECKING:
    from daemon.serving.exchange import Exchange

MOST_STREAMS = 256
MOST_OPEN_STREAMS = 4 * MOST_STREAMS
"""Of those that are refused, so many may come before they are; more end the connection."""
MOST_OWED_BYTES = 4 << 20
MOST_SETTINGS = 32
NEAR_S = 0.05
"""A call that is taken back so shortly before its time is over, was taken back for that: clocks differ."""
PING = b"goodbye\0"

_CONFIG = H2Configuration(
    client_side=False,
    header_encoding=None,
    # What of it matters here, ``call.py`` sees to.
    validate_inbound_headers=False,
    normalize_inbound_headers=False,
    validate_outbound_headers=False,
    normalize_outbound_headers=False,
)
_FIRST_WINDOW = 65_535


class Http2(H2Connection):
    """h2's server side, which remembers fewer streams that are over: that memory is a client's to spend.

    Args:
        window: Bytes that may come on a stream, and on all of them, before more are allowed.
    """

    MAX_CLOSED_STREAMS = 1024

    def __init__(self, window: int) -> None:
        super().__init__(_CONFIG)
        self.local_settings = _settings(window, MOST_STREAMS)
        self.initiate_connection()
        # From here on h2 enforces this one, at which it would end the connection.
        self.local_settings = _settings(window, MOST_OPEN_STREAMS)
        self.encoder, self.decoder = BlockEncoder(), BlockDecoder()
        # At once, not when the client acknowledges it.
        self.decoder.max_header_list_size = MOST_HEAD_BYTES
        self.increment_flow_control_window(window - _FIRST_WINDOW)


class TooMany(Busy):
    """A stream too many: it was never looked at, and may be sent again elsewhere."""


class Intake(asyncio.Protocol):
    """The half of a line that reads.

    ``_calls``: those that are not answered. ``_ready``: those of them that are to be answered, or refused, at
    the end of what came. ``_held``: bytes of messages that are not whole. ``_last``: streams after this one
    are refused; the client was told that they would be.
    """

    __slots__ = (
        "_calls",
        "_closing",
        "_exchange",
        "_gate",
        "_greeted",
        "_h2",
        "_head",
        "_held",
        "_last",
        "_midway_since",
        "_opened",
        "_outbox",
        "_ready",
        "_unacknowledged",
        "expires",
    )

    def __init__(self, exchange: "Exchange") -> None:
        self._exchange, self._gate, self._h2 = exchange, Gate(), Http2(exchange.window)
        self._outbox = Outbox(self._h2)
        self._calls: dict[int, Call] = {}
        self._ready: list[Call] = []
        self._head = self._held = self._unacknowledged = 0
        self._midway_since = math.inf
        self._greeted = self._closing = self._opened = False
        self._last = H2Connection.HIGHEST_ALLOWED_STREAM_ID
        self.expires = NEVER

    @abstractmethod
    def _part(self) -> None:
        """Take no more calls, and leave after the last answer."""

    @abstractmethod
    def _reset_counts(self) -> None:
        """Count a reset stream; the last straw ends the connection."""

    def _feed(self, data: bytes) -> None:
        """Read on.

        Raises:
            Flood: A bound is broken.
            H2Error: HTTP/2 is.
        """
        for piece in self._gate.admit(data, self._exchange.second):
            self._read(self._h2.receive_data(piece))
        if self._opened:
            # Not before: what waits for a window may have been taken back right after it was opened.
            self._opened = False
            if not self._closing:
                self._outbox.go_on()
        self._watch_head()

    def _watch_head(self) -> None:
        """Set until when a head that is not whole must be."""
        gate = self._gate
        if not gate.midway:
            self._midway_since = math.inf
        elif self._midway_since == math.inf or gate.head != self._head:
            self._midway_since, self._head = self._exchange.now(), gate.head
            self._expire_by(self._midway_since + self._exchange.head_s)

    def _expire_by(self, when: float) -> None:
        if when < self.expires:
            self.expires = when

    def _read(self, events: list[Event]) -> None:
        for event in events:
            kind = type(event)
            if kind is DataReceived:
                self._take(cast(DataReceived, event))
            elif kind is RequestReceived:
                self._open(cast(RequestReceived, event))
            elif kind is StreamEnded:
                call = self._calls.get(cast(StreamEnded, event).stream_id)
                if call is not None and not call.ended:
                    call.ended = True
                    if call.verdict is None:
                        self._ready.append(call)
            elif kind is StreamReset:
                self._taken_back(cast(StreamReset, event).stream_id)
                if self._closing:
                    return
            elif kind is WindowUpdated:
                self._opened = True
            elif kind is RemoteSettingsChanged:
                self._greeted = True
                if len(self._h2.remote_settings) > MOST_SETTINGS:
                    raise Flood(f"expected at most {MOST_SETTINGS} settings, got more")
                self._opened = True
            elif kind is PingAckReceived and cast(PingAckReceived, event).ping_data == PING:
                self._part()

    def _open(self, event: RequestReceived) -> None:
        call = Call(event.stream_id)
        self._calls[call.stream] = call
        exchange = self._exchange
        try:
            call.begin(event.headers, exchange.now(), exchange.body_s)
            if call.path not in exchange.methods:
                raise exchange.unknown(call.path)
            if self._outbox.owed > MOST_OWED_BYTES:
                raise Busy(f"expected a client that reads, it left {self._outbox.owed} bytes", RETRY_S)
        except InstarError as error:
            self._judge(call, error)
        if len(self._calls) + len(self._outbox) > MOST_STREAMS or call.stream > self._last:
            self._judge(call, TooMany("expected fewer streams"))
        self._expire_by(call.due)

    def _take(self, event: DataReceived) -> None:
        size = event.flow_controlled_length
        self._unacknowledged += size
        exchange = self._exchange
        if self._unacknowledged >= exchange.step:
            self._h2.increment_flow_control_window(self._unacknowledged)
            self._unacknowledged = 0
        call = self._calls.get(event.stream_id)
        if call is None or call.verdict is not None:
            return
        self._gate.credit(0, len(event.data))
        self._held += len(event.data)
        try:
            call.take(event.data, exchange.max_body)
            if self._held > exchange.most_held:
                raise Busy(f"expected at most {exchange.most_held} bytes of messages at once", RETRY_S)
        except InstarError as error:
            self._judge(call, error)

    def _judge(self, call: Call, verdict: InstarError) -> None:
        """Have a call refused that is not whole; at the end of what came."""
        if call.verdict is None:
            self._ready.append(call)
        call.verdict = verdict
        self._held -= call.size
        call.drop()

    def _taken_back(self, stream: int) -> None:
        self._outbox.drop(stream)
        self._reset_counts()
        call = self._calls.pop(stream, None)
        if call is not None:
            self._abandon(call)

    def _abandon(self, call: Call) -> None:
        """Let go of a call whose client is gone."""
        late = call.late(self._exchange.now() + NEAR_S)
        if call.work is not None:
            # Out of its own time, its client takes it back: whoever runs it will see the first of these.
            call.work.gone = not late
        elif call.verdict is None:
            self._held -= call.size
            self._exchange.lost(call, "timeout" if late else "client_error")
        call.drop()


def _settings(window: int, streams: int) -> Settings:
    return Settings(
        client=False,
        initial_values={
            SettingCodes.MAX_CONCURRENT_STREAMS: streams,
            SettingCodes.INITIAL_WINDOW_SIZE: window,
            SettingCodes.MAX_HEADER_LIST_SIZE: MOST_HEAD_BYTES,
        },
    )
