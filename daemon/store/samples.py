"""Samples with roles: raw inputs and their labels, each of one role for ever.

Control's sensors feed it from the spool; its jobs export from it. Rules:

* A row's role is its group's: the one that the group has here, else a keyed draw (``daemon.store.roles``). So
  near-duplicates share a role, also after the policy's shares have changed.
* Rows of role ``gate`` lie in a database of their own, in a folder that only this user may enter. Exports for
  search never open it; exports for guards are counted, durably, before the file is written.
* A label may come before or after its sample; one that finds no sample in ``_WAIT_S`` is forgotten.
* Samples and labels are joined by ``row_key``; a second sample or label of the same key changes nothing.
* A killed process loses nothing; a power cut may lose the last seconds of rows outside the vault, which is
  telemetry and not the record (that is the journal).
"""

import hashlib
import sqlite3
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from daemon.store.exports import Array, evenly, stack, write
from daemon.store.roles import Roles
from policies.clauses import Data
from policies.errors import PermanentError
from policies.terms import Artefact, Role

_WAIT_S = 900.0
_SCHEMA = """
CREATE TABLE IF NOT EXISTS rows (
    row_key BLOB NOT NULL UNIQUE,
    group_key BLOB NOT NULL,
    at REAL NOT NULL,
    role TEXT NOT NULL,
    input BLOB NOT NULL,
    label INTEGER
) STRICT;
CREATE INDEX IF NOT EXISTS rows_by_group ON rows (group_key);
CREATE INDEX IF NOT EXISTS rows_by_time ON rows (at);
CREATE INDEX IF NOT EXISTS rows_labelled ON rows (role, at, group_key, label) WHERE label IS NOT NULL;
CREATE TABLE IF NOT EXISTS shapes (one INTEGER PRIMARY KEY CHECK (one = 1), dtype TEXT, shape TEXT) STRICT;
"""
_PLAIN = """
CREATE TABLE IF NOT EXISTS waiting (
    row_key BLOB PRIMARY KEY, label INTEGER NOT NULL, at REAL NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS waiting_by_time ON waiting (at);
"""
_VAULT = """
CREATE TABLE IF NOT EXISTS gate_queries (at_since REAL NOT NULL, rows INTEGER NOT NULL, path TEXT) STRICT;
"""

Block = npt.NDArray[np.void]


@dataclass(frozen=True)
class Counts:
    """Labelled rows since a moment, by role; ``gate`` counts distinct groups."""

    train: int
    search: int
    gate: int
    reference: int


