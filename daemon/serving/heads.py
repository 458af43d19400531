"""Heads that were read before: most clients send the same one again and again, byte by byte.

* A head is learned when a request stood in one piece: as llhttp took it apart and ``reading.py`` let it pass.
  The same bytes at the same place, the border of a message, mean the same.
* Only where nothing but the head decides where the body ends: HTTP/1.1, kept alive, a plain length.
* Bounded in number and in bytes. Who never sends the same head twice, as with a trace id in it, gains nothing
  and loses little.

Shared by all connections of a process. Called by ``reading.py``.
"""

from typing import NamedTuple

MOST_HEADS = 64
LONGEST = 1 << 10
_END = b"\r\n\r\n"


class Head(NamedTuple):
    """What a head says; ``headers`` belongs to many requests, nobody changes it."""

    method: bytes
    target: bytes
    headers: dict[bytes, bytes]
    body_bytes: int


class Heads:
    """The heads that are known.

    >>> heads = Heads()
    >>> head = Head(b"POST", b"/a", {b"host": b"x"}, 2)
    >>> heads.learn(head, b"POST /a HTTP/1.1\\r\\nhost: x\\r\\ncontent-length: 2\\r\\n\\r\\n12")
    >>> heads.recall(b"POST /a HTTP/1.1\\r\\nhost: x\\r\\ncontent-length: 2\\r\\n\\r\\n34")[1]
    b'34'
    >>> heads.recall(b"POST /a HTTP/1.1\\r\\nhost: x\\r\\ncontent-length: 2\\r\\n\\r\\n3") is None
    True
    """

    def __init__(self) -> None:
        self._known: dict[bytes, Head] = {}

    def recall(self, data: bytes) -> tuple[Head, bytes] | None:
        """Return the head and the body of a request that is ``data``, no more and no less; None: unknown."""
        end = _end(data)
        head = self._known.get(data[:end])
        return None if head is None or len(data) - end != head.body_bytes else (head, data[end:])

    def learn(self, head: Head, data: bytes) -> None:
        """Keep the head of a request that came as ``data``, with no other one."""
        end = _end(data)
        # Empty lines before a head are skipped, and would be taken for it.
        if end > LONGEST or len(data) - end != head.body_bytes:
            return
        if len(self._known) >= MOST_HEADS:
            self._known.clear()
        self._known[data[:end]] = head


def _end(data: bytes) -> int:
    """Return where a head ends: llhttp takes no other line ends than these."""
    return data.find(_END, 0, LONGEST + 1) + len(_END)
