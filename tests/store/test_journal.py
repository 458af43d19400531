"""The journal: every way to change it quietly is found, by number; what it refuses, it says why."""

import os
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from daemon.store import journal as room
from daemon.store.journal import Journal, verify
from policies.errors import PermanentError, TamperError, TemporaryError
from policies.wire import canonical, digest

RETYPE = (
    "ALTER TABLE entries RENAME TO strict_entries",
    "CREATE TABLE entries (seq INTEGER PRIMARY KEY, at, kind, body, prev, digest)",
    "INSERT INTO entries SELECT * FROM strict_entries",
)
SWAP = (
    "UPDATE entries SET seq = 100 WHERE seq = 3",
    "UPDATE entries SET seq = 3 WHERE seq = 4",
    "UPDATE entries SET seq = 4 WHERE seq = 100",
)
INSERT = (
    "UPDATE entries SET seq = seq + 100 WHERE seq >= 4",
    "INSERT INTO entries SELECT 4, at, kind, body, prev, digest FROM entries WHERE seq = 3",
    "UPDATE entries SET seq = seq - 99 WHERE seq > 100",
)


def sql(path: Path, *statements: str) -> None:
    connection = sqlite3.connect(path)
    for statement in statements:
        connection.execute(statement)
    connection.commit()
    connection.close()


def head_of(path: Path) -> Path:
    return path.with_name(path.name + ".head")


def test_an_untouched_journal_verifies_and_stays_untouched(path: Path) -> None:
    before = {file.name: file.read_bytes() for file in path.parent.iterdir()}
    found = verify(path)
    assert (found.valid, found.entries, found.seq) == (True, 7, None)
    assert {file.name: file.read_bytes() for file in path.parent.iterdir()} == before


@pytest.mark.parametrize(
    ("statements", "seq"),
    [
        (("UPDATE entries SET body = replace(body, 'entry', 'ENTRY') WHERE seq = 3",), 3),
        (("UPDATE entries SET at = at + 1 WHERE seq = 5",), 5),
        (("UPDATE entries SET at = 9e999 WHERE seq = 5",), 5),
        (("UPDATE entries SET kind = 'other' WHERE seq = 1",), 1),
        (("UPDATE entries SET prev = digest WHERE seq = 2",), 2),
        (("UPDATE entries SET body = body || ' ' WHERE seq = 2",), 2),
        (("UPDATE entries SET body = 'garbage' WHERE seq = 2",), 2),
        (("UPDATE entries SET body = CAST(x'ff' AS TEXT) WHERE seq = 2",), 2),
        (('UPDATE entries SET body = \'{"a":1,"a":1}\' WHERE seq = 2',), 2),
        ((*RETYPE, "UPDATE entries SET kind = 7 WHERE seq = 6"), 6),
        ((*RETYPE, "UPDATE entries SET body = x'00' WHERE seq = 6"), 6),
        ((*RETYPE, "UPDATE entries SET at = 'noon' WHERE seq = 6"), 6),
        (("DELETE FROM entries WHERE seq = 4",), 4),
        (("DELETE FROM entries WHERE seq = 1",), 1),
        (("DELETE FROM entries WHERE seq = 7",), 7),
        (("DELETE FROM entries WHERE seq >= 5",), 5),
        (("DELETE FROM entries",), 1),
        (("DROP TABLE entries",), 1),
        (SWAP, 3),
        (INSERT, 4),
    ],
)
def test_a_changed_row_is_found_by_its_number(path: Path, statements: tuple[str, ...], seq: int) -> None:
    sql(path, *statements)
    found = verify(path)
    assert not found.valid
    assert found.seq == seq, found


@pytest.mark.parametrize(("edited", "found_at"), [(4, 5), (7, 7)])
def test_a_changed_row_whose_digest_was_made_anew_is_found_by_what_follows_it(
    path: Path, edited: int, found_at: int
) -> None:
    connection = sqlite3.connect(path)
    at, kind, prev = connection.execute(
        "SELECT at, kind, prev FROM entries WHERE seq = ?", (edited,)
    ).fetchone()
    forged = {"seq": edited, "at": at, "kind": kind, "body": {"text": "forged"}, "prev": prev}
    connection.execute(
        "UPDATE entries SET body = ?, digest = ? WHERE seq = ?",
        (canonical(forged["body"]).decode(), digest(forged), edited),
    )
    connection.commit()
    connection.close()
    found = verify(path)
    assert (found.valid, found.seq) == (False, found_at)