class Samples:
    """The sample store of one task; any thread may use it.

    Args:
        folder: Where it lies; made when it is not there.
        key: The secret that roles are drawn with; at least 16 bytes.
        shares: The policy's shares of the roles.
    """

    def __init__(self, folder: Path, key: bytes, shares: Data) -> None:
        self._roles = Roles(key, shares)
        self._lock = threading.Lock()
        vault = self.vault = folder / "vault"
        vault.mkdir(parents=True, exist_ok=True, mode=0o700)
        vault.chmod(0o700)
        self._plain = _open(folder / "samples.db", _SCHEMA + _PLAIN, synchronous="NORMAL")
        # A query of the gate that is forgotten would be one that nobody answers for.
        self._gate = _open(vault / "gate.db", _SCHEMA + _VAULT, synchronous="FULL")

    def close(self) -> None:
        """Close the databases."""
        with self._lock:
            self._plain.close()
            self._gate.close()

    def role(self, group: bytes) -> Role:
        """Return the role of a group: the one it has here, else the one it would draw."""
        with self._lock:
            return self._role(group)

    # -- ingest -----------------------------------------------------------------------------------------

    def ingest(self, block: Block) -> int:
        """Take records of ``policies.telemetry.sample_fields`` in; return how many were new.

        A record without a finite time is torn, and left out.

        Raises:
            PermanentError: Inputs of another type or shape than those in the store.
        """
        block = block[np.isfinite(block["at"])]
        inputs = block["input"]
        names = zip(block["row_key"], block["group_key"], block["at"], inputs, strict=True)
        rows = ((bytes(key), bytes(group), float(at), one.tobytes()) for key, group, at, one in names)
        with self._lock:
            return len(self._insert(rows, inputs.dtype, inputs.shape[1:]))

    def ingest_source(self, x: Array, y: npt.NDArray[np.int64], at: float) -> int:
        """Take a labelled founding file in; return how many rows were new.

        Every row is a group of its own, named by its bytes: the same row of two files, or of a file that was
        read again, is one row with one role.

        Raises:
            PermanentError: Inputs of another type or shape than those in the store.
        """
        rows = []
        for one in x:
            raw = one.tobytes()
            key = hashlib.blake2b(raw, digest_size=16, person=b"founding row").digest()
            group = hashlib.blake2b(raw, digest_size=8, person=b"founding group").digest()
            rows.append((key, group, at, raw))
        labels = [(int(label), row[0]) for label, row in zip(y, rows, strict=True)]
        with self._lock:
            new = self._insert(rows, x.dtype, x.shape[1:])
            self._write_labels(labels)
        return len(new)

    def label(self, row_keys: Array, labels: npt.NDArray[np.int64], at: float) -> int:
        """Label rows; return how many samples got their label now. The others' labels wait for them.

        Args:
            row_keys: ``policies.telemetry.row_key`` of every row, shape ``(n,)`` V16.
            labels: Class of every row, shape ``(n,)``.
            at: When the labels came.
        """
        pairs = [(int(label), bytes(key)) for key, label in zip(row_keys, labels, strict=True)]
        with self._lock:
            found = self._write_labels(pairs)
            early = [(key, label, at) for label, key in pairs if not self._known(key)]
            with self._plain:
                self._plain.executemany("INSERT OR IGNORE INTO waiting VALUES (?, ?, ?)", early)
                self._plain.execute("DELETE FROM waiting WHERE at < ?", (at - _WAIT_S,))
        return found

    def _role(self, group: bytes) -> Role:
        query = "SELECT role FROM rows WHERE group_key = ? LIMIT 1"
        for connection in (self._gate, self._plain):
            kept = connection.execute(query, (group,)).fetchone()
            if kept is not None:
                return Role(kept[0])
        return self._roles.draw(group)

    def _known(self, key: bytes) -> bool:
        query = "SELECT 1 FROM rows WHERE row_key = ?"
        return any(c.execute(query, (key,)).fetchone() is not None for c in (self._plain, self._gate))

    def _insert(
        self,
        rows: Iterable[tuple[bytes, bytes, float, bytes]],
        dtype: np.dtype[np.generic],
        shape: tuple[int, ...],
    ) -> set[bytes]:
        roles: dict[bytes, Role] = {}
        new: dict[bytes, tuple[bytes, bytes, float, str, bytes]] = {}
        for key, group, at, raw in rows:
            # Known in either database: a group that a client renames must not move a row into the gate.
            if key not in new and not self._known(key):
                role = roles.setdefault(group, roles.get(group) or self._role(group))
                new[key] = (key, group, at, role.value, raw)
        for connection, gate in ((self._plain, False), (self._gate, True)):
            mine = [row for row in new.values() if (row[3] == Role.GATE.value) is gate]
            with connection:
                _shape(connection, dtype, shape)
                connection.executemany("INSERT INTO rows VALUES (?, ?, ?, ?, ?, NULL)", mine)
        self._meet(new)
        return set(new)

    def _meet(self, keys: Iterable[bytes]) -> None:
        """Give new rows the labels that waited for them."""
        query = "SELECT label, row_key FROM waiting WHERE row_key = ?"
        met = [pair for key in keys if (pair := self._plain.execute(query, (key,)).fetchone()) is not None]
        self._write_labels(met)
        with self._plain:
            self._plain.executemany("DELETE FROM waiting WHERE row_key = ?", [(key,) for _, key in met])

    def _write_labels(self, pairs: list[tuple[int, bytes]]) -> int:
        found = 0
        for connection in (self._plain, self._gate):
            with connection:
                before = connection.total_changes
                connection.executemany("UPDATE rows SET label = ? WHERE row_key = ? AND label IS NULL", pairs)
                found += connection.total_changes - before
        return found

    # -- answers ----------------------------------------------------------------------------------------

    def counts(self, since: float) -> Counts:
        """Return the labelled rows since a moment."""
        query = "SELECT COUNT(*) FROM rows WHERE label IS NOT NULL AND role = ? AND at >= ?"
        gate = query.replace("COUNT(*)", "COUNT(DISTINCT group_key)")
        with self._lock:
            train, search, reference = (
                self._plain.execute(query, (role.value, since)).fetchone()[0]
                for role in (Role.TRAIN, Role.SEARCH, Role.REFERENCE)
            )
            groups = self._gate.execute(gate, (Role.GATE.value, since)).fetchone()[0]
        return Counts(train=train, search=search, gate=groups, reference=reference)

    def export_search(
        self, path: Path, *, since: float, max_new: int, max_replay: int, seed: int
    ) -> Artefact:
        """Write what a search may see.

        Arrays ``x``, ``y``, ``role`` (0 train, 1 search), ``regime`` (1 since the change, 0 before it).
        Replay rows are drawn evenly over the classes, new rows are the latest.
        """
        query = (
            "SELECT rowid, label FROM rows WHERE role IN ('train', 'search') AND label IS NOT NULL "
            "AND at {} ? ORDER BY at DESC, row_key LIMIT ?"
        )
        rng = np.random.default_rng(seed)
        with self._lock:
            new = self._plain.execute(query.format(">="), (since, max_new)).fetchall()
            old = self._plain.execute(query.format("<"), (since, -1)).fetchall()
            replay = evenly(np.array([label for _, label in old], np.int64), max_replay, rng)
            rows = _fetch(self._plain, [row[0] for row in new] + [old[place][0] for place in replay])
            kind, shape = _layout(self._plain)
        return write(
            path,
            x=stack([row[0] for row in rows], kind, shape),
            y=np.array([row[1] for row in rows], np.int64),
            role=np.array([row[2] == Role.SEARCH.value for row in rows], np.uint8),
            regime=np.repeat(np.array([1, 0], np.uint8), [len(new), len(replay)]),
        )

    def export_gate(self, path: Path, *, since: float, max_rows: int, seed: int) -> Artefact:
        """Write what guards may see, one latest row a group and regime, and count the query.

        Arrays ``x``, ``y``, ``group`` (V8), ``regime`` (1 since the change); at most ``max_rows`` a regime.
        The file is readable by this user alone.
        """
        query = (
            "SELECT rowid, MAX(at) FROM rows WHERE label IS NOT NULL AND at {} ? "
            "GROUP BY group_key ORDER BY group_key"
        )
        rng = np.random.default_rng(seed)
        with self._lock:
            regimes = [self._gate.execute(query.format(sign), (since,)).fetchall() for sign in ("<", ">=")]
            picked = [
                [rows[place][0] for place in np.sort(rng.permutation(len(rows))[:max_rows])]
                for rows in regimes
            ]
            rows = _fetch(self._gate, picked[0] + picked[1])
            kind, shape = _layout(self._gate)
            with self._gate:
                self._gate.execute("INSERT INTO gate_queries VALUES (?, ?, ?)", (since, len(rows), path.name))
        return write(
            path,
            mode=0o600,
            x=stack([row[0] for row in rows], kind, shape),
            y=np.array([row[1] for row in rows], np.int64),
            group=np.frombuffer(b"".join(row[3] for row in rows), "V8"),
            regime=np.repeat(np.array([0, 1], np.uint8), [len(picked[0]), len(picked[1])]),
        )

    def export_traffic(self, path: Path, *, max_rows: int) -> Artefact:
        """Write recorded inputs of role reference, the latest, in order of arrival: ``x``."""
        query = "SELECT input FROM rows WHERE role = 'reference' ORDER BY at DESC, row_key LIMIT ?"
        with self._lock:
            rows = self._plain.execute(query, (max_rows,)).fetchall()
            kind, shape = _layout(self._plain)
        return write(path, x=stack([row[0] for row in reversed(rows)], kind, shape))

    def gate_queries(self) -> int:
        """Return how often the gate was exported."""
        with self._lock:
            return int(self._gate.execute("SELECT COUNT(*) FROM gate_queries").fetchone()[0])

    def trim(self, max_rows: int) -> int:
        """Delete the oldest rows beyond ``max_rows`` a database; return how many.

        Founding rows (time 0) stay, and do not count.
        """
        query = (
            "DELETE FROM rows WHERE rowid IN (SELECT rowid FROM rows WHERE at > 0 "
            "ORDER BY at DESC LIMIT -1 OFFSET ?)"
        )
        gone = 0
        with self._lock:
            for connection in (self._plain, self._gate):
                with connection:
                    gone += connection.execute(query, (max_rows,)).rowcount
        return gone


