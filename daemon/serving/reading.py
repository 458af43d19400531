"""The reading of one client: bytes in any pieces become whole requests, within bounds, or are refused.

* Head, number of headers and body are bounded in bytes; so is what comes around a body: chunk extensions,
  trailers.
* Trailers are not read, and an offer to upgrade is not taken up (RFC 9110, 6.5.1 and 7.8); together with a
  body it is refused: the parser would take the body for the next request.
* Two hosts, another version than 1.0 and 1.1, a coded transfer under 1.0: refused (RFC 9112, 3.2 and 6.1).
* After a refusal, or a request that is the last, nothing more is parsed (``_deaf``).
* A head that was read before is not read again (``heads.py``).

llhttp reads the bytes (``httptools``); nothing here does. ``connection.py`` answers.
"""

import asyncio
from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

import httptools

from daemon.serving.heads import Head

if TYPE_CHECKING:
    from daemon.serving.reception import Reception

MOST_HEAD_BYTES = 16 << 10
MOST_HEADERS = 100
NEVER = float("inf")


@dataclass(slots=True)
class Request:
    """One whole request. ``headers`` has lower-case names; of equal ones, the last."""

    method: bytes
    target: bytes
    headers: dict[bytes, bytes]
    body: bytes
    received: float


class Reading(asyncio.Protocol):
    """The half of a connection that reads. ``busy``: an answer is owed, so the client has time."""

    __slots__ = (
        "_body",
        "_body_bytes",
        "_deaf",
        "_dry_bytes",
        "_expects",
        "_head_bytes",
        "_headers",
        "_learn",
        "_method",
        "_parser",
        "_reading_head",
        "_reception",
        "_target",
        "_transport",
        "_version",
        "busy",
        "expires",
    )

    _transport: asyncio.Transport

    def __init__(self, reception: "Reception") -> None:
        self._reception = reception
        self._parser: httptools.HttpRequestParser | None = None
        self._headers: dict[bytes, bytes] = {}
        self._method = self._target = b""
        self._version = "1.1"
        # The last request's head, while it may be one that is worth keeping.
        self._learn: Head | None = None
        self._body: list[bytes] = []
        self._head_bytes = self._body_bytes = self._dry_bytes = 0
        self._reading_head = True
        self._deaf = self.busy = self._expects = False
        self.expires = NEVER

    @abstractmethod
    def _whole(self, request: Request, keep: bool) -> None:
        """Take a whole request; ``keep``: the client may ask more."""

    @abstractmethod
    def _fail(self, status: int, text: str) -> None:
        """Refuse what is on the wire, and read no more."""

    def _too_large(self, came: str) -> None:
        self._reception.refused(self._target, self._fail, came)

    def _feed(self, data: bytes) -> None:
        border = self._reading_head and not self._head_bytes
        if border and (known := self._reception.heads.recall(data)) is not None:
            head, body = known
            self._version = "1.1"
            self._whole(Request(head.method, head.target, head.headers, body, self._reception.now()), True)
            return
        if self._parser is None:
            self._parser = httptools.HttpRequestParser(self)
        if self._reading_head:
            self._head_bytes += len(data)
        else:
            self._dry_bytes += len(data)
        rest = data
        try:
            while rest:
                rest = self._parsed(self._parser, rest)
        except httptools.HttpParserCallbackError:
            # Ours, not the client's.
            raise
        except httptools.HttpParserError as error:
            if not self._reading_head and not self._deaf:
                self._reception.late(self._target)
            self._fail(400, f"expected an HTTP/1.1 request, got one that breaks it: {error}")
        if self._reading_head and self._head_bytes > MOST_HEAD_BYTES:
            self._fail(431, f"expected a head of at most {MOST_HEAD_BYTES} bytes, got more")
        elif self._dry_bytes > MOST_HEAD_BYTES and not self._reading_head:
            self._too_large("as many around it")
        elif border and self._learn is not None and self._reading_head and not self._head_bytes:
            # One request, and nothing else: a second one would have taken its place, or begun a head.
            self._reception.heads.learn(self._learn, data)
            self._learn = None

    def _parsed(self, parser: httptools.HttpRequestParser, data: bytes) -> bytes:
        """Parse, and return what comes after an offer to upgrade: the parser stops there."""
        try:
            parser.feed_data(data)
        except httptools.HttpParserUpgrade as offer:
            return b"" if self._deaf else data[offer.args[0] :]
        return b""

    # -- httptools ------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """Begin a request."""
        self._headers, self._target, self._body, self._body_bytes = {}, b"", [], 0
        self._reading_head, self._learn = True, None
        self._head_bytes = self._head_bytes or 1
        if not self.busy:
            self.expires = self._reception.head_until()

    def on_url(self, url: bytes) -> None:
        """Read the target, which may come in pieces."""
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Read a header; a trailer is none."""
        if len(self._headers) >= MOST_HEADERS:
            self._fail(431, f"expected at most {MOST_HEADERS} headers, got more")
        elif self._reading_head:
            name = name.lower()
            if name == b"host" and name in self._headers:
                self._fail(400, "expected one Host header, got another one")
            # llhttp takes the white space before a value away, not what stands behind it (RFC 9112, 5.1).
            self._headers[name] = value.rstrip(b" \t")

    def on_headers_complete(self) -> None:
        """Refuse what is announced too large, and wait for the body."""
        if self._deaf or self._parser is None:
            return
        if self._head_bytes > MOST_HEAD_BYTES and self._head_size() > MOST_HEAD_BYTES:
            self._fail(431, f"expected a head of at most {MOST_HEAD_BYTES} bytes, got more")
            return
        self._reading_head, self._head_bytes, self._dry_bytes = False, 0, 0
        self._method = self._parser.get_method()
        version = self._version = str(self._parser.get_http_version())
        if (unfit := self._unfit(self._parser, version)) is not None:
            self._fail(*unfit)
            return
        announced = self._headers.get(b"content-length")
        # More digits than these is too large without reading it as a number; llhttp has seen to the digits.
        if announced is not None and (len(announced) > 18 or int(announced) > self._reception.max_body):
            self._too_large(f"{announced[:20].decode()} announced")
            return
        if not self.busy:
            self.expires = self._reception.body_until()
        self._expects = self._headers.get(b"expect", b"").lower() == b"100-continue" and version != "1.0"
        if not self.busy:
            self._go_on()

    def _unfit(self, parser: httptools.HttpRequestParser, version: str) -> tuple[int, str] | None:
        """Return what a head is refused with that llhttp lets pass; None when it is fit."""
        if version not in ("1.0", "1.1"):
            return 505, f"expected HTTP/1.1 or HTTP/1.0, got HTTP/{version}"
        if self._method == b"CONNECT":
            return 400, "expected a request to this server, got CONNECT; it is no proxy"
        coded = b"transfer-encoding" in self._headers
        if parser.should_upgrade() and (coded or self._headers.get(b"content-length", b"0") != b"0"):
            # Here the parser would take the body for the next request.
            return 400, "expected plain HTTP/1.1, got a body with an offer to upgrade; leave it out"
        if coded and version == "1.0":
            return 400, "expected a Content-Length in HTTP/1.0, got a Transfer-Encoding; ask in HTTP/1.1"
        if b"host" not in self._headers and version == "1.1":
            return 400, "expected a Host header in HTTP/1.1, got none"
        return None

    def _go_on(self) -> None:
        """Ask for the body, of a client that waits to be asked; not before the answers that are owed."""
        if self._expects:
            self._expects = False
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _head_size(self) -> int:
        return len(self._target) + sum(len(name) + len(value) + 4 for name, value in self._headers.items())

    def on_body(self, body: bytes) -> None:
        """Read a piece of the body."""
        if self._deaf:
            return
        self._dry_bytes = 0
        self._body_bytes += len(body)
        if self._body_bytes > self._reception.max_body:
            self._too_large("more")
        else:
            self._body.append(body)

    def on_message_complete(self) -> None:
        """Hand a whole request on."""
        if self._deaf or self._parser is None:
            return
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        request = Request(self._method, self._target, self._headers, body, self._reception.now())
        keep = self._parser.should_keep_alive()
        self._reading_head, self._body_bytes, self._body, self._target = True, 0, [], b""
        self._deaf = not keep
        if keep and self._plain(self._parser):
            self._learn = Head(request.method, request.target, request.headers, len(body))
        self._whole(request, keep)

    def _plain(self, parser: httptools.HttpRequestParser) -> bool:
        """Tell whether the request that is whole now ended where its head said that it would."""
        told = self._headers
        another = b"transfer-encoding" in told or b"expect" in told or parser.should_upgrade()
        return self._version == "1.1" and not another
