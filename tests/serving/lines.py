"""A gRPC door without a network: an exchange on a clock that stands, and clients that speak through h2."""

from dataclasses import dataclass, field

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import (
    DataReceived,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    TrailersReceived,
)

from daemon.serving.call import framed
from daemon.serving.exchange import Exchange, Service
from daemon.serving.line import Line
from policies.clock import StandingClock
from tests.serving.wire import Transport, settled

GOAWAY = 7
ECHO, RUN, LARGE = b"/t/Echo", b"/t/Run", b"/t/Large"
BODY_S, HEAD_S, IDLE_S = 20.0, 10.0, 75.0


class Work:
    gone = False


@dataclass
class Answer:
    """What a client got for one call."""

    head: dict[bytes, bytes] = field(default_factory=dict)
    trailers: dict[bytes, bytes] = field(default_factory=dict)
    data: bytes = b""
    ended: bool = False
    reset: int | None = None

    @property
    def status(self) -> int:
        said = self.trailers or self.head
        return int(said.get(b"grpc-status", b"-1"))

    @property
    def text(self) -> str:
        return (self.trailers or self.head).get(b"grpc-message", b"").decode()


class Door:
    """One exchange. ``/t/Echo`` answers at once, ``/t/Large`` much, ``/t/Run`` (the model) when told to."""

    def __init__(self, max_body: int = 1000, most: int = 10) -> None:
        self.clock = StandingClock()
        self.lost: list[str] = []
        self.later: list[tuple] = []
        self.large = 200_000
        methods = {ECHO: self._echo, RUN: self._run, LARGE: self._large}
        self.exchange = Exchange(
            Service(methods, RUN, lost=self.lost.append),
            self.clock,
            max_body=max_body,
            max_connections=most,
            head_s=HEAD_S,
            body_s=BODY_S,
            idle_s=IDLE_S,
        )

    @staticmethod
    def _echo(call, reply) -> None:
        reply(call.raw)

    def _large(self, _call, reply) -> None:
        reply(b"l" * self.large)

    def _run(self, call, reply) -> Work:
        self.later.append((call, reply, Work()))
        return self.later[-1][2]

    def answer(self) -> None:
        call, reply, _ = self.later.pop(0)
        reply(call.raw)

    def connect(self, greet: bool = True, **kind) -> "Client":
        return Client(self, greet, **kind)

    def passes(self, seconds: float) -> None:
        """Time goes by, a second at a time, and the exchange looks at everybody's."""
        whole = int(seconds)
        for step in [1.0] * whole + [seconds - whole]:
            self.clock.advance(step)
            self.exchange.sweep()


class Client:
    """One HTTP/2 client; ``h2`` is its side of the connection."""

    def __init__(self, door: Door, greet: bool, **kind) -> None:
        line = Line(door.exchange)
        self.transport = Transport(line, **kind)
        self.line, self.seen = line, 0
        self.answers: dict[int, Answer] = {}
        self.h2 = H2Connection(
            H2Configuration(client_side=True, header_encoding=None, validate_outbound_headers=False,
                            normalize_outbound_headers=False)
        )  # fmt: skip
        line.connection_made(self.transport)
        if greet:
            self.h2.initiate_connection()

    def head(self, path: bytes = ECHO, **changes: bytes | None) -> list[tuple[bytes, bytes]]:
        """Return a good head, with changes (``_`` for ``-``, ``None`` takes away)."""
        fields = {
            b":method": b"POST", b":scheme": b"http", b":path": path, b":authority": b"x:1",
            b"content-type": b"application/grpc", b"te": b"trailers",
        }  # fmt: skip
        fields |= {name.replace("_", "-").encode(): value for name, value in changes.items()}
        return [(name, value) for name, value in fields.items() if value is not None]

    def begin(self, path: bytes = ECHO, end: bool = False, head=None, **changes) -> int:
        stream = self.h2.get_next_available_stream_id()
        self.h2.send_headers(stream, head or self.head(path, **changes), end_stream=end)
        self.answers[stream] = Answer()
        return stream

    def call(self, path: bytes = ECHO, body: bytes = b"hello", frame=framed, **changes) -> int:
        stream = self.begin(path, **changes)
        self.h2.send_data(stream, frame(body), end_stream=True)
        return stream

    async def turn(self, raw: bytes = b"") -> None:
        """Send what is to be sent, and raw bytes after it; read what came back."""
        data = self.h2.data_to_send() + raw
        if data and self.transport.reading and not self.transport.gone:
            self.line.data_received(data)
        await settled()
        self.read()

    def read(self) -> None:
        new, self.seen = self.transport.sent[self.seen :], len(self.transport.sent)
        # Without GOAWAY: h2 would read nothing after it.
        known = b"".join(frame(kind, stream, body, flags) for kind, flags, stream, body in frames(new)
                         if kind != GOAWAY)  # fmt: skip
        for event in self.h2.receive_data(known) if known else []:
            kind = type(event)
            mine = self.answers.get(getattr(event, "stream_id", 0))
            if kind is ResponseReceived:
                mine.head = dict(event.headers)
            elif kind is TrailersReceived:
                mine.trailers = dict(event.headers)
            elif kind is DataReceived:
                mine.data += event.data
            elif kind is StreamEnded:
                mine.ended = True
            elif kind is StreamReset and mine is not None:
                mine.reset = int(event.error_code)

    def goaways(self) -> list[tuple[int, int]]:
        """Return error code and last stream of every GOAWAY."""
        return [(int.from_bytes(body[4:8], "big"), int.from_bytes(body[:4], "big"))
                for kind, _, _, body in frames(self.transport.sent) if kind == GOAWAY]  # fmt: skip


def frame(kind: int, stream: int = 0, body: bytes = b"", flags: int = 0) -> bytes:
    """Return the bytes of one frame.

    >>> frame(6, body=b"12345678").hex()
    '0000080600000000003132333435363738'
    """
    return len(body).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + body


def frames(sent: bytes) -> list[tuple[int, int, int, bytes]]:
    """Return kind, flags, stream and body of all frames."""
    found = []
    while sent:
        size = int.from_bytes(sent[:3], "big")
        found.append((sent[3], sent[4], int.from_bytes(sent[5:9], "big"), sent[9 : 9 + size]))
        sent = sent[9 + size :]
    return found
