"""The body of a request: whole, bounded and decompressed, or refused.

* Bounded as announced, as received and as decompressed: a bomb costs at most the bound.
* gzip and deflate; nothing may follow the compressed stream.
* A body that does not come in time is refused, so that a slow sender holds no memory for long.

Called by ``front.py`` and ``admin.py``.
"""

import asyncio
import zlib
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from daemon.serving.refusals import Malformed, TooLarge

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = dict[bytes, bytes]

# zlib: 16 + 15 reads gzip only, 15 reads zlib's own framing, which HTTP calls deflate.
_WINDOWS = {b"gzip": 31, b"deflate": 15}


class Gone(Exception):  # noqa: N818  the domain's word
    """The client closed the connection before its request was whole."""


async def read_body(headers: Headers, receive: Receive, limit: int, timeout_s: float) -> bytes:
    """Return a request's body, decompressed.

    Raises:
        TooLarge: It is longer than ``limit`` bytes.
        Malformed: It cannot be decompressed, or did not come within ``timeout_s``.
        Gone: The client left.
    """
    announced = headers.get(b"content-length")
    # More digits than these is too large without reading it as a number.
    if announced is not None and (len(announced) > 18 or int(announced) > limit):
        raise TooLarge(f"expected a body of at most {limit} bytes, got {announced[:20].decode()} announced")
    try:
        async with asyncio.timeout(timeout_s):
            raw = await _collect(receive, limit)
    except TimeoutError:
        raise Malformed(f"expected the body within {timeout_s:g} s; send it faster") from None
    coding = headers.get(b"content-encoding", b"identity").strip().lower()
    if coding == b"identity":
        return raw
    if coding not in _WINDOWS:
        raise Malformed(f"expected Content-Encoding gzip, deflate or none, got {coding[:40]!r}")
    return decompress(raw, coding, limit)


async def _collect(receive: Receive, limit: int) -> bytes:
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Gone
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > limit:
            raise TooLarge(f"expected a body of at most {limit} bytes, got more")
        if not message.get("more_body", False):
            return parts[0] if len(parts) == 1 else b"".join(parts)


def decompress(raw: bytes, coding: bytes, limit: int) -> bytes:
    """Return the decompressed bytes, never holding more than ``limit`` of them.

    Raises:
        Malformed: The stream is broken, cut short, or followed by something.
        TooLarge: It holds more than ``limit`` bytes.

    >>> decompress(zlib.compress(b"a" * 9), b"deflate", limit=9)
    b'aaaaaaaaa'
    """
    stream = zlib.decompressobj(wbits=_WINDOWS[coding])
    try:
        data = stream.decompress(raw, limit + 1)
    except zlib.error as error:
        raise Malformed(f"expected a {coding.decode()} body, got {error}") from error
    if len(data) > limit:
        raise TooLarge(f"expected a body of at most {limit} bytes after decompression, got more")
    if not stream.eof or stream.unused_data:
        raise Malformed(f"expected one whole {coding.decode()} stream, got it cut short or followed by more")
    return data
