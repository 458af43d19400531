"""A call: gRPC's own matter in an HTTP/2 stream - its head, its one message, its time, its status.

* A head that is no gRPC call is answered as HTTP has it (405, 415), or reset where it breaks HTTP/2.
* Every method is unary: exactly one message, in any pieces, plain or compressed; never more than ``most``
  bytes of it are kept, also after decompression. One that is too large is refused when it is announced.
* Answers are plain, which every client understands.

Called by ``line.py``. Pure.

Source: gRPC over HTTP/2 (PROTOCOL-HTTP2.md), gRPC compression, RFC 9113, 8.1 and 8.3.
"""

import math
import re
from collections.abc import Callable, Iterable
from enum import IntEnum
from functools import partial
from urllib.parse import quote

from hpack import HeaderTuple, NeverIndexedHeaderTuple

from daemon.serving.body import decompress
from daemon.serving.connection import Work
from daemon.serving.refusals import (
    RETRY_S,
    Busy,
    DeploymentRefused,
    Late,
    Malformed,
    ModelFailed,
    NotAllowed,
    NotFinite,
    NotReady,
    TooLarge,
    Unknown,
)
from policies.errors import InstarError, PermanentError

Header = tuple[bytes, bytes]
Reply = Callable[[bytes | InstarError], None]

PREFIX_BYTES = 5
MOST_TEXT = 1000
CODINGS = (b"gzip", b"deflate")

HEAD: tuple[Header, ...] = (
    (b":status", b"200"),
    (b"content-type", b"application/grpc"),
    (b"grpc-accept-encoding", b"identity,deflate,gzip"),
)
DONE: tuple[Header, ...] = ((b"grpc-status", b"0"),)
# Source: gRPC proposal A6: a client that retries waits so long.
_AGAIN: Header = (b"grpc-retry-pushback-ms", b"%d" % int(RETRY_S * 1000))

_TIMEOUT = re.compile(rb"([0-9]{1,8})([HMSmun])")
_UNITS_S = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
_KINDS = re.compile(rb"application/grpc(?:\+proto)?(?:;.*)?", re.DOTALL)
_PSEUDO = {b":method", b":scheme", b":path"}
# Source: RFC 9113, 8.2.2.
_OF_A_CONNECTION = {b"connection", b"proxy-connection", b"keep-alive", b"transfer-encoding", b"upgrade"}
_SAFE = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) != "%")


class Unimplemented(PermanentError):  # noqa: N818  the domain's word
    """The call asks for a method or a compression that is not offered."""


class NotCompressed(PermanentError):  # noqa: N818
    """A message says that it is compressed, the call does not say how."""


