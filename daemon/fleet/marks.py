"""Up to where a lane has each device's segments: a log that is written ahead of the records.

* One line a write says whose records will stand where in the lane's segment; then the records are appended.
  After a kill, how many of them are there is read from the segment's size. So nothing is taken twice and
  nothing is acknowledged that is not there, whenever the process dies.
* A position belongs to a device, a kind and an epoch: one life of the device's spool folder, within which
  its segments are numbered upwards. A new epoch begins at nothing.
* A log that has grown is replaced by what it amounts to.
* After a power cut segments may be shorter than the log says, and positions go back with them; the device
  still has what was never acknowledged.
"""

import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from daemon.fleet.segments import Segments
from daemon.fleet.terms import Position
from daemon.ops.files import persist
from policies.errors import TamperError

log = logging.getLogger(__name__)

_FULL_BYTES = 4 << 20
NOTHING = Position(segment=0, offset=0)


class Part(msgspec.Struct, frozen=True, array_like=True):
    """Records of one device in a write: ``size`` bytes that lie in its segment from ``offset`` on."""

    device: str
    epoch: str
    segment: int
    offset: int
    size: int


class Mark(msgspec.Struct, frozen=True, array_like=True):
    """One write into the lane's segments: where it begins, how large a record is, whose records they are."""

    kind: str
    number: int
    offset: int
    record_bytes: int
    parts: list[Part]


@dataclass(frozen=True, slots=True)
class _Known:
    epoch: str
    position: Position


class Marks:
    """The positions of a lane's devices.

    Args:
        path: The log; made if missing.
        segments: By kind, as they lie on the disk; torn tails are cut to a record's border.

    Raises:
        TamperError: The log is unreadable at another place than its torn end.
    """

    def __init__(self, path: Path, segments: dict[str, Segments]) -> None:
        self._path = path
        self._known: dict[tuple[str, str], _Known] = {}
        self._replay(segments)
        self._compact()

    def position(self, device: str, kind: str, epoch: str) -> Position:
        """Return up to where a device's segments of a kind are here."""
        known = self._known.get((device, kind))
        return known.position if known is not None and known.epoch == epoch else NOTHING

    def ahead(self, mark: Mark) -> None:
        """Write a mark; its records are appended right after."""
        line = msgspec.json.encode(mark) + b"\n"
        self._size += len(line)
        view = memoryview(line)
        while view:
            view = view[os.write(self._fd, view) :]

    def done(self, mark: Mark) -> None:
        """Take a mark's positions in: its records are there."""
        for part in mark.parts:
            at = Position(segment=part.segment, offset=part.offset + part.size)
            self._known[part.device, mark.kind] = _Known(part.epoch, at)

    def sync(self) -> None:
        """Make all marks durable."""
        os.fdatasync(self._fd)
        if self._size > _FULL_BYTES:
            self.restate()

    def restate(self) -> None:
        """Replace the log by the positions that it amounts to: a mark whose records did not come is gone."""
        os.close(self._fd)
        self._compact()

    def close(self) -> None:
        """Close the log."""
        os.close(self._fd)

    def _replay(self, segments: dict[str, Segments]) -> None:
        try:
            lines = self._path.read_bytes().split(b"\n")
        except FileNotFoundError:
            return
        # What follows the last newline is empty, or a line that was torn.
        first, rest = lines[0], lines[1:-1]
        try:
            for device, kind, epoch, segment, offset in json.loads(first)["positions"]:
                self._known[device, kind] = _Known(epoch, Position(segment=segment, offset=offset))
            marks = [msgspec.json.decode(line, type=Mark) for line in rest]
        except (ValueError, KeyError, TypeError, msgspec.DecodeError) as error:
            raise TamperError(
                f"expected a log of positions at {self._path}, got {error!r}; restore a backup"
            ) from error
        for mark in marks:
            self.done(_found(mark, segments[mark.kind]))

    def _compact(self) -> None:
        plain: list[Any] = [
            [device, kind, known.epoch, known.position.segment, known.position.offset]
            for (device, kind), known in self._known.items()
        ]
        raw = json.dumps({"positions": plain}).encode() + b"\n"
        persist(self._path, raw, mode=0o640)
        self._fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        self._size = len(raw)


def _found(mark: Mark, segments: Segments) -> Mark:
    """Return a mark with what of it really stands in the lane's segment."""
    wanted = sum(part.size for part in mark.parts)
    if mark.number < segments.first:
        return mark  # read by the monitors, and deleted
    path = segments.path(mark.number)
    size = path.stat().st_size if path.is_file() else 0
    there = max(0, min(wanted, size - mark.offset)) // mark.record_bytes * mark.record_bytes
    if there == wanted:
        return mark
    log.warning(
        "segment %s holds %d of %d bytes that were to come; the device sends the rest", path, there, wanted
    )
    if size > mark.offset:
        os.truncate(path, mark.offset + there)
    kept, parts = there, []
    for part in mark.parts:
        if kept <= 0:
            break
        parts.append(msgspec.structs.replace(part, size=min(kept, part.size)))
        kept -= part.size
    return msgspec.structs.replace(mark, parts=parts)
