"""The gate: looks at the border of every HTTP/2 frame before ``h2`` does, and counts what it costs.

* A frame is at most ``MOST_FRAME_BYTES`` long, and is refused when its header says otherwise: ``h2`` would
  collect all of it first. A block of headers, with its continuations, is at most ``MOST_HEAD_BYTES``.
* Every frame costs one, a change of settings more; whole calls and bytes of messages give back. Who spends
  more than ``MOST_SPENT`` within a second is told to calm down: pings, settings, priorities, window updates,
  empty or tiny pieces of data and whatever else keeps the server busy with nothing.
* GOAWAY is taken out: ``h2`` would end the connection at it, with answers that are owed (RFC 9113, 6.8).

Called by ``line.py`` with the bytes as they come. Pure; ``second`` is any number that changes once a second.

Source: RFC 9113, 4.1, 6.10 and 10.5.
"""

from daemon.serving.reading import MOST_HEAD_BYTES

PREFACE_BYTES = 24
MOST_FRAME_BYTES = 16 << 10
"""What HTTP/2 allows everybody; more is never offered."""
MOST_SETTINGS_BYTES = 6 * 32
MOST_SPENT = 2000
RARE_COST = 20
"""Of settings, since ``h2`` keeps a note of some until it sends headers, and of GOAWAY."""
CALL_CREDIT = 8
BYTES_A_CREDIT = 512

DATA, HEADERS, SETTINGS, GOAWAY, CONTINUATION = 0, 1, 4, 7, 9
_FRAME_HEAD = 9
_END_HEADERS = 4
_GOAWAY_BYTES = 8


class Flood(Exception):  # noqa: N818  the domain's word
    """A client sends more than it may, of what is of no use; it is left."""


class Gate:
    """The borders of one connection's frames.

    ``midway``: inside a head, or another frame that is none of a message; ``head`` numbers it, continued or
    not. ``said_goodbye``: GOAWAY came.
    """

    __slots__ = (
        "_block_bytes",
        "_cut",
        "_dropping",
        "_left",
        "_second",
        "_spent",
        "head",
        "midway",
        "said_goodbye",
    )

    def __init__(self) -> None:
        self._left, self._cut = PREFACE_BYTES, b""
        self._block_bytes = self.head = 0
        self._spent = self._second = 0
        self._dropping = False
        self.midway, self.said_goodbye = True, False

    def credit(self, calls: int, size_bytes: int) -> None:
        """Give back what useful frames cost."""
        self._spent -= calls * CALL_CREDIT + size_bytes // BYTES_A_CREDIT

    def admit(self, data: bytes, second: int) -> list[bytes]:
        """Return the bytes that ``h2`` may have, in pieces.

        Raises:
            Flood: A bound is broken. Nothing of ``data`` is to be read.
        """
        if second != self._second:
            self._second, self._spent = second, 0
        admitted: list[bytes] = []
        while data:
            data = self._slowly(data) if self._dropping or self._cut else self._quickly(data, admitted)
        return admitted

    def _quickly(self, data: bytes, admitted: list[bytes]) -> bytes:
        """Look at whole frames; return what comes after the first part of a goodbye."""
        size, at = len(data), self._left
        while at + _FRAME_HEAD <= size:
            kind = data[at + 3]
            length = data[at] << 16 | data[at + 1] << 8 | data[at + 2]
            self._count(kind, length, data[at + 4])
            if kind == GOAWAY and length >= _GOAWAY_BYTES and not any(data[at + 5 : at + 9]):
                self.said_goodbye, self._dropping, self._left = True, True, length
                if at:
                    admitted.append(data[:at])
                return data[at + _FRAME_HEAD :]
            at += _FRAME_HEAD + length
        if at < size:
            # A frame's own head is cut; it is seen when the rest of it comes, and ``h2`` waits for that too.
            self._cut, self._left = data[at:], 0
            self.midway = True
            data = data[:at]
        else:
            self._left = at - size
            if not self._left and not self._block_bytes:
                self.midway = False
        if data:
            admitted.append(data)
        return b""

    def _slowly(self, data: bytes) -> bytes:
        """Go on in a frame that is taken out, or where a frame's head was cut; return what is left to do."""
        if self._dropping:
            dropped = min(self._left, len(data))
            self._left -= dropped
            self._dropping = self._left > 0
            self.midway = self._dropping or self._block_bytes > 0
            return data[dropped:]
        whole, self._cut = self._cut + data, b""
        if len(whole) < _FRAME_HEAD:
            self._cut, self.midway = whole, True
            return b""
        return whole

    def _count(self, kind: int, length: int, flags: int) -> None:
        if length > MOST_FRAME_BYTES:
            raise Flood(f"expected frames of at most {MOST_FRAME_BYTES} bytes, got {length}")
        if kind in (HEADERS, CONTINUATION):
            self._block_bytes += length
            if self._block_bytes > MOST_HEAD_BYTES:
                raise Flood(f"expected a head of at most {MOST_HEAD_BYTES} bytes, got more")
            if flags & _END_HEADERS:
                self._block_bytes = 0
        elif kind in (SETTINGS, GOAWAY):
            self._spent += RARE_COST
            if kind == SETTINGS and length > MOST_SETTINGS_BYTES:
                raise Flood(f"expected settings in at most {MOST_SETTINGS_BYTES} bytes, got {length}")
        self.midway = kind != DATA
        self.head += kind != CONTINUATION
        self._spent += 1
        if self._spent > MOST_SPENT:
            raise Flood(f"expected calls, got {MOST_SPENT} other frames within a second")
