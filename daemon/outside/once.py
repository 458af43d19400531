"""Once: which batches were taken, so that one that is sent again is taken once, also over a kill.

* A batch is begun (where the spool stood, how many bytes come), written, synced, and then done.
* After a kill, what the spool holds beyond the noted place says how it ended: all bytes are there, and the
  batch is done; some are, and they are cut off; none are. Only then is anything appended again.
* Under one key there is one content, by digest. Keys are forgotten after the latest ``KEPT``.

One writer: the intake, under its lock. SQLite, ``synchronous=FULL``.
"""

import os
import sqlite3
from dataclasses import dataclass
from pathlib import Path

from daemon.serving.spool import segment_number

KEPT = 20_000
_HEADER_BYTES = 1 << 16
_SCHEMA = """
CREATE TABLE IF NOT EXISTS batches (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    key TEXT NOT NULL UNIQUE,
    digest TEXT NOT NULL,
    rows INTEGER NOT NULL,
    done INTEGER NOT NULL,
    segment TEXT NOT NULL,
    offset INTEGER NOT NULL,
    bytes INTEGER NOT NULL
) STRICT;
"""


@dataclass(frozen=True)
class Place:
    """Where the telemetry of a spool ends: its latest segment (empty when there is none) and its size."""

    segment: str
    size: int


class Once:
    """The batches of one spool."""

    def __init__(self, path: Path, spool: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._spool = spool
        self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")
        self._db.executescript(_SCHEMA)
        self._recover()

    def taken(self, key: str) -> tuple[str, int] | None:
        """Return a batch's digest and rows, when it was taken."""
        found = self._db.execute("SELECT digest, rows FROM batches WHERE key = ? AND done = 1", (key,))
        row: tuple[str, int] | None = found.fetchone()
        return row

    def begin(self, key: str, digest: str, rows: int, bytes_: int) -> None:
        """Note what is about to be appended."""
        place = self.place()
        values = (key, digest, rows, place.segment, place.size, bytes_)
        self._db.execute("DELETE FROM batches WHERE key = ? AND done = 0", (key,))
        self._db.execute(
            "INSERT INTO batches (key, digest, rows, done, segment, offset, bytes) "
            "VALUES (?, ?, ?, 0, ?, ?, ?)",
            values,
        )

    def done(self, key: str) -> None:
        """Note that it lies in the spool, synced."""
        self._db.execute("UPDATE batches SET done = 1 WHERE key = ?", (key,))
        self._db.execute("DELETE FROM batches WHERE number <= (SELECT MAX(number) FROM batches) - ?", (KEPT,))

    def forget(self, key: str) -> None:
        """Note that nothing of it was kept."""
        self._db.execute("DELETE FROM batches WHERE key = ? AND done = 0", (key,))

    def place(self) -> Place:
        """Return where the telemetry ends now."""
        names = (path.name for path in self._spool.glob("telemetry-*.seg"))
        found = [(number, name) for name in names if (number := segment_number(name, "telemetry"))]
        if not found:
            return Place("", 0)
        _, name = max(found)
        return Place(name, (self._spool / name).stat().st_size)

    def close(self) -> None:
        """Close the database."""
        self._db.close()

    def _recover(self) -> None:
        """End what a kill left open; there is at most one, for there is one writer."""
        query = "SELECT key, segment, offset, bytes FROM batches WHERE done = 0"
        for key, segment, offset, expected in self._db.execute(query).fetchall():
            place = self.place()
            start = offset if place.segment == segment else self._header(place.segment)
            if place.size - start == expected:
                sync(self._spool / place.segment)
                self.done(key)
                continue
            if place.size > start:
                # Whole records of half a batch: the batch comes again, so these must go.
                os.truncate(self._spool / place.segment, start)
            self.forget(key)

    def _header(self, segment: str) -> int:
        if not segment:
            return 0
        with (self._spool / segment).open("rb") as file:
            return len(file.readline(_HEADER_BYTES))


def sync(path: Path, flags: int = os.O_RDONLY) -> None:
    """Have the disk hold a file, or with ``os.O_DIRECTORY`` a folder's names.

    Raises:
        OSError: The disk refuses.
    """
    handle = os.open(path, flags)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