def _open(path: Path, schema: str, *, synchronous: str) -> sqlite3.Connection:
    connection = sqlite3.connect(path, check_same_thread=False)
    for pragma in (
        "busy_timeout=5000",
        "journal_mode=WAL",
        f"synchronous={synchronous}",
        "trusted_schema=OFF",
    ):
        connection.execute(f"PRAGMA {pragma}")
    connection.executescript(schema)
    return connection


def _shape(connection: sqlite3.Connection, dtype: np.dtype[np.generic], shape: tuple[int, ...]) -> None:
    text = ",".join(map(str, shape))
    connection.execute("INSERT OR IGNORE INTO shapes VALUES (1, ?, ?)", (dtype.str, text))
    kept = connection.execute("SELECT dtype, shape FROM shapes").fetchone()
    if kept != (dtype.str, text):
        raise PermanentError(
            f"expected samples of {kept[0]} ({kept[1]}), got {dtype.str} ({text}); "
            "a task whose input changes needs a state folder of its own"
        )


def _layout(connection: sqlite3.Connection) -> tuple[np.dtype[np.generic], tuple[int, ...]]:
    kept = connection.execute("SELECT dtype, shape FROM shapes").fetchone()
    if kept is None:
        return np.dtype(np.uint8), (0,)
    return np.dtype(kept[0]), tuple(int(part) for part in kept[1].split(",") if part)


def _fetch(connection: sqlite3.Connection, numbers: list[int]) -> list[tuple[bytes, int, str, bytes]]:
    """Return input, label, role and group of rows, in the order asked for."""
    query = "SELECT input, label, role, group_key FROM rows WHERE rowid = ?"
    return [connection.execute(query, (number,)).fetchone() for number in numbers]