def test_retyping_the_table_alone_changes_nothing(path: Path) -> None:
    # The control of the retyped cases above: there the value is found, not the table.
    sql(path, *RETYPE)
    assert verify(path).valid


def test_a_whole_chain_forged_behind_the_head_is_found(path: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    forged = Journal(tmp_path / "other" / "journal.db")
    for number in range(1, 8):
        forged.append("note", {"number": number, "text": "forged"}, float(number))
    forged.close()
    (tmp_path / "other" / "journal.db").replace(path)
    found = verify(path)
    assert (found.valid, found.seq, found.reason) == (False, 7, "not the entry that the head names")
    with pytest.raises(TamperError, match="expected entry 7"):
        Journal(path)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{}",
        b"[]",
        b"7",
        canonical({"seq": -1, "digest": room.GENESIS}),
        canonical({"seq": True, "digest": room.GENESIS}),
        canonical({"seq": 7, "digest": "sha256:short"}),
        canonical({"seq": 0, "digest": "sha256:" + "1" * 64}),
    ],
)
def test_a_garbled_head_does_not_verify_and_stops_the_next_start(path: Path, raw: bytes) -> None:
    head_of(path).write_bytes(raw)
    assert not verify(path).valid
    with pytest.raises(TamperError):
        Journal(path)


def test_a_missing_head_does_not_verify_and_stops_the_next_start(path: Path) -> None:
    head_of(path).unlink()
    found = verify(path)
    assert (found.valid, found.reason) == (False, "the head file journal.db.head is missing")
    with pytest.raises(TamperError, match="expected the head of 7 entries"):
        Journal(path)


def test_a_tail_cut_off_with_its_head_kept_stops_the_next_start(path: Path) -> None:
    sql(path, "DELETE FROM entries WHERE seq = 7")
    with pytest.raises(TamperError, match="expected entry 7"):
        Journal(path)


def test_a_journal_of_no_entries_verifies(tmp_path: Path) -> None:
    Journal(tmp_path / "journal.db").close()
    found = verify(tmp_path / "journal.db")
    assert (found.valid, found.entries) == (True, 0)


def test_a_head_that_lags_behind_is_what_a_crash_leaves(path: Path) -> None:
    older = head_of(path).read_bytes()
    journal = Journal(path)
    journal.append("note", {}, 8.0)
    journal.close()
    head_of(path).write_bytes(older)
    assert verify(path).valid
    reopened = Journal(path)
    assert reopened.append("note", {}, 9.0).seq == 9
    assert reopened.verify().valid
    reopened.close()


def test_a_second_writer_is_noticed(path: Path, journal: Journal) -> None:
    other = Journal(path)
    journal.append("note", {}, 8.0)
    with pytest.raises(TamperError, match=r"expected .* to end with entry 7"):
        other.append("note", {}, 8.0)
    other.close()
    assert journal.append("note", {}, 9.0).seq == 9


def test_what_is_no_journal_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TamperError, match="there is none"):
        verify(tmp_path / "journal.db")
    (tmp_path / "journal.db").write_bytes(b"not a database, but long enough to be one" * 100)
    assert not verify(tmp_path / "journal.db").valid
    with pytest.raises(TamperError, match="expected a journal"):
        Journal(tmp_path / "journal.db")


def test_what_comes_back_is_what_was_written(journal: Journal) -> None:
    body = {"n": 1, "x": 0.1, "text": "ä", "list": [None, True, {"deep": []}]}
    written = journal.append("story", body, 1.5)
    assert written.body == body
    assert journal.entries(after=7) == [written]
    assert [entry.seq for entry in journal.entries(after=2, limit=2)] == [3, 4]
    assert journal.entries(kinds=["story"]) == [written]
    assert journal.entries(kinds=[]) == []


