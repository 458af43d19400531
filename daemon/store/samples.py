"""Samples with roles: raw inputs and their labels, each of one role for ever.

* A role is drawn at ingest by a keyed hash of the sample's group, so that near-duplicates share it and nobody
  without the key can choose it.
* Rows of role ``gate`` lie in a database of their own, in a folder that only this user may enter. Exports for
  search never open it; exports for guards are counted.
* A label may come before or after its sample; one that finds no sample in ``_WAIT_S`` is forgotten.
* Samples and labels are joined by ``row_key``; a second sample or label of the same key changes nothing.
"""

import hashlib
import sqlite3
import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from policies.clauses import Data
from policies.terms import Artefact, Role
from policies.wire import digest_bytes

_WAIT_S = 900.0
_SCHEMA = """
CREATE TABLE IF NOT EXISTS rows (
    row_key BLOB PRIMARY KEY,
    group_key BLOB NOT NULL,
    at REAL NOT NULL,
    role TEXT NOT NULL,
    input BLOB NOT NULL,
    label INTEGER
) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS rows_by_time ON rows (role, at);
CREATE TABLE IF NOT EXISTS shapes (one INTEGER PRIMARY KEY CHECK (one = 1), dtype TEXT, shape TEXT) STRICT;
"""
_PLAIN = """
CREATE TABLE IF NOT EXISTS waiting (
    row_key BLOB PRIMARY KEY, label INTEGER NOT NULL, at REAL NOT NULL
) STRICT;
"""
_VAULT = """
CREATE TABLE IF NOT EXISTS gate_queries (at_since REAL NOT NULL, rows INTEGER NOT NULL, path TEXT) STRICT;
"""

Array = npt.NDArray[np.generic]
Block = npt.NDArray[np.void]
_Row = tuple[bytes, bytes, float, str, bytes]


@dataclass(frozen=True)
class Counts:
    """Labelled rows since a moment, by role; ``gate`` counts distinct groups."""

    train: int
    search: int
    gate: int
    reference: int


