"""The journal: what happened, in order, and cannot be quietly changed.

Control appends to it; the console reads and verifies it, also offline.

* An entry is durable before ``append`` returns (WAL, ``synchronous=FULL``: ``NORMAL`` loses acknowledged
  entries in a power cut and verifies afterwards).
* Its digest is over seq, time, kind, body and its forerunner's digest, as canonical JSON. The number and
  digest of the last one also lie in a file beside the database, the head: a chain alone does not show that
  its tail was cut off.
* A head that lags behind is what a crash between commit and head leaves; a head that is ahead, that names
  another entry, or that is missing where there are entries, is tampering.
* A busy or full disk is temporary. After any other failure to write the journal refuses more until it is
  opened anew: after a failed fsync nobody knows what the disk holds.

One writer a journal; any number of readers. The digests are not keyed: whoever may write both files can forge
a whole chain, so keep a copy of the head elsewhere.
"""

import json
import logging
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from daemon.ops.files import persist
from policies.errors import PermanentError, TamperError, TemporaryError
from policies.wire import canonical, digest, is_digest, parse_canonical

log = logging.getLogger(__name__)

GENESIS = "sha256:" + "0" * 64

_SCHEMA = """
CREATE TABLE IF NOT EXISTS entries (
    seq INTEGER PRIMARY KEY,
    at REAL NOT NULL,
    kind TEXT NOT NULL,
    body TEXT NOT NULL,
    prev TEXT NOT NULL,
    digest TEXT NOT NULL
) STRICT
"""
_COLUMNS = "seq, at, kind, body, prev, digest"
_PASSING = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL}


@dataclass(frozen=True)
class Entry:
    """One line of the journal."""

    seq: int
    at: float
    kind: str
    body: dict[str, Any]
    prev: str
    digest: str


@dataclass(frozen=True)
class Verification:
    """Whether the chain holds; else ``seq`` is the first entry where it does not."""

    entries: int
    valid: bool
    seq: int | None
    reason: str


