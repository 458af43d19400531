"""The spool: appends records to bounded segment files from a thread of its own.

* ``append`` never blocks and never touches a file: it queues bytes, or drops them and counts the rows.
* The writer thread wakes at least every 0.2 s, writes what is queued, and keeps each kind below its half of
  the budget by deleting its oldest segments. ``close`` writes everything that was queued before it.
* It writes ``PIECE_BYTES`` at a time and sleeps in between: to copy megabytes into the page cache takes
  milliseconds of the same processor that answers.
* Records of another layout than the open segment's wait up to a second, then a segment begins for them.
* A new segment begins at every start, when the layout changes, and when one is full. A segment ends on a
  record's border; only a killed process or machine leaves a torn tail, which readers ignore.
* A disk that refuses costs records, counted, and never an answer.

Called by ``recorder.py`` and by who takes records in from outside. Layouts are ``policies.telemetry``'s.
Does not read: the monitors do.
"""

import json
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from policies.telemetry import FORMAT, MAGIC, Field

log = logging.getLogger(__name__)

KINDS = ("telemetry", "samples")
FLUSH_S = 0.2
QUEUE_BYTES = 8 << 20
SEGMENTS_A_KIND = 8
MOST_SEGMENTS = 4096
LEAST_BYTES = 1 << 16
HOLD_FLUSHES = 5
PIECE_BYTES = 1 << 16
PAUSE_S = 0.0005


@dataclass(frozen=True, slots=True)
class Layout:
    """What a segment's header says: kind, model and record fields; ``record_bytes`` is one record's size."""

    kind: str
    model: str
    fields: tuple[Field, ...]
    record_bytes: int

    @property
    def header(self) -> bytes:
        """The first line of a segment, newline included."""
        fields = [[name, dtype, list(shape)] for name, dtype, shape in self.fields]
        head = {"magic": MAGIC, "format": FORMAT, "kind": self.kind, "model": self.model, "fields": fields}
        return json.dumps(head).encode() + b"\n"


def segment_number(name: str, kind: str) -> int | None:
    """Return the number in a segment's file name, None when it is no segment of this kind.

    >>> segment_number("telemetry-000000000012.seg", "telemetry"), segment_number("x.tmp", "samples")
    (12, None)
    """
    middle = name.removeprefix(f"{kind}-").removesuffix(".seg")
    whole = name == f"{kind}-{middle}.seg" and len(middle) == 12 and middle.isascii() and middle.isdigit()
    return int(middle) if whole else None


class Stream:
    """The segments of one kind; used by the writer thread alone."""

    def __init__(self, folder: Path, kind: str, budget_bytes: int) -> None:
        self._folder, self._kind, self._budget = folder, kind, budget_bytes
        self._full = budget_bytes // SEGMENTS_A_KIND
        numbered = ((segment_number(path.name, kind), path) for path in folder.iterdir())
        found = sorted((number, path) for number, path in numbered if number is not None)
        self._closed = deque((path, path.stat().st_size) for _, path in found)
        self._closed_bytes = sum(size for _, size in self._closed)
        self._next = found[-1][0] + 1 if found else 1
        self._fd: int | None = None
        self._path = folder
        self._size = 0
        self.layout: Layout | None = None

    def write(self, layout: Layout, data: bytes) -> None:
        """Append whole records.

        Raises:
            OSError: The disk refuses; none of the records is in a segment then.
        """
        if self._fd is not None and (layout != self.layout or self._size + len(data) > self._full):
            self.close()
        if self._fd is None:
            data = layout.header + data
        # First: an old segment that cannot be deleted costs the new records, not the bound.
        self._trim(len(data))
        if self._fd is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._path = self._folder / f"{self._kind}-{self._next:012d}.seg"
            self._fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640)
            self._next, self.layout = self._next + 1, layout
        self._put(self._fd, data)

    def _put(self, fd: int, data: bytes) -> None:
        start, view = self._size, memoryview(data)
        try:
            while view:
                written = os.write(fd, view)
                self._size += written
                view = view[written:]
        except OSError:
            # Half a record in the middle would shift all that follow: cut it off, and begin a new segment.
            self._size = start
            try:
                os.ftruncate(fd, start)
            finally:
                self._give_up(empty=start == 0)
            raise

    def _give_up(self, empty: bool) -> None:
        # A full disk must not collect empty files, one a flush.
        self.close()
        if empty:
            self._closed.pop()
            self._path.unlink(missing_ok=True)
            self._next -= 1

    def _trim(self, coming: int) -> None:
        while self._closed and (
            self._closed_bytes + self._size + coming > self._budget or len(self._closed) >= MOST_SEGMENTS
        ):
            path, size = self._closed[0]
            path.unlink(missing_ok=True)
            self._closed.popleft()
            self._closed_bytes -= size

    def close(self) -> None:
        """Close the open segment, if any."""
        if self._fd is None:
            return
        # First: a number that was closed, even in vain, may be another file's at once.
        fd, self._fd = self._fd, None
        self._closed.append((self._path, self._size))
        self._closed_bytes += self._size
        self._size = 0
        os.close(fd)

    def look(self) -> bool:
        """Leave the open segment if somebody has deleted it: what is written there, nobody reads.

        Returns:
            Whether it is still there; True also when none is open.
        """
        if self._fd is None or os.fstat(self._fd).st_nlink:
            return True
        fd, self._fd, self._size = self._fd, None, 0
        os.close(fd)
        return False


