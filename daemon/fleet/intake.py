"""A lane's telemetry, taken in: records of its devices, exactly once, into one spool.

* A push is a piece of a device's segment: the segment's number, the offset in its file, and a body that is a
  segment itself, header and whole records. A piece that is here already is ignored; one that leaves a gap in
  its segment is refused with the position at which to go on.
* Pushes that came together are committed together: marks, records, then both made durable, then answered.
* Records are not decoded: sizes, layout and positions are checked.

Called by the hub from one thread at a time. The monitors read the spool (``monitors.spool``).
"""

import threading
from dataclasses import dataclass
from pathlib import Path

from daemon.fleet.layouts import Layout, Layouts
from daemon.fleet.marks import Mark, Marks, Part
from daemon.fleet.segments import SEGMENT_BYTES, Segments
from daemon.fleet.terms import KINDS, Position
from policies.errors import PermanentError
from policies.terms import Task

_MOST_WRITE_BYTES = SEGMENT_BYTES // 4


class Gap(PermanentError):  # noqa: N818  a state of the exchange, not a mistake
    """A piece does not follow what is here; ``position`` is where to go on."""

    def __init__(self, message: str, position: Position) -> None:
        super().__init__(message)
        self.position = position


@dataclass(frozen=True, slots=True)
class Push:
    """A piece of a device's segment."""

    device: str
    kind: str
    epoch: str
    segment: int
    offset: int
    body: bytes


@dataclass(frozen=True, slots=True)
class _New:
    """The part of a push that is not here yet."""

    layout: Layout
    part: Part
    data: memoryview


class Intake:
    """The spool of one lane, and the positions of its devices.

    Args:
        task: What the records must be of.
        spool: The lane's spool folder.
        marks: The log of positions.

    Raises:
        TamperError: The log is unreadable.
    """

    def __init__(self, task: Task, spool: Path, marks: Path) -> None:
        self._layouts = Layouts(task)
        self._segments = {kind: Segments(spool, kind) for kind in KINDS}
        self._marks = Marks(marks, self._segments)
        self._lock = threading.Lock()

    def position(self, device: str, kind: str, epoch: str) -> Position:
        """Return up to where a device's segments of a kind are here."""
        return self._marks.position(device, kind, epoch)

    def held_bytes(self, kind: str) -> int:
        """Return how many bytes wait for the monitors."""
        return self._segments[kind].held_bytes

    def commit(self, pushes: list[Push]) -> list[Position | PermanentError]:
        """Take pushes in, durably; return the position after each, or why it was refused.

        Raises:
            OSError: The disk refuses; nothing of these pushes counts that is not there.
        """
        with self._lock:
            answers: list[Position | PermanentError] = []
            new: dict[tuple[str, Layout], list[_New]] = {}
            at: dict[tuple[str, str, str], Position] = {}
            for push in pushes:
                key = (push.device, push.kind, push.epoch)
                try:
                    found = self._new(push, at.get(key) or self._marks.position(*key))
                except PermanentError as error:
                    answers.append(error)
                    continue
                if isinstance(found, _New):
                    new.setdefault((push.kind, found.layout), []).append(found)
                    end = found.part.offset + found.part.size
                    found = Position(segment=push.segment, offset=end)
                at[key] = found
                answers.append(found)
            self._write(new)
            return answers

    def forget(self, kind: str, segment: int, offset: int) -> None:
        """Delete what the monitors have read, and will not read again: all before this place."""
        with self._lock:
            self._segments[kind].forget(segment, offset)

    def close(self) -> None:
        """Close the files."""
        with self._lock:
            for segments in self._segments.values():
                segments.close()
            self._marks.close()

    def _new(self, push: Push, here: Position) -> _New | Position:
        """Return what of a push is new, or the position when nothing is.

        Raises:
            Gap: Something before it is missing.
            PermanentError: It is not a piece of a segment of this lane.
        """
        layout = self._layouts.read(push.body, push.kind)
        size = len(push.body) - len(layout.header)
        into, head = push.offset - len(layout.header), len(layout.header)
        if size <= 0 or size % layout.record_bytes or into < 0 or into % layout.record_bytes:
            raise PermanentError(
                f"expected whole records of {layout.record_bytes} bytes after the header, got {size}"
            )
        end = push.offset + size
        if (push.segment, end) <= (here.segment, here.offset):
            return here
        # The start of a segment, or right after what is here: a spool's reader never leaves a hole in one.
        begin = here.offset if push.segment == here.segment else head
        if push.offset > begin:
            raise Gap(f"expected records of segment {push.segment} from {begin} on, got {push.offset}", here)
        if (begin - head) % layout.record_bytes:
            raise Gap(f"expected the layout that segment {push.segment} has here, got another one", here)
        part = Part(push.device, push.epoch, push.segment, begin, end - begin)
        return _New(layout, part, memoryview(push.body)[head + begin - push.offset :])

    def _write(self, new: dict[tuple[str, Layout], list[_New]]) -> None:
        # The layout of the open segment first: each change of it begins a new segment.
        order = sorted(new.items(), key=lambda item: self._segments[item[0][0]].layout != item[0][1])
        for (kind, layout), pieces in order:
            for some in _bounded(pieces):
                segments = self._segments[kind]
                size = sum(piece.part.size for piece in some)
                number, offset = segments.place(layout, size)
                mark = Mark(kind, number, offset, layout.record_bytes, [piece.part for piece in some])
                self._marks.ahead(mark)
                try:
                    segments.append(layout, b"".join(piece.data for piece in some))
                except OSError:
                    self._marks.restate()
                    raise
                self._marks.done(mark)
        if new:
            for kind in {kind for kind, _ in new}:
                self._segments[kind].sync()
            self._marks.sync()


def _bounded(pieces: list[_New]) -> list[list[_New]]:
    """Return pieces in groups that fit well into a segment."""
    groups: list[list[_New]] = [[]]
    size = 0
    for piece in pieces:
        if groups[-1] and size + piece.part.size > _MOST_WRITE_BYTES:
            groups.append([])
            size = 0
        groups[-1].append(piece)
        size += piece.part.size
    return groups
