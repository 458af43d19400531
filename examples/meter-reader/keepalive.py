"""A small HTTP/1.1 client over keep-alive connections, for a client that must not be slower than its server.

* One ``Endpoint`` a host; a request takes the connection used last, or opens one.
* A connection that stood idle for ``IDLE_S`` is closed here, before the server may close it under a request:
  so nothing ever needs to be sent twice, and a failure that is counted is a real one.
* It knows POST with a length, and answers with a length. Nothing else.
"""

import asyncio
from dataclasses import dataclass
from urllib.parse import urlsplit

IDLE_S = 2.0


class BrokenAnswer(Exception):  # noqa: N818  what it is, not whose fault
    """The other side answered something that is not HTTP as this client knows it."""


@dataclass
class _Connection:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    used_at: float


class Endpoint:
    """Where requests go; ``url`` is ``http://HOST:PORT``."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname or not parts.port:
            raise ValueError(f"expected http://HOST:PORT, got {url!r}")
        self._host, self._port = parts.hostname, parts.port
        self._idle: list[_Connection] = []

    async def post(self, path: str, headers: str, body: bytes, timeout_s: float) -> tuple[int, bytes]:
        """Send a body and return status and answer.

        Args:
            path: With its leading slash.
            headers: More header lines, each ended by CRLF.
            body: Sent as it is.
            timeout_s: For the whole exchange, connecting included.

        Raises:
            OSError: No connection, or it broke.
            TimeoutError: No whole answer in time.
            BrokenAnswer: The answer makes no sense.
        """
        async with asyncio.timeout(timeout_s):
            connection = await self._connect()
            try:
                head = (
                    f"POST {path} HTTP/1.1\r\nHost: {self._host}:{self._port}\r\n"
                    f"Content-Length: {len(body)}\r\n{headers}\r\n"
                )
                connection.writer.write(head.encode() + body)
                status, answer, stays = await _read(connection.reader)
            except BaseException:
                connection.writer.close()
                raise
        if stays:
            connection.used_at = asyncio.get_running_loop().time()
            self._idle.append(connection)
        else:
            connection.writer.close()
        return status, answer

    async def _connect(self) -> _Connection:
        now = asyncio.get_running_loop().time()
        while self._idle:
            connection = self._idle.pop()
            if now - connection.used_at < IDLE_S and not connection.reader.at_eof():
                return connection
            connection.writer.close()
        reader, writer = await asyncio.open_connection(self._host, self._port)
        return _Connection(reader, writer, now)

    def close(self) -> None:
        """Close every idle connection."""
        while self._idle:
            self._idle.pop().writer.close()


async def _read(reader: asyncio.StreamReader) -> tuple[int, bytes, bool]:
    """Return status, body and whether the connection may be used again."""
    try:
        raw = await reader.readuntil(b"\r\n\r\n")
        first, *lines = raw.decode("latin-1").split("\r\n")
        fields = {name.strip().lower(): value.strip() for name, _, value in (x.partition(":") for x in lines)}
        status = int(first.split(" ", 2)[1])
        body = await reader.readexactly(int(fields["content-length"]))
    except asyncio.IncompleteReadError as error:
        raise ConnectionError(f"the answer broke off after {len(error.partial)} bytes") from error
    except (KeyError, ValueError, IndexError, asyncio.LimitOverrunError) as error:
        raise BrokenAnswer(f"expected an HTTP/1.1 answer with a Content-Length, got {error!r}") from error
    return status, body, fields.get("connection", "").lower() != "close"
