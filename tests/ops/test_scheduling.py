"""What a process asks of the scheduler: what it gets, what it says where it gets nothing, whom it spares."""

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from daemon.ops import scheduling
from daemon.ops.scheduling import SESSION_NICE, SLICE_NS, keep_off, slice_ns, yield_nothing
from policies.errors import PermanentError

AUTOGROUP = Path("/proc/self/autogroup")

has_slices = pytest.mark.skipif(slice_ns() is None, reason="slices can be asked for since Linux 6.12")


def alone(code: str) -> str:
    """Run code in a process and session of its own; return what it prints."""
    whole = f"import os\nfrom daemon.ops import scheduling\n{code}"
    run = subprocess.run(
        [sys.executable, "-c", whole],
        cwd=Path(__file__).parents[2],
        start_new_session=True,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return run.stdout.strip()


@has_slices
def test_a_server_gets_the_shortest_slice_and_its_threads_inherit_it() -> None:
    told = alone(
        "import threading\n"
        "print(scheduling.slice_ns() > scheduling.SLICE_NS)\n"
        "print(scheduling.yield_nothing()[0])\n"
        "thread = threading.Thread(target=lambda: print(scheduling.slice_ns()))\n"
        "thread.start(), thread.join()"
    )
    assert told.splitlines() == ["True", "slice: 100 us", str(SLICE_NS)]


@has_slices
def test_asking_for_a_slice_leaves_policy_and_nice_level_as_they_were() -> None:
    told = alone(
        "os.setpriority(os.PRIO_PROCESS, 0, 3)\n"
        "os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))\n"
        "scheduling.yield_nothing()\n"
        "print(scheduling.slice_ns(), os.sched_getscheduler(0), os.getpriority(os.PRIO_PROCESS, 0))"
    )
    assert told == f"{SLICE_NS} {os.SCHED_BATCH} 3"


def test_an_idle_process_is_told_that_it_has_no_slice() -> None:
    told = alone(
        "os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))\nprint(scheduling.yield_nothing()[0])"
    )
    assert told == f"slice: the kernel's (policy {os.SCHED_IDLE} has none)"


def test_a_kernel_that_forgets_the_wish_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduling, "_call", lambda *_: 0)
    assert scheduling.slice_ns() is None
    assert scheduling._short_slice() == "slice: the kernel's (it takes no wish before 6.12)"


def test_a_kernel_that_refuses_the_wish_is_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduling, "_call", lambda *_: 1)
    assert scheduling._short_slice() == "slice: the kernel's (Operation not permitted)"


def test_a_machine_whose_system_calls_are_not_known_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduling.platform, "machine", lambda: "vax")
    assert scheduling._short_slice() == "slice: the kernel's (no number of sched_setattr for vax)"
    assert slice_ns() is None


def test_a_server_stays_on_the_processor_that_it_is_given() -> None:
    cpu = max(os.sched_getaffinity(0))
    told = alone(f"print(scheduling.yield_nothing({cpu})[0], os.sched_getaffinity(0))")
    assert told == f"cpus: {cpu} alone {{{cpu}}}"


def test_without_a_processor_of_its_own_it_stays_on_all() -> None:
    everywhere = os.sched_getaffinity(0)
    assert alone("scheduling.yield_nothing()\nprint(os.sched_getaffinity(0))") == str(everywhere)


def test_a_processor_that_is_not_there_is_refused_in_words() -> None:
    with pytest.raises(
        PermanentError, match=r"expected to stay on CPU 1023, got Invalid argument; .*may use 0"
    ):
        yield_nothing(1023)


@pytest.mark.skipif(not AUTOGROUP.exists(), reason="this kernel does not schedule by session")
def test_a_session_of_its_own_weighs_as_much_as_it_says() -> None:
    told = alone("print(scheduling.yield_nothing()[1])\nprint(open('/proc/self/autogroup').read())")
    said, weight = told.splitlines()
    # It takes a privilege: who has none is told.
    if said == f"session: nice {SESSION_NICE}":
        assert weight.endswith(f"nice {SESSION_NICE}")
    else:
        assert re.fullmatch(r"session: as it was \(.* (denied|permitted)\)", said)
        assert weight.endswith("nice 0")


@pytest.fixture
def leader(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """Let this process seem the leader of its session, and the kernel's file lie in a folder."""
    monkeypatch.setattr(scheduling.os, "getsid", lambda _: os.getpid())
    monkeypatch.setattr(scheduling, "_AUTOGROUP", tmp_path / "autogroup")
    return tmp_path / "autogroup"


def test_the_session_is_given_a_nice_level(leader: Path) -> None:
    leader.touch()
    assert scheduling._heavy_session() == f"session: nice {SESSION_NICE}"
    assert leader.read_text() == str(SESSION_NICE)


def test_a_session_that_others_share_is_left_alone(leader: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leader.touch()
    monkeypatch.setattr(scheduling.os, "getsid", lambda _: os.getpid() + 1)
    assert scheduling._heavy_session() == "session: as it was (shared with others)"
    assert leader.read_text() == ""


def test_a_kernel_without_sessions_is_told_and_gets_no_file(leader: Path) -> None:
    assert scheduling._heavy_session() == "session: as it was (the kernel does not schedule by session)"
    assert not leader.exists()


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="takes two processors")
def test_a_search_keeps_off_the_server_and_may_have_all_the_rest() -> None:
    everywhere = os.sched_getaffinity(0)
    server, rest = min(everywhere), everywhere - {min(everywhere)}
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as search:
        said = keep_off(search.pid, {server})
        kept = os.sched_getaffinity(search.pid)
        search.communicate(b"\n", timeout=60)
    assert kept == rest
    assert said == f"cpus: {search.pid} keeps to {', '.join(map(str, sorted(rest)))}"


def test_a_search_is_not_left_without_any_processor() -> None:
    everywhere = os.sched_getaffinity(0)
    said = keep_off(os.getpid(), everywhere)
    assert "nothing is left" in said
    assert os.sched_getaffinity(0) == everywhere


def test_a_search_that_has_ended_is_told_and_no_error() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as search:
        search.wait(60)
    assert keep_off(search.pid, {0}) == f"cpus: {search.pid} stays where it was (No such process)"


@has_slices
def test_threads_that_run_already_keep_their_slice() -> None:
    """Why ``instar-serve`` asks before it starts a thread."""
    asked, done = threading.Event(), threading.Event()
    seen: list[int | None] = []

    def elder() -> None:
        asked.wait(60)
        seen.append(slice_ns())
        done.set()

    def asker() -> None:
        scheduling._short_slice()
        asked.set()
        assert done.wait(60)

    threads = [threading.Thread(target=body) for body in (elder, asker)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert seen != [SLICE_NS]