class Spool:
    """The queue between the loop and the writer thread.

    Args:
        folder: Where the segments lie; made if missing.
        budget_bytes: For both kinds together; at least ``2 * LEAST_BYTES``.
        dropped: Called with (kind, rows) for every loss; must be thread-safe.
        write: Puts records into a stream; tests pass one that fails.

    ``gather`` is called before every flush, so that who appends may put work off till then. ``drop`` is
    ``dropped``, for rows that never became records.

    Raises:
        ValueError: The budget is too small.
    """

    def __init__(
        self,
        folder: Path,
        budget_bytes: int,
        dropped: Callable[[str, int], None],
        write: Callable[[Stream, Layout, bytes], None] = Stream.write,
    ) -> None:
        if budget_bytes < 2 * LEAST_BYTES:
            raise ValueError(f"expected a spool of at least {2 * LEAST_BYTES} bytes, got {budget_bytes}")
        folder.mkdir(parents=True, exist_ok=True)
        self._streams = {kind: Stream(folder, kind, budget_bytes // 2) for kind in KINDS}
        # One write must fit into a segment, else the budget could not hold.
        self._segment = budget_bytes // 2 // SEGMENTS_A_KIND
        self._piece = min(PIECE_BYTES, self._segment // 2)
        self.drop, self._write = dropped, write
        self._queue: deque[tuple[Layout, bytes]] = deque()
        self._queued_bytes = 0
        self._held: dict[str, dict[Layout, list[bytes]]] = {kind: {} for kind in KINDS}
        self._waited = dict.fromkeys(KINDS, 0)
        # Two locks: the loop takes the first one alone, so that it never waits for a disk.
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._wake = threading.Event()
        self._closing = False
        self._refused: set[str] = set()
        self._broken = False
        self.gather: Callable[[], None] = _nothing
        self._thread = threading.Thread(target=self._work, name="spool", daemon=True)

    def start(self) -> None:
        """Start the writer thread."""
        self._thread.start()

    def append(self, layout: Layout, data: bytes) -> None:
        """Queue whole records; drop and count them when the queue is full, or one is larger than a segment.

        Never blocks on a file.
        """
        with self._lock:
            small = layout.record_bytes <= self._segment
            fits = small and self._queued_bytes + len(data) <= QUEUE_BYTES
            if fits:
                self._queue.append((layout, data))
                self._queued_bytes += len(data)
        if not fits:
            self.drop(layout.kind, len(data) // layout.record_bytes)

    def close(self) -> None:
        """Write what is queued, then end the thread."""
        self._closing = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join()
        self.flush(last=True)
        for stream in self._streams.values():
            stream.close()

    def flush(self, last: bool = False) -> None:
        """Write what is queued; the writer thread's own step. ``last`` holds nothing back."""
        self.gather()
        with self._writing:
            with self._lock:
                batch, self._queue, self._queued_bytes = self._queue, deque(), 0
            for layout, data in batch:
                self._held[layout.kind].setdefault(layout, []).append(data)
            for kind in KINDS:
                self._flush_kind(kind, last)

    def _flush_kind(self, kind: str, last: bool) -> None:
        # In a probation two layouts may alternate with every request. A segment has one layout, so the other
        # one waits a few flushes: one new segment a second, not one a request.
        stream, held = self._streams[kind], self._held[kind]
        if not stream.look():
            log.warning("spool: the open segment of %s was deleted by somebody; a new one begins", kind)
        others = [layout for layout in held if layout != stream.layout]
        due = last or stream.layout is None or self._waited[kind] >= HOLD_FLUSHES
        self._waited[kind] = self._waited[kind] + 1 if others and not due else 0
        current = [layout for layout in held if layout == stream.layout]
        for layout in current + (others if due else []):
            since = 0
            for data in self._pieces(layout, held.pop(layout)):
                if since >= PIECE_BYTES and not last:
                    time.sleep(PAUSE_S)
                    since = 0
                self._store(stream, layout, data)
                since += len(data)

    def _pieces(self, layout: Layout, blocks: list[bytes]) -> Iterator[bytes]:
        step = max(1, self._piece // layout.record_bytes) * layout.record_bytes
        for data in blocks:
            for start in range(0, len(data), step):
                yield data[start : start + step]

    def _store(self, stream: Stream, layout: Layout, data: bytes) -> None:
        try:
            self._write(stream, layout, data)
        except OSError as error:
            self.drop(layout.kind, len(data) // layout.record_bytes)
            if layout.kind not in self._refused:
                log.warning("spool: the disk refuses, %s is dropped and counted: %s", layout.kind, error)
            self._refused.add(layout.kind)
        else:
            self._refused.discard(layout.kind)

    def _work(self) -> None:
        while not self._closing:
            self._wake.wait(FLUSH_S)
            try:
                self.flush()
            except Exception:
                # One record that cannot be made must not end all of them.
                if not self._broken:
                    log.exception("spool: records could not be made; later ones are tried all the same")
                self._broken = True
            else:
                self._broken = False


def _nothing() -> None:
    """Gather nothing."""
