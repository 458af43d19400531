"""The journal: what happened, in order, and cannot be quietly changed.

* An entry is durable before ``append`` returns (WAL, ``synchronous=FULL``: ``NORMAL`` loses acknowledged
  entries in a power cut and verifies afterwards).
* Its digest is over seq, time, kind, body and its forerunner's digest, as canonical JSON. The number and
  digest of the last one also lie in a file beside the database, the head: a chain alone does not show that
  its tail was cut off.
* A head that lags behind is what a crash between commit and head leaves; a head that is ahead is tampering.

One writer a journal; any number of readers.
"""

import json
import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from policies.errors import TamperError
from policies.wire import canonical, digest, parse_canonical

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
    """Whether the chain holds; else the first entry where it does not."""

    entries: int
    valid: bool
    seq: int | None
    reason: str


class Journal:
    """A journal open for writing.

    Args:
        path: The database; made when it is not there. The head is ``<path>.head``.

    Raises:
        TamperError: The last entry is not the one that the head names.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=5000", "trusted_schema=OFF"):
            self._connection.execute(f"PRAGMA {pragma}")
        self._connection.execute(_SCHEMA)
        self._seq, self._digest = self._last()
        head = _read_head(path)
        if head is not None and head[0] > self._seq:
            raise TamperError(
                f"expected entry {head[0]} in {path} (its head file says so), the last is {self._seq}; "
                "run instar audit verify, and restore a verified backup"
            )

    def append(self, kind: str, body: dict[str, Any], at: float) -> Entry:
        """Append an entry; it is durable when this returns.

        Raises:
            TamperError: Somebody else wrote to the journal.
        """
        with self._lock:
            text = canonical(body)
            seq = self._seq + 1
            plain = {"seq": seq, "at": at, "kind": kind, "body": json.loads(text), "prev": self._digest}
            entry = Entry(**plain, digest=digest(plain))
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                if self._last() != (self._seq, self._digest):
                    raise TamperError(
                        f"expected {self.path} to end with entry {self._seq}, {self._digest}; it does not"
                    )
                self._connection.execute(
                    f"INSERT INTO entries ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?)",
                    (seq, at, kind, text.decode(), entry.prev, entry.digest),
                )
                self._connection.execute("COMMIT")
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._seq, self._digest = seq, entry.digest
            _write_head(self.path, seq, entry.digest)
            return entry

    def entries(
        self, after: int = 0, limit: int | None = None, kinds: Sequence[str] | None = None
    ) -> list[Entry]:
        """Return entries after a number, in order."""
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

    def _last(self) -> tuple[int, str]:
        row = self._connection.execute("SELECT seq, digest FROM entries ORDER BY seq DESC LIMIT 1").fetchone()
        return (0, GENESIS) if row is None else (row[0], row[1])


def verify(path: Path) -> Verification:
    """Check a journal that nobody needs to have open, without changing it.

    Raises:
        TamperError: There is no journal there.
    """
    if not path.is_file():
        raise TamperError(f"expected a journal at {path}, there is none; give its state folder by --state")
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        return _check(connection, path)
    finally:
        connection.close()


def _check(connection: sqlite3.Connection, path: Path) -> Verification:
    count, prev, digests = 0, GENESIS, {0: GENESIS}
    try:
        for place, row in enumerate(_rows(connection), start=1):
            fault = _fault(row, place, prev)
            if fault is not None:
                return Verification(count, False, place, fault)
            count, prev = place, row[5]
            digests[place] = prev
        head = _read_head(path)
    except (sqlite3.DatabaseError, TamperError) as error:
        return Verification(count, False, count + 1, f"unreadable: {error}")
    if head is None:
        if count:
            return Verification(count, False, count, f"the head file {path.name}.head is missing")
        return Verification(0, True, None, "empty")
    seq, own = head
    if seq > count:
        return Verification(count, False, count + 1, f"missing: the head says that there are {seq} entries")
    if digests[seq] != own:
        return Verification(count, False, seq, "not the entry that the head names")
    return Verification(count, True, None, f"{count} entries, head at {seq}")


def _rows(connection: sqlite3.Connection) -> Iterator[Any]:
    return iter(connection.execute(f"SELECT {_COLUMNS} FROM entries ORDER BY seq"))


def _fault(row: Any, place: int, prev: str) -> str | None:
    """Return what is wrong with the row that should be entry ``place``, or None."""
    seq, at, kind, body, before, own = row
    if seq != place:
        return f"missing: the next entry is {seq}"
    try:
        plain = {
            "seq": seq,
            "at": at,
            "kind": kind,
            "body": parse_canonical(body.encode(), f"entry {seq}"),
            "prev": before,
        }
    except TamperError as error:
        return f"changed: {error}"
    if before != prev:
        return "its forerunner is not the one it names (reordered or inserted)"
    if digest(plain) != own:
        return "changed: it does not match its digest"
    return None


def _head_path(path: Path) -> Path:
    return path.with_name(path.name + ".head")


def _read_head(path: Path) -> tuple[int, str] | None:
    try:
        raw = _head_path(path).read_bytes()
    except FileNotFoundError:
        return None
    head = parse_canonical(raw, str(_head_path(path)))
    if not (
        isinstance(head, dict) and isinstance(head.get("seq"), int) and isinstance(head.get("digest"), str)
    ):
        raise TamperError(f"expected seq and digest in {_head_path(path)}, got {head!r}")
    return head["seq"], head["digest"]


def _write_head(path: Path, seq: int, own: str) -> None:
    target = _head_path(path)
    temporary = target.with_name(target.name + ".tmp")
    with temporary.open("wb") as file:
        file.write(canonical({"seq": seq, "digest": own}))
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(target)