@pytest.mark.parametrize("body", [{"x": float("nan")}, {"x": 2**60}, {"x": object()}])
def test_a_body_that_is_not_plain_json_is_refused_and_leaves_nothing(
    journal: Journal, body: dict[str, object]
) -> None:
    with pytest.raises(ValueError):
        journal.append("note", body, 1.0)
    assert journal.append("note", {}, 1.0).seq == 8
    assert journal.verify().valid


def test_threads_write_one_chain(journal: Journal) -> None:
    def write() -> None:
        for _ in range(10):
            journal.append("note", {}, 1.0)

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = journal.verify()
    assert (found.valid, found.entries) == (True, 47)


def test_an_entry_written_while_verifying_is_not_taken_for_one_that_is_missing(
    path: Path, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = room._rows

    def rows_then_write(connection: sqlite3.Connection) -> Iterator[object]:
        seen = list(rows(connection))
        journal.append("note", {}, 8.0)
        return iter(seen)

    monkeypatch.setattr(room, "_rows", rows_then_write)
    assert verify(path).valid
    # The head did move meanwhile: read after the rows, it would be ahead of them.
    assert room._read_head(path) == (8, journal.entries(after=7)[0].digest)


class TestFaults:
    def test_a_locked_database_is_temporary_and_loses_nothing(self, path: Path, journal: Journal) -> None:
        journal._connection.execute("PRAGMA busy_timeout=0")
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(TemporaryError, match="database is locked"):
            journal.append("note", {}, 8.0)
        other.execute("ROLLBACK")
        other.close()
        assert journal.append("note", {}, 8.0).seq == 8
        assert journal.verify().valid

    def test_a_full_disk_is_temporary_and_loses_nothing(self, journal: Journal) -> None:
        journal._connection.execute("PRAGMA max_page_count=1")
        with pytest.raises(TemporaryError, match="full"):
            journal.append("note", {"text": "x" * 40_000}, 8.0)
        journal._connection.execute("PRAGMA max_page_count=1000")
        journal.append("note", {}, 8.0)
        assert journal.verify().valid

    def test_after_a_failed_write_nothing_more_is_written_until_it_is_opened_anew(
        self, path: Path, journal: Journal
    ) -> None:
        real = journal._connection
        journal._connection = Failing(real)  # type: ignore[assignment]
        with pytest.raises(PermanentError, match="disk I/O error"):
            journal.append("note", {}, 8.0)
        journal._connection = real
        with pytest.raises(PermanentError, match="an earlier write failed"):
            journal.append("note", {}, 8.0)
        journal.close()
        assert verify(path).entries == 7

    def test_a_head_that_cannot_be_written_lags_and_the_entry_is_not_lost(
        self, path: Path, journal: Journal, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        def refuse(*_: object) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(room, "_write_head", refuse)
            assert journal.append("note", {}, 8.0).seq == 8
        assert "seq=8 is durable, its head file is not" in caplog.text
        assert verify(path).reason == "8 entries, head at 7"
        journal.append("note", {}, 9.0)
        assert verify(path).reason == "9 entries, head at 9"


class Failing:
    """A connection whose commits fail as a broken disk makes them fail."""

    def __init__(self, real: sqlite3.Connection) -> None:
        self._real = real

    @property
    def in_transaction(self) -> bool:
        return self._real.in_transaction

    def execute(self, text: str, *rest: object) -> object:
        if text == "COMMIT":
            error = sqlite3.OperationalError("disk I/O error")
            error.sqlite_errorcode = sqlite3.SQLITE_IOERR_FSYNC
            raise error
        return self._real.execute(text, *rest)


def test_a_commit_waits_for_the_disk(journal: Journal) -> None:
    assert journal._connection.execute("PRAGMA synchronous").fetchone()[0] == 2
    assert journal._connection.execute("PRAGMA journal_mode").fetchone()[0] == "wal"


def test_the_head_moves_after_the_commit_and_is_synced_before_it_takes_its_place(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    story: list[str] = []
    sync, replace = os.fsync, Path.replace

    def fsync(handle: int) -> None:
        story.append("sync")
        sync(handle)

    def take_place(self: Path, target: Path) -> Path:
        story.append(f"place with {len(journal._connection.execute('SELECT 1 FROM entries').fetchall())}")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", take_place)
    journal.append("note", {}, 8.0)
    assert story == ["sync", "place with 8", "sync"]
