"""What a search takes from its neighbours: its scheduling, seen from outside."""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from daemon.control import workers
from daemon.control.workers import Allowance, Worker
from policies.clock import SystemClock

ALLOWANCE = Allowance(cpu_s=60.0, memory_bytes=3_000_000_000, wall_s=120.0, threads=1)
AUTOGROUP = Path("/proc/self/autogroup")

needs_sessions = pytest.mark.skipif(
    not AUTOGROUP.exists(), reason="this kernel does not schedule by session (no autogroup)"
)


@pytest.fixture
def at_work(tmp_path: Path) -> Iterator[Worker]:
    """A search that has just been started."""
    brief = tmp_path / "brief.json"
    brief.write_text("{}")
    worker = workers.start("search", brief, tmp_path, "result.json", ALLOWANCE, SystemClock())
    yield worker
    worker.stop()


def session_nice(pid: int) -> int | None:
    """The nice level of a process's session; None for one in the kernel's default group, which has none."""
    group = Path(f"/proc/{pid}/autogroup").read_text()
    return int(group.rpartition("nice ")[2]) if group else None


def test_a_search_is_scheduled_as_idle(at_work: Worker) -> None:
    assert os.sched_getscheduler(at_work.pid) == os.SCHED_IDLE
    assert os.sched_getscheduler(0) != os.SCHED_IDLE


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two processors")
def test_a_search_keeps_off_the_processor_of_the_server_and_goes_first_when_memory_ends(
    tmp_path: Path, at_work: Worker
) -> None:
    first = min(os.sched_getaffinity(0))
    brief = tmp_path / "brief.json"
    brief.write_text("{}")
    allowance = replace(ALLOWANCE, off_cpus=frozenset({first}))
    away = workers.start("search", brief, tmp_path / "away", "result.json", allowance, SystemClock())
    assert os.sched_getaffinity(away.pid) == os.sched_getaffinity(0) - {first}
    assert os.sched_getaffinity(at_work.pid) == os.sched_getaffinity(0)
    assert int(Path(f"/proc/{away.pid}/oom_score_adj").read_text()) > 0
    away.stop()


@needs_sessions
def test_a_search_yields_to_other_sessions_and_not_inside_its_own_alone(tmp_path: Path) -> None:
    ours = session_nice(os.getpid())
    brief = tmp_path / "brief.json"
    brief.write_text("{}")
    worker = workers.start("search", brief, tmp_path, "result.json", ALLOWANCE, SystemClock())
    assert workers.SESSION_NICE > 0
    assert session_nice(worker.pid) == workers.SESSION_NICE
    assert session_nice(os.getpid()) == ours
    worker.stop()


@needs_sessions
def test_a_panel_keeps_its_share_because_it_times_networks(tmp_path: Path) -> None:
    case = tmp_path / "case.json"
    case.write_text("{}")
    worker = workers.start("guards", case, tmp_path, "panel.json", ALLOWANCE, SystemClock())
    assert session_nice(worker.pid) == 0
    worker.stop()


def test_a_kernel_without_sessions_is_no_trouble(at_work: Worker) -> None:
    gone = at_work.pid
    at_work.stop()
    workers._yield_as_a_group(gone)