class Samples:
    """The sample store of one task.

    Args:
        folder: Where it lies; made when it is not there.
        key: The secret that roles are drawn with; at least 16 bytes.
        shares: The policy's shares of the roles.
    """

    def __init__(self, folder: Path, key: bytes, shares: Data) -> None:
        if len(key) < 16:
            raise ValueError(f"expected a key of at least 16 bytes, got {len(key)}")
        self._key = key
        self._bounds = np.cumsum([shares.train_share, shares.search_share, shares.gate_share])
        self._lock = threading.Lock()
        vault = folder / "vault"
        vault.mkdir(parents=True, exist_ok=True, mode=0o700)
        vault.chmod(0o700)
        self._plain = _open(folder / "samples.db", _SCHEMA + _PLAIN)
        self._gate = _open(vault / "gate.db", _SCHEMA + _VAULT)

    def role(self, group: bytes) -> Role:
        """Return the role of a group; the same for ever."""
        hashed = hashlib.blake2b(group, key=self._key[:64], digest_size=8).digest()
        place = int.from_bytes(hashed, "big") / 2.0**64
        train, search, gate = self._bounds
        if place < train:
            return Role.TRAIN
        if place < search:
            return Role.SEARCH
        return Role.GATE if place < gate else Role.REFERENCE

    # -- ingest -----------------------------------------------------------------------------------------

    def ingest(self, block: Block) -> int:
        """Take records of ``policies.telemetry.sample_fields`` in; return how many were new."""
        inputs = block["input"]
        rows = [
            (bytes(key), bytes(group), float(at), self.role(bytes(group)).value, one.tobytes())
            for key, group, at, one in zip(
                block["row_key"], block["group_key"], block["at"], inputs, strict=True
            )
        ]
        with self._lock:
            return self._insert(rows, inputs.dtype, inputs.shape[1:])

    def ingest_source(self, x: Array, y: npt.NDArray[np.int64], at: float) -> int:
        """Take a labelled founding file in; every row is a group of its own. Return how many were new."""
        rows = []
        for number, one in enumerate(x):
            name = f"founding/{number}".encode()
            group = hashlib.blake2b(name, digest_size=8).digest()
            key = hashlib.blake2b(name, digest_size=16).digest()
            rows.append((key, group, at, self.role(group).value, one.tobytes()))
        with self._lock:
            new = self._insert(rows, x.dtype, x.shape[1:])
            self._write_labels([(int(label), row[0]) for label, row in zip(y, rows, strict=True)])
        return new

    def label(self, row_keys: Array, labels: npt.NDArray[np.int64], at: float) -> int:
        """Label rows durably; return how many samples were there already."""
        pairs = [(int(label), bytes(key)) for key, label in zip(row_keys, labels, strict=True)]
        with self._lock:
            found = self._write_labels(pairs)
            with self._plain:
                self._plain.executemany(
                    "INSERT OR IGNORE INTO waiting VALUES (?, ?, ?)",
                    [(key, label, at) for label, key in pairs],
                )
                self._plain.execute("DELETE FROM waiting WHERE at < ?", (at - _WAIT_S,))
        return found

    def _insert(self, rows: list[_Row], dtype: np.dtype[np.generic], shape: tuple[int, ...]) -> int:
        new = 0
        for connection, wanted in ((self._plain, False), (self._gate, True)):
            mine = [row for row in rows if (row[3] == Role.GATE.value) is wanted]
            with connection:
                _shape(connection, dtype, shape)
                before = connection.total_changes
                connection.executemany("INSERT OR IGNORE INTO rows VALUES (?, ?, ?, ?, ?, NULL)", mine)
                new += connection.total_changes - before
        early = "SELECT label FROM waiting WHERE row_key = ?"
        waiting = [
            (int(found[0]), row[0])
            for row in rows
            if (found := self._plain.execute(early, (row[0],)).fetchone()) is not None
        ]
        if waiting:
            self._write_labels(waiting)
        return new

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
        query = "SELECT role, COUNT(*) FROM rows WHERE at >= ? AND label IS NOT NULL GROUP BY role"
        gate = "SELECT COUNT(DISTINCT group_key) FROM rows WHERE at >= ? AND label IS NOT NULL"
        with self._lock:
            by_role = dict(self._plain.execute(query, (since,)).fetchall())
            groups = self._gate.execute(gate, (since,)).fetchone()[0]
        return Counts(
            train=by_role.get(Role.TRAIN.value, 0),
            search=by_role.get(Role.SEARCH.value, 0),
            gate=groups,
            reference=by_role.get(Role.REFERENCE.value, 0),
        )

    def export_search(
        self, path: Path, *, since: float, max_new: int, max_replay: int, seed: int
    ) -> Artefact:
        """Write what a search may see.

        Arrays ``x``, ``y``, ``role`` (0 train, 1 search), ``regime`` (1 since the change, 0 before it).
        Replay rows are drawn evenly over the classes, new rows are the latest.
        """
        query = (
            "SELECT input, label, role, at FROM rows WHERE role IN ('train', 'search') AND label IS NOT NULL "
            "AND at {} ? ORDER BY at DESC, row_key"
        )
        rng = np.random.default_rng(seed)
        with self._lock:
            new = self._plain.execute(query.format(">=") + " LIMIT ?", (since, max_new)).fetchall()
            old = self._plain.execute(query.format("<"), (since,)).fetchall()
            kind, shape = _layout(self._plain)
        old = [old[place] for place in _even([row[1] for row in old], max_replay, rng)]
        rows = new + old
        return _write(
            path,
            x=_stack([row[0] for row in rows], kind, shape),
            y=np.array([row[1] for row in rows], np.int64),
            role=np.array([row[2] == Role.SEARCH.value for row in rows], np.uint8),
            regime=np.array([row[3] >= since for row in rows], np.uint8),
        )

    def export_gate(self, path: Path, *, since: float, max_rows: int, seed: int) -> Artefact:
        """Write what guards may see, one latest row a group and regime, and count the query.

        Arrays ``x``, ``y``, ``group`` (V8), ``regime`` (1 since the change); at most ``max_rows`` a regime.
        """
        query = (
            "SELECT input, label, group_key, MAX(at) FROM rows WHERE label IS NOT NULL AND at {} ? "
            "GROUP BY group_key ORDER BY group_key"
        )
        rng = np.random.default_rng(seed)
        with self._lock:
            regimes = [self._gate.execute(query.format(sign), (since,)).fetchall() for sign in ("<", ">=")]
            kind, shape = _layout(self._gate)
            picked = [
                [rows[place] for place in np.sort(rng.permutation(len(rows))[:max_rows])] for rows in regimes
            ]
            with self._gate:
                self._gate.execute(
                    "INSERT INTO gate_queries VALUES (?, ?, ?)", (since, sum(map(len, picked)), path.name)
                )
        rows = picked[0] + picked[1]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        return _write(
            path,
            x=_stack([row[0] for row in rows], kind, shape),
            y=np.array([row[1] for row in rows], np.int64),
            group=np.array([row[2] for row in rows], "V8") if rows else np.empty(0, "V8"),
            regime=np.array([0] * len(picked[0]) + [1] * len(picked[1]), np.uint8),
        )

    def export_traffic(self, path: Path, *, max_rows: int) -> Artefact:
        """Write recorded inputs of role reference, the latest, in order of arrival: ``x``."""
        with self._lock:
            rows = self._plain.execute(
                "SELECT input FROM rows WHERE role = 'reference' ORDER BY at DESC, row_key LIMIT ?",
                (max_rows,),
            ).fetchall()
            kind, shape = _layout(self._plain)
        return _write(path, x=_stack([row[0] for row in reversed(rows)], kind, shape))

    def gate_queries(self) -> int:
        """Return how often the gate was exported."""
        with self._lock:
            return int(self._gate.execute("SELECT COUNT(*) FROM gate_queries").fetchone()[0])

    def trim(self, max_rows: int) -> int:
        """Delete the oldest rows beyond ``max_rows`` a database; return how many. Founding rows stay."""
        gone = 0
        with self._lock:
            for connection in (self._plain, self._gate):
                with connection:
                    before = connection.total_changes
                    connection.execute(
                        "DELETE FROM rows WHERE row_key IN (SELECT row_key FROM rows WHERE at > 0 "
                        "ORDER BY at DESC LIMIT -1 OFFSET ?)",
                        (max_rows,),
                    )
                    gone += connection.total_changes - before
        return gone