class NoCall(PermanentError):  # noqa: N818
    """An HTTP/2 request that is no gRPC call."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class BrokenHead(PermanentError):  # noqa: N818
    """A head that HTTP/2 forbids; its stream is reset."""


class Status(IntEnum):
    """The codes of gRPC that are used here."""

    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14


CODES: dict[type[InstarError], Status] = {
    Malformed: Status.INVALID_ARGUMENT,
    NotAllowed: Status.PERMISSION_DENIED,
    Unknown: Status.NOT_FOUND,
    TooLarge: Status.RESOURCE_EXHAUSTED,
    Busy: Status.RESOURCE_EXHAUSTED,
    NotReady: Status.UNAVAILABLE,
    DeploymentRefused: Status.UNAVAILABLE,
    Late: Status.DEADLINE_EXCEEDED,
    ModelFailed: Status.INTERNAL,
    NotFinite: Status.INTERNAL,
    Unimplemented: Status.UNIMPLEMENTED,
    NotCompressed: Status.INTERNAL,
}


class Call:
    """One call. ``received`` is on the monotonic clock, ``within_s`` its deadline after that.

    ``raw``: its message. ``due``: until when that must be here. ``ended``: its client sends no more.
    ``verdict``: what it is refused with before anybody reads it. ``work``: what it waits for.
    """

    __slots__ = (
        "_parts",
        "_until",
        "announced",
        "coding",
        "due",
        "ended",
        "path",
        "raw",
        "received",
        "said",
        "size",
        "stream",
        "verdict",
        "within_s",
        "work",
    )

    def __init__(self, stream: int) -> None:
        self.stream, self.path, self.coding = stream, b"", b""
        self.said: dict[bytes, bytes] = {}
        self._parts: list[bytes] = []
        self.size, self.announced = 0, -1
        self.raw = b""
        self.received = 0.0
        self._until = self.within_s = self.due = math.inf
        self.ended = False
        self.verdict: InstarError | None = None
        self.work: Work | None = None

    def begin(self, headers: Iterable[tuple[bytes, bytes]], now: float, body_s: float) -> None:
        """Read the head.

        Raises:
            BrokenHead: HTTP/2 forbids it.
            NoCall: It is no gRPC call.
            Malformed: It breaks gRPC.
            Unimplemented: Its compression is not known.
        """
        said, pseudo = self.said, 0
        for name, value in headers:
            if name[:1] == b":":
                if len(said) != pseudo or name in said:
                    raise BrokenHead("expected every pseudo header once, before the others")
                pseudo += 1
            said[name] = value
        if not said.keys() >= _PSEUDO or pseudo != len(_PSEUDO) + (b":authority" in said):
            raise BrokenHead("expected :method, :scheme, :path and no other pseudo header but :authority")
        if not said.keys().isdisjoint(_OF_A_CONNECTION) or any(name != name.lower() for name in said):
            raise BrokenHead("expected names in lower case, and none that HTTP/2 forbids")
        self.path = said[b":path"]
        if said[b":method"] != b"POST":
            raise NoCall(405, "expected POST")
        kind = said.get(b"content-type", b"")
        if kind != b"application/grpc" and _KINDS.fullmatch(kind) is None:
            raise NoCall(415, "expected content-type application/grpc")
        self.due = now + body_s
        if (timeout := said.get(b"grpc-timeout")) is not None:
            self._until = now + timeout_of(timeout)
            self.due = min(self.due, self._until)
        if said.get(b"te") != b"trailers":
            raise Malformed("expected te: trailers, which tells that no proxy in between loses the status")
        self.coding = said.get(b"grpc-encoding", b"identity")
        if self.coding != b"identity" and self.coding not in CODINGS:
            raise Unimplemented(f"expected grpc-encoding identity, gzip or deflate, got {self.coding[:40]!r}")

    def take(self, data: bytes, most: int) -> None:
        """Take a piece of the message.

        Raises:
            TooLarge: It is announced with more than ``most`` bytes.
            Malformed: More than one message comes.
        """
        self._parts.append(data)
        self.size += len(data)
        if self.announced < 0:
            if self.size < PREFIX_BYTES:
                return
            if len(self._parts) > 1:
                self._parts = [b"".join(self._parts)]
            self.announced = int.from_bytes(self._parts[0][1:PREFIX_BYTES], "big")
            if self.announced > most:
                raise TooLarge(f"expected a message of at most {most} bytes, got {self.announced} announced")
        if self.size > PREFIX_BYTES + self.announced:
            raise Malformed("expected one message, got more")

    def finish(self, now: float, most: int) -> None:
        """Make the whole message of what came.

        Raises:
            Malformed: There is none, or it is cut short, or not of its compression.
            NotCompressed: It says that it is compressed, the call does not say how.
            TooLarge: It holds more than ``most`` bytes.
        """
        self.received, self.within_s = now, max(0.0, self._until - now)
        if not self.size:
            raise Malformed("expected one message, the call ended without")
        if self.size != PREFIX_BYTES + self.announced:
            raise Malformed("expected one whole message, the call ended in it")
        whole = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts, self.size = [], 0
        flag = whole[0]
        self.raw = whole[PREFIX_BYTES:]
        if flag:
            if flag > 1:
                raise Malformed(f"expected a message with flag 0 or 1, got {flag}")
            if self.coding == b"identity":
                raise NotCompressed("expected a grpc-encoding for a message that says it is compressed")
            self.raw = decompress(self.raw, self.coding, most)

    def drop(self) -> None:
        """Keep nothing of a message that is not read any more."""
        self._parts, self.raw, self.size = [], b"", 0

    def late(self, now: float) -> bool:
        """Tell whether the client's own time is over."""
        return now >= self._until

    def text(self, name: bytes) -> str:
        """Return a piece of the call's metadata, or an empty text."""
        return self.said.get(name, b"").decode("latin-1")


def timeout_of(raw: bytes) -> float:
    """Return ``grpc-timeout`` in seconds.

    Raises:
        Malformed: It is none.

    >>> timeout_of(b"250m"), timeout_of(b"2M")
    (0.25, 120.0)
    """
    found = _TIMEOUT.fullmatch(raw)
    if found is None:
        raise Malformed(f"expected grpc-timeout as 1 to 8 digits and a unit of HMSmun, got {raw[:40]!r}")
    return int(found[1]) * _UNITS_S[found[2]]


def framed(raw: bytes) -> bytes:
    """Return a message with its prefix, not compressed.

    >>> framed(b"ab")
    b'\\x00\\x00\\x00\\x00\\x02ab'
    """
    return len(raw).to_bytes(PREFIX_BYTES, "big") + raw


def refusal(error: InstarError) -> list[Header | HeaderTuple]:
    """Return the whole answer to a call that gets no message: head and trailers in one."""
    if isinstance(error, NoCall):
        return [(b":status", b"%d" % error.status)]
    text = _quoted(str(error)[:MOST_TEXT]).encode()
    # Texts differ: they shall not push out of the table what is the same in every answer.
    trailers: list[Header | HeaderTuple] = [
        *HEAD,
        (b"grpc-status", b"%d" % CODES[type(error)]),
        NeverIndexedHeaderTuple(b"grpc-message", text),
    ]
    if type(error) in (Busy, NotReady, DeploymentRefused):
        trailers.append(_AGAIN)
    return trailers


_quoted = partial(quote, safe=_SAFE, encoding="utf-8", errors="replace")
