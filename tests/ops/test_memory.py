"""Memory that was freed goes back when it is asked for and stays where it is otherwise; workers go first."""

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from daemon.ops import memory

# Blocks of 64 KiB, every second one freed: no heap can shrink from its end.
HOLES = """
import resource
from daemon.ops.memory import give_back
def held():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
blocks = [bytearray(60_000) for _ in range(2_000)]
for block in blocks:
    block[::4096] = b"x" * len(block[::4096])
full = held()
del blocks[::2], block
freed = held()
{call}
print(full - freed, freed - held())
"""


def given_back(call: str) -> tuple[int, int]:
    """Return the bytes that freeing gave back, and those that ``call`` gave back after it."""
    run = subprocess.run(
        [sys.executable, "-c", HOLES.replace("{call}", call)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    freed, more = run.stdout.split()
    return int(freed), int(more)


@pytest.mark.skipif(not memory.give_back(), reason="this C library keeps what it has")
def test_what_was_freed_among_what_is_held_goes_back() -> None:
    half = 60_000 * 1_000
    freed, more = given_back("give_back()")
    assert freed < half / 4
    assert more > half / 2


def test_without_the_call_it_stays() -> None:
    _, more = given_back("pass")
    assert more < 20 * resource.getpagesize()


def test_a_c_library_that_cannot_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda _: object())
    assert memory.give_back() is False


def test_a_worker_goes_first_and_who_started_it_stays_as_it_was() -> None:
    mine = Path("/proc/self/oom_score_adj").read_text()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as worker:
        before = int(Path(f"/proc/{worker.pid}/oom_score_adj").read_text())
        said = memory.first_to_go(worker.pid)
        after = int(Path(f"/proc/{worker.pid}/oom_score_adj").read_text())
        worker.communicate(b"\n", timeout=60)
    assert before < after == 500
    assert said == f"memory: {worker.pid} goes first"
    assert Path("/proc/self/oom_score_adj").read_text() == mine


def test_a_worker_that_has_ended_is_told_and_no_error() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as worker:
        worker.wait(60)
    assert "goes when any other would" in memory.first_to_go(worker.pid)