def _open(path: Path, schema: str) -> sqlite3.Connection:
    connection = sqlite3.connect(path, check_same_thread=False)
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "busy_timeout=5000", "trusted_schema=OFF"):
        connection.execute(f"PRAGMA {pragma}")
    connection.executescript(schema)
    return connection


def _shape(connection: sqlite3.Connection, dtype: np.dtype[np.generic], shape: tuple[int, ...]) -> None:
    text = ",".join(map(str, shape))
    connection.execute("INSERT OR IGNORE INTO shapes VALUES (1, ?, ?)", (dtype.str, text))
    kept = connection.execute("SELECT dtype, shape FROM shapes").fetchone()
    if kept != (dtype.str, text):
        raise ValueError(f"expected samples of {kept[0]} ({kept[1]}), got {dtype.str} ({text})")


def _layout(connection: sqlite3.Connection) -> tuple[np.dtype[np.generic], tuple[int, ...]]:
    kept = connection.execute("SELECT dtype, shape FROM shapes").fetchone()
    if kept is None:
        return np.dtype(np.uint8), (0,)
    return np.dtype(kept[0]), tuple(int(part) for part in kept[1].split(",") if part)


def _stack(inputs: list[bytes], dtype: np.dtype[np.generic], shape: tuple[int, ...]) -> Array:
    return np.frombuffer(b"".join(inputs), dtype).reshape(len(inputs), *shape)


def _even(labels: list[int], most: int, rng: np.random.Generator) -> list[int]:
    """Return at most ``most`` places, drawn evenly over the classes, in order."""
    if len(labels) <= most:
        return list(range(len(labels)))
    array = np.array(labels)
    classes = np.unique(array)
    quota = -(-most // len(classes))
    taken = [rng.permutation(np.flatnonzero(array == c))[:quota] for c in classes]
    return sorted(np.concatenate(taken)[:most].tolist())


def _write(path: Path, **arrays: Array) -> Artefact:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, allow_pickle=False, **arrays)
    return Artefact(path=str(path), digest=digest_bytes(path.read_bytes()))
