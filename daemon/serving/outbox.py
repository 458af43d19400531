"""The outbox: the answers of one HTTP/2 connection, sent as far as the client's windows are open.

* An answer goes at once when it fits into both windows and one frame, and nothing waits; what does not, waits
  in the order it came. So does everything while the client does not read (``paused``).
* ``since`` tells how long the oldest has waited: who never opens its window is left, by ``line.py``.

Called by ``line.py``. Source: RFC 9113, 5.2.
"""

import math
from dataclasses import dataclass

from h2.connection import H2Connection

from daemon.serving.call import DONE, HEAD


@dataclass(slots=True)
class Owed:
    """An answer that waits, or the rest of it; ``since`` on the monotonic clock."""

    rest: memoryview
    since: float


class Outbox:
    """One connection's. ``owed``: bytes that wait."""

    __slots__ = ("_h2", "_waiting", "owed", "paused")

    def __init__(self, h2: H2Connection) -> None:
        self._h2, self.paused, self.owed = h2, False, 0
        self._waiting: dict[int, Owed] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def since(self) -> float:
        """Since when the oldest answer waits; never, when none does."""
        return next(iter(self._waiting.values())).since if self._waiting else math.inf

    def send(self, stream: int, body: bytes, now: float) -> None:
        """Send an answer, or as much of it as may be sent."""
        h2, size = self._h2, len(body)
        h2.send_headers(stream, HEAD)
        if (
            self._waiting
            or self.paused
            or size > h2.max_outbound_frame_size
            or size > h2.local_flow_control_window(stream)
        ):
            self._waiting[stream] = Owed(memoryview(body), now)
            self.owed += size
            self.go_on()
        else:
            h2.send_data(stream, body)
            h2.send_headers(stream, DONE, end_stream=True)

    def go_on(self) -> None:
        """Send what waits, after a window was opened or the client reads again."""
        if self.paused:
            return
        for stream, owed in list(self._waiting.items()):
            while owed.rest and (size := self._room(stream)) > 0:
                piece, owed.rest = owed.rest[:size], owed.rest[size:]
                self._h2.send_data(stream, bytes(piece))
                self.owed -= len(piece)
            if not owed.rest:
                del self._waiting[stream]
                self._h2.send_headers(stream, DONE, end_stream=True)
            elif self._h2.outbound_flow_control_window <= 0:
                break

    def _room(self, stream: int) -> int:
        return min(self._h2.max_outbound_frame_size, self._h2.local_flow_control_window(stream))

    def drop(self, stream: int) -> None:
        """Forget an answer whose client does not want it any more."""
        owed = self._waiting.pop(stream, None)
        if owed is not None:
            self.owed -= len(owed.rest)
