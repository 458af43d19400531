"""The journal: every way to change it quietly is found, by number; nothing acknowledged is lost."""

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from daemon.store.journal import Journal, verify
from policies.errors import TamperError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    journal = Journal(tmp_path / "journal.db")
    for number in range(1, 8):
        journal.append("note", {"number": number, "text": "entry"}, float(number))
    journal.close()
    return tmp_path / "journal.db"


def sql(path: Path, *statements: str) -> None:
    connection = sqlite3.connect(path)
    for statement in statements:
        connection.execute(statement)
    connection.commit()
    connection.close()


def test_an_untouched_journal_verifies(path: Path) -> None:
    found = verify(path)
    assert (found.valid, found.entries, found.seq) == (True, 7, None)


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


@pytest.mark.parametrize(
    ("statements", "seq"),
    [
        (("UPDATE entries SET body = replace(body, 'entry', 'ENTRY') WHERE seq = 3",), 3),
        (("UPDATE entries SET at = at + 1 WHERE seq = 5",), 5),
        (("UPDATE entries SET kind = 'other' WHERE seq = 1",), 1),
        (("UPDATE entries SET body = body || ' ' WHERE seq = 2",), 2),
        (("UPDATE entries SET body = 'garbage' WHERE seq = 2",), 2),
        (("DELETE FROM entries WHERE seq = 4",), 4),
        (("DELETE FROM entries WHERE seq = 1",), 1),
        (("DELETE FROM entries WHERE seq = 7",), 7),
        (("DELETE FROM entries WHERE seq >= 5",), 5),
        (SWAP, 3),
        (INSERT, 4),
    ],
)
def test_a_changed_row_is_found_by_its_number(path: Path, statements: tuple[str, ...], seq: int) -> None:
    sql(path, *statements)
    found = verify(path)
    assert not found.valid
    assert found.seq == seq, found


def test_a_tail_cut_off_with_its_head_kept_stops_the_next_start(path: Path) -> None:
    sql(path, "DELETE FROM entries WHERE seq = 7")
    with pytest.raises(TamperError, match="expected entry 7"):
        Journal(path)


def test_without_its_head_a_journal_does_not_verify(path: Path) -> None:
    path.with_name("journal.db.head").unlink()
    assert not verify(path).valid


def test_a_head_that_lags_behind_is_what_a_crash_leaves(path: Path) -> None:
    head = path.with_name("journal.db.head")
    older = head.read_bytes()
    journal = Journal(path)
    journal.append("note", {}, 8.0)
    journal.close()
    head.write_bytes(older)
    assert verify(path).valid
    reopened = Journal(path)
    assert reopened.append("note", {}, 9.0).seq == 9
    assert reopened.verify().valid


def test_a_second_writer_is_noticed(path: Path) -> None:
    one, other = Journal(path), Journal(path)
    one.append("note", {}, 8.0)
    with pytest.raises(TamperError, match=r"expected .* to end with entry 7"):
        other.append("note", {}, 8.0)


def test_there_is_no_journal_where_there_is_none(tmp_path: Path) -> None:
    with pytest.raises(TamperError, match="there is none"):
        verify(tmp_path / "journal.db")


WRITER = """
import sys
from pathlib import Path
from daemon.store.journal import Journal
journal = Journal(Path(sys.argv[1]))
COMMIT = {commit}
if not COMMIT:
    journal._connection.execute("PRAGMA journal_mode=MEMORY")
    journal._connection.isolation_level = None
    real = journal._connection
    class Lazy:
        def execute(self, text, *rest):
            lazy = text in ("COMMIT", "BEGIN IMMEDIATE")
            return real.execute("SELECT 1") if lazy else real.execute(text, *rest)
    real.execute("BEGIN")
    journal._connection = Lazy()
for number in range(100_000):
    print(journal.append("note", {{"n": number}}, 0.0).seq, flush=True)
"""


def killed_writer(path: Path, *, commit: bool) -> int:
    """Let a process write, kill it with SIGKILL, and return the last entry it acknowledged."""
    acknowledged = 0
    command = [sys.executable, "-c", WRITER.format(commit=commit), str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            acknowledged = int(line)
            if acknowledged == 25:
                os.kill(process.pid, signal.SIGKILL)
    return acknowledged


def entries(path: Path) -> int:
    connection = sqlite3.connect(path)
    count = connection.execute("SELECT COUNT(*) FROM entries").fetchone()[0]
    connection.close()
    return int(count)


def test_a_killed_writer_loses_nothing_that_it_acknowledged(tmp_path: Path) -> None:
    for round_ in range(3):
        path = tmp_path / f"journal-{round_}.db"
        acknowledged = killed_writer(path, commit=True)
        assert acknowledged >= 25
        assert entries(path) >= acknowledged
        assert verify(path).valid


def test_a_writer_that_does_not_commit_would_be_noticed(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    assert entries_after(path, lambda: killed_writer(path, commit=False)) < 25


def entries_after(path: Path, act: Callable[[], int]) -> int:
    act()
    return entries(path)
