"""The body of a request, decompressed and bounded, or refused.

* A bomb costs at most the bound.
* gzip and deflate; nothing may follow the compressed stream.

Called by ``front.py`` with whole bodies. Pure.
"""

import zlib

from daemon.serving.refusals import Malformed, TooLarge

# zlib: 16 + 15 reads gzip only, 15 reads zlib's own framing, which HTTP calls deflate.
_WINDOWS = {b"gzip": 31, b"deflate": 15}


def plain(raw: bytes, coding: bytes, limit: int) -> bytes:
    """Return a body without its coding.

    Raises:
        Malformed: The coding is unknown, or the body is not of it.
        TooLarge: It holds more than ``limit`` bytes.
    """
    coding = coding.strip().lower()
    if coding == b"identity":
        return raw
    if coding not in _WINDOWS:
        raise Malformed(f"expected Content-Encoding gzip, deflate or none, got {coding[:40]!r}")
    return decompress(raw, coding, limit)


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
