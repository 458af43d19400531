"""A writer that is killed with SIGKILL has lost nothing that it acknowledged."""

import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

from daemon.store.journal import Journal, verify

WRITER = """
import sys
from pathlib import Path
from daemon.store.journal import Journal

class Uncommitted(Journal):
    def _insert(self, entry, text):
        if not self._connection.in_transaction:
            self._connection.execute("BEGIN IMMEDIATE")
        self._connection.execute(
            "INSERT INTO entries VALUES (?, ?, ?, ?, ?, ?)",
            (entry.seq, entry.at, entry.kind, text, entry.prev, entry.digest),
        )

journal = {kind}(Path(sys.argv[1]))
for number in range(100_000):
    print(journal.append("note", {{"n": number}}, 0.0).seq, flush=True)
"""
ROUND = 25


def killed_writer(path: Path, kind: str, until: int) -> int:
    """Let a process write, kill it after ``until``, and return the last entry that it acknowledged."""
    acknowledged = 0
    command = [sys.executable, "-c", WRITER.format(kind=kind), str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            acknowledged = int(line)
            if acknowledged == until:
                os.kill(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    return acknowledged


def test_a_killed_writer_loses_nothing_that_it_acknowledged_and_can_go_on(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    last = 0
    for _ in range(3):
        acknowledged = killed_writer(path, "Journal", until=last + ROUND)
        found = verify(path)
        assert found.valid, found
        assert found.entries >= acknowledged >= last + ROUND
        last = found.entries
    journal = Journal(path)
    assert journal.append("note", {}, 0.0).seq == last + 1
    journal.close()


def test_a_writer_that_does_not_commit_would_be_noticed(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    acknowledged = killed_writer(path, "Uncommitted", until=ROUND)
    connection = sqlite3.connect(path)
    kept = connection.execute("SELECT COUNT(*) FROM entries").fetchone()[0]
    connection.close()
    assert kept < acknowledged
    assert not verify(path).valid