class Journal:
    """A journal open for writing.

    Args:
        path: The database; made when it is not there. The head is ``<path>.head``.

    Raises:
        TamperError: It is no journal, or its end is not what the head says.
        PermanentError: The disk cannot hold a write-ahead log.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._broken: str | None = None
        self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        try:
            self._open()
            self._seq, self._digest = self._last()
            self._check_head()
        except sqlite3.DatabaseError as error:
            self._connection.close()
            raise TamperError(
                f"expected a journal in {path}, got {error}; restore a verified backup"
            ) from error
        except BaseException:
            self._connection.close()
            raise

    def append(self, kind: str, body: dict[str, Any], at: float) -> Entry:
        """Append an entry; it is durable when this returns.

        Args:
            kind: What happened.
            body: Plain JSON data; integers within 2**53, no NaN.
            at: Seconds since the epoch.

        Raises:
            ValueError: The body is not plain JSON data.
            TamperError: Somebody else wrote to the journal.
            TemporaryError: The database is locked or the disk is full; nothing was written.
            PermanentError: A write failed, now or before; open the journal anew.
        """
        with self._lock:
            if self._broken is not None:
                raise PermanentError(f"expected to write {self.path}, {self._broken}; restart instard")
            text = canonical(body)
            plain = {
                "seq": self._seq + 1,
                "at": at,
                "kind": kind,
                "body": json.loads(text),
                "prev": self._digest,
            }
            entry = Entry(**plain, digest=digest(plain))
            try:
                self._insert(entry, text.decode())
            except sqlite3.Error as error:
                raise self._failure(error) from error
            self._seq, self._digest = entry.seq, entry.digest
            self._move_head()
            return entry

    def entries(
        self, after: int = 0, limit: int | None = None, kinds: Sequence[str] | None = None
    ) -> list[Entry]:
        """Return entries after a number, in order, at most ``limit``, of these kinds."""
        query = f"SELECT {_COLUMNS} FROM entries WHERE seq > ?"
        values: list[Any] = [after]
        if kinds is not None:
            query += f" AND kind IN ({', '.join('?' * len(kinds))})"
            values += kinds
        query += " ORDER BY seq LIMIT ?"
        values.append(-1 if limit is None else limit)
        with self._lock:
            rows = self._connection.execute(query, values).fetchall()
        return [Entry(seq, at, kind, json.loads(body), prev, own) for seq, at, kind, body, prev, own in rows]

    def verify(self) -> Verification:
        """Check the whole chain and its head."""
        with self._lock:
            return _check(self._connection, self.path)

    def close(self) -> None:
        """Close the database."""
        with self._lock:
            self._connection.close()

    def _open(self) -> None:
        self._connection.execute("PRAGMA busy_timeout=5000")
        mode = self._connection.execute("PRAGMA journal_mode=WAL").fetchone()[0]
        if mode != "wal":
            raise PermanentError(
                f"expected a write-ahead log for {self.path}, the disk allows {mode} only; "
                "put the state folder on a local disk"
            )
        self._connection.execute("PRAGMA synchronous=FULL")
        self._connection.execute("PRAGMA trusted_schema=OFF")
        self._connection.execute(_SCHEMA)

    def _check_head(self) -> None:
        head = _read_head(self.path)
        remedy = "run instar audit verify, and restore a verified backup"
        if head is None:
            if self._seq:
                raise TamperError(
                    f"expected the head of {self._seq} entries beside {self.path}, none; {remedy}"
                )
            # From here on a journal has a head, so that one without is not an honest crash.
            _write_head(self.path, 0, GENESIS)
            return
        seq, own = head
        if seq > self._seq:
            raise TamperError(
                f"expected entry {seq} in {self.path} (its head file says so), "
                f"the last is {self._seq}; {remedy}"
            )
        row = self._connection.execute("SELECT digest FROM entries WHERE seq = ?", (seq,)).fetchone()
        kept = GENESIS if seq == 0 else (None if row is None else row[0])
        if kept != own:
            raise TamperError(f"expected entry {seq} of {self.path} to be {own}, it is {kept}; {remedy}")

    def _insert(self, entry: Entry, text: str) -> None:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            if self._last() != (entry.seq - 1, entry.prev):
                raise TamperError(
                    f"expected {self.path} to end with entry {entry.seq - 1}, {entry.prev}; it does not: "
                    "somebody else writes to it; stop them and run instar audit verify"
                )
            self._connection.execute(
                f"INSERT INTO entries ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?)",
                (entry.seq, entry.at, entry.kind, text, entry.prev, entry.digest),
            )
            self._connection.execute("COMMIT")
        finally:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")

    def _failure(self, error: sqlite3.Error) -> TemporaryError | PermanentError:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code in _PASSING:
            return TemporaryError(f"expected to write {self.path}, got {error}; free it, then try again", 1.0)
        self._broken = f"an earlier write failed: {error}"
        return PermanentError(f"expected to write {self.path}, got {error}; check the disk, restart instard")

    def _move_head(self) -> None:
        try:
            _write_head(self.path, self._seq, self._digest)
        except OSError as error:
            # The entry is durable, so the caller must not write it again; a lagging head is a legal state.
            log.error("seq=%d is durable, its head file is not: %s", self._seq, error)

    def _last(self) -> tuple[int, str]:
        row = self._connection.execute("SELECT seq, digest FROM entries ORDER BY seq DESC LIMIT 1").fetchone()
        return (0, GENESIS) if row is None else (row[0], row[1])


def verify(path: Path) -> Verification:
    """Check a journal on disk without changing anything; its writer may be at work, or gone.

    Raises:
        TamperError: There is no journal there.
    """
    if not path.is_file():
        raise TamperError(f"expected a journal at {path}, there is none; give its state folder by --state")
    # A journal that nobody has open has no log beside it, and can be read where nothing may be written.
    live = path.with_name(path.name + "-wal").exists()
    address = f"{path.resolve().as_uri()}?mode=ro{'' if live else '&immutable=1'}"
    connection = sqlite3.connect(address, uri=True)
    try:
        return _check(connection, path)
    finally:
        connection.close()


def _check(connection: sqlite3.Connection, path: Path) -> Verification:
    count, prev, named = 0, GENESIS, GENESIS
    try:
        # The head first: a writer at work moves it after its commit, so it never is ahead of what follows.
        head = _read_head(path)
        for place, row in enumerate(_rows(connection), start=1):
            fault = _fault(row, place, prev)
            if fault is not None:
                return Verification(count, False, place, fault)
            count, prev = place, row[5]
            if head is not None and place == head[0]:
                named = prev
    except (sqlite3.DatabaseError, TamperError) as error:
        return Verification(count, False, count + 1, f"unreadable: {error}")
    if head is None:
        if count:
            return Verification(count, False, count, f"the head file {path.name}.head is missing")
        return Verification(0, True, None, "empty")
    if head[0] > count:
        return Verification(
            count, False, count + 1, f"missing: the head says that there are {head[0]} entries"
        )
    if named != head[1]:
        return Verification(count, False, head[0], "not the entry that the head names")
    return Verification(count, True, None, f"{count} entries, head at {head[0]}")


def _rows(connection: sqlite3.Connection) -> Iterator[Any]:
    return iter(connection.execute(f"SELECT {_COLUMNS} FROM entries ORDER BY seq"))


def _fault(row: Any, place: int, prev: str) -> str | None:
    """Return what is wrong with the row that should be entry ``place``, or None."""
    seq, at, kind, body, before, own = row
    if seq != place:
        return f"missing: the next entry is {seq}"
    if not (isinstance(at, float) and all(isinstance(text, str) for text in (kind, body, before, own))):
        return "changed: a column is not of its type"
    if before != prev:
        return "its forerunner is not the one it names (reordered or inserted)"
    try:
        data = parse_canonical(body.encode(), f"entry {seq}")
        mine = digest({"seq": seq, "at": at, "kind": kind, "body": data, "prev": before})
    except (TamperError, ValueError, RecursionError) as error:
        return f"changed: {error}"
    return None if mine == own else "changed: it does not match its digest"


def _head_path(path: Path) -> Path:
    return path.with_name(path.name + ".head")


def _read_head(path: Path) -> tuple[int, str] | None:
    try:
        raw = _head_path(path).read_bytes()
    except FileNotFoundError:
        return None
    head = parse_canonical(raw, str(_head_path(path)))
    seq, own = (head.get("seq"), head.get("digest")) if isinstance(head, dict) else (None, None)
    if type(seq) is not int or seq < 0 or not isinstance(own, str) or not is_digest(own):
        raise TamperError(
            f"expected seq and digest in {_head_path(path)}, got {head!r}; restore a verified backup"
        )
    return seq, own


def _write_head(path: Path, seq: int, own: str) -> None:
    persist(_head_path(path), canonical({"seq": seq, "digest": own}))
