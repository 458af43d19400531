"""Reads the spool: segments of fixed-size records that the data plane appends.

Called by control every turn, once for telemetry and once for samples. The layout is ``policies.telemetry``'s.

* Tails a segment while it is written: a torn last record is left for the next read.
* A segment is left behind only when a later one was seen *before* it was read to its end, so that nothing
  appended in between is lost.
* A gap in the numbers, or a segment that vanished unread, is counted in ``lost_segments``: at most so many
  were lost (the last one may have been read to its end).
* A spool that was emptied and numbers from the start again is read from its start.
* Every segment has its own header, so a new model's layout begins in a new segment. A block is of one layout.
* A header that is not ours is counted in ``bad_segments``, logged, and the segment passed over.

It never writes, never waits, and keeps nothing in memory but its cursor.
"""

import json
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from policies.telemetry import FORMAT, MAGIC, Field

log = logging.getLogger(__name__)

Block = npt.NDArray[np.void]
Kind = Literal["telemetry", "samples"]

_HEADER_BYTES = 1 << 16


def record_dtype(fields: list[Field]) -> np.dtype[np.void]:
    """Return the packed record dtype of a field list.

    >>> from policies.telemetry import telemetry_fields
    >>> record_dtype(telemetry_fields(classes=10, embedding=64)).itemsize
    360
    """
    return np.dtype([(name, kind, tuple(shape)) for name, kind, shape in fields])


@dataclass(frozen=True)
class Cursor:
    """Where reading goes on: the segment's number and the byte offset in its file (0: before the header)."""

    segment: int
    offset: int

    def __post_init__(self) -> None:
        if self.segment < 0 or self.offset < 0:
            raise ValueError(f"expected segment and offset >= 0, got {self.segment} and {self.offset}")


class SpoolReader:
    """Reads records of one kind in order, from a cursor on.

    Args:
        folder: The spool; need not exist yet.
        kind: Which segments.
        cursor: Where to go on; ``Cursor(0, 0)`` begins with the oldest segment there is.
    """

    def __init__(self, folder: Path, kind: Kind, cursor: Cursor) -> None:
        self._folder = folder
        self._kind: Kind = kind
        self._name = re.compile(rf"{kind}-([0-9]{{12}})\.seg")
        self.cursor = cursor
        self.lost_segments = 0
        self.bad_segments = 0

    def read(self, max_rows: int) -> tuple[Block | None, Cursor]:
        """Return the next records, at least one and at most ``max_rows``, and the cursor after them.

        None when there is nothing whole to read yet. The block is read-only.

        Raises:
            ValueError: ``max_rows`` is not positive.
        """
        if max_rows <= 0:
            raise ValueError(f"expected max_rows > 0, got {max_rows}")
        while True:
            numbers = self._segments()
            if not self._stand_on(numbers):
                return None, self.cursor
            # Listed before reading: a later segment in this list means that ours had its last append.
            later = [number for number in numbers if number > self.cursor.segment]
            try:
                block = self._read_here(max_rows, last=not later)
            except FileNotFoundError:
                # Deleted since it was listed: the next listing no longer has it, and the gap is counted.
                continue
            if block is not None:
                return block, self.cursor
            if not later:
                return None, self.cursor
            self._step_to(later[0], after=self.cursor.segment + 1)

    def _segments(self) -> list[int]:
        """Return the numbers of the segments there are, ascending."""
        if not self._folder.is_dir():
            return []
        found = (self._name.fullmatch(path.name) for path in self._folder.iterdir() if path.is_file())
        return sorted(int(match[1]) for match in found if match)

    def _stand_on(self, numbers: list[int]) -> bool:
        """Put the cursor on a segment that exists; False when there is none to read."""
        if self.cursor.segment in numbers:
            return True
        later = [number for number in numbers if number > self.cursor.segment]
        if not later:
            if numbers:
                # The oldest are deleted first, so all numbers below ours mean a spool that began anew.
                log.warning(
                    "spool began anew kind=%s at=%d, was %d", self._kind, numbers[0], self.cursor.segment
                )
                self.lost_segments += 1
                self.cursor = Cursor(numbers[0], 0)
            return bool(numbers)
        fresh = self.cursor == Cursor(0, 0)
        self._step_to(later[0], after=later[0] if fresh else self.cursor.segment)
        return True

    def _step_to(self, number: int, after: int) -> None:
        """Go to the start of a segment; those from ``after`` up to it are gone."""
        if number > after:
            self.lost_segments += number - after
            log.warning("spool lost segments kind=%s from=%d to=%d", self._kind, after, number - 1)
        self.cursor = Cursor(number, 0)

    def _read_here(self, max_rows: int, last: bool) -> Block | None:
        """Return whole records of the present segment from the cursor on, or None."""
        path = self._folder / f"{self._kind}-{self.cursor.segment:012d}.seg"
        with path.open("rb") as file:
            line = file.readline(_HEADER_BYTES)
            if not line.endswith(b"\n") and len(line) < _HEADER_BYTES:
                # Still being written, or torn by a crash that a later segment proves.
                if not last:
                    self._refuse(path, "its header has no end")
                return None
            try:
                dtype = self._layout(line)
            except (ValueError, TypeError, KeyError) as error:
                self._refuse(path, str(error))
                return None
            start = max(self.cursor.offset, len(line))
            file.seek(start)
            data = file.read(max_rows * dtype.itemsize)
        rows = len(data) // dtype.itemsize
        if rows == 0:
            return None
        self.cursor = Cursor(self.cursor.segment, start + rows * dtype.itemsize)
        return np.frombuffer(data, dtype, rows)

    def _layout(self, line: bytes) -> np.dtype[np.void]:
        header = json.loads(line)
        if not isinstance(header, dict):
            raise ValueError(f"expected a JSON object, got {type(header).__name__}")
        came = (header.get("magic"), header.get("format"), header.get("kind"))
        if came != (MAGIC, FORMAT, self._kind):
            raise ValueError(f"expected a header of {(MAGIC, FORMAT, self._kind)}, got {came}")
        return record_dtype(header["fields"])

    def _refuse(self, path: Path, reason: str) -> None:
        if self.cursor.offset == 0:
            # An offset of 1 lies inside the header, and marks that this segment was counted.
            self.bad_segments += 1
            self.cursor = Cursor(self.cursor.segment, 1)
            log.warning("spool segment passed over path=%s: %s", path, reason)
