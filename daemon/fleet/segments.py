"""A lane's segments of one kind: whole records of many devices, appended in the order they were taken.

* What the monitors read afterwards is an ordinary spool (``monitors.spool``): nobody there needs to know that
  devices are behind it.
* A segment has one layout, and a start begins a new one: a torn tail is never appended to.
* ``sync`` makes what was appended last a power cut. Nothing is acknowledged before it.
* Segments are deleted when the monitors have read them and kept what they learned (``forget``), never before;
  the newest stays.
"""

import os
from collections import deque
from pathlib import Path

from daemon.fleet.layouts import Layout

SEGMENT_BYTES = 8 << 20
"""A segment is not begun in its middle: this one is full."""


class Segments:
    """The segments of one kind in a folder.

    Args:
        folder: The lane's spool; made if missing.
        kind: Which segments.
    """

    def __init__(self, folder: Path, kind: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._kind = kind
        found = sorted(int(path.name[-16:-4]) for path in folder.glob(f"{kind}-{'[0-9]' * 12}.seg"))
        self._closed = deque((number, self.path(number).stat().st_size) for number in found)
        self._fd: int | None = None
        self._layout: Layout | None = None
        self._read = (0, 0)
        self.number = found[-1] if found else 0
        self.size = 0

    def path(self, number: int) -> Path:
        """Return where a segment lies."""
        return self._folder / f"{self._kind}-{number:012d}.seg"

    @property
    def first(self) -> int:
        """Return the lowest number there is; one above the last when there is none."""
        return (
            self._closed[0][0] if self._closed else (self.number if self._fd is not None else self.number + 1)
        )

    @property
    def held_bytes(self) -> int:
        """Return how many bytes there are that were not read yet."""
        there = [*self._closed, *([] if self._fd is None else [(self.number, self.size)])]
        segment, offset = self._read
        return sum(size - (offset if number == segment else 0) for number, size in there if number >= segment)

    @property
    def layout(self) -> Layout | None:
        """Return the open segment's layout."""
        return self._layout

    def place(self, layout: Layout, size_bytes: int) -> tuple[int, int]:
        """Return the number and offset at which records of this layout would be appended now."""
        if self._fits(layout, size_bytes):
            return self.number, self.size
        return self.number + 1, len(layout.header)

    def append(self, layout: Layout, data: bytes) -> None:
        """Append whole records; where ``place`` said.

        Raises:
            OSError: The disk refuses; what was torn off is cut, and a new segment begins next.
        """
        if not self._fits(layout, len(data)):
            self.close()
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            self._fd = os.open(self.path(self.number + 1), flags, 0o640)
            self.number, self.size, self._layout = self.number + 1, 0, layout
            data = layout.header + data
        if self._fd is None:
            raise ValueError("expected an open segment")
        before, view = self.size, memoryview(data)
        try:
            while view:
                written = os.write(self._fd, view)
                self.size += written
                view = view[written:]
        except OSError:
            self.size = before
            os.ftruncate(self._fd, before)
            self.close()
            if before == 0:
                self._closed.pop()
                self.path(self.number).unlink(missing_ok=True)
            raise

    def sync(self) -> None:
        """Make all that was appended durable."""
        if self._fd is not None:
            os.fdatasync(self._fd)

    def forget(self, segment: int, offset: int) -> None:
        """Delete the segments below one, which was read up to an offset; never the newest."""
        self._read = (segment, offset)
        while self._closed and self._closed[0][0] < min(segment, self.number):
            self.path(self._closed.popleft()[0]).unlink(missing_ok=True)

    def close(self) -> None:
        """Close the open segment, if any."""
        if self._fd is None:
            return
        os.fdatasync(self._fd)
        os.close(self._fd)
        self._fd = None
        self._closed.append((self.number, self.size))

    def _fits(self, layout: Layout, size_bytes: int) -> bool:
        return self._fd is not None and layout == self._layout and self.size + size_bytes <= SEGMENT_BYTES
