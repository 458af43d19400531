"""The real process ``instard``: how it starts, refuses to start, and stops."""

import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from daemon.control.workers import is_ours
from daemon.store.journal import verify
from tests.simulator.site import Site


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    try:
        yield made
    finally:
        made.__exit__(None, None, None)


def refused(site: Site) -> str:
    """Start ``instard``, which must refuse; return what it says."""
    command = [str(Path(sys.executable).with_name("instard")), *site.control_args()]
    answer = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert answer.returncode == 78, answer.stderr
    return answer.stderr


def test_a_stop_ends_the_worker_keeps_the_monitors_and_leaves_a_valid_journal(site: Site) -> None:
    site.start_control()
    assert site.control is not None
    site.serve = site.control  # the wait below looks at it: here there is no data plane
    status = site.wait(lambda s: (site.state / "jobs" / "search-1" / "pid").is_file(), "a search has begun")
    assert status["serving"] == "unreachable"
    socket = site.state / "run" / "control.sock"
    assert stat.S_IMODE(socket.stat().st_mode) == 0o660
    worker = int((site.state / "jobs" / "search-1" / "pid").read_text())
    assert is_ours(worker, site.state / "jobs" / "search-1")
    second = refused(site)
    assert "expected to be the only instard" in second
    assert f"process {site.control.pid} holds it" in second
    site.control.send_signal(signal.SIGTERM)
    assert site.control.wait(timeout=60) == 0
    assert not is_ours(worker, site.state / "jobs" / "search-1")
    assert (site.state / "snapshots" / "monitors.npz").is_file()
    assert verify(site.state / "journal.db").valid
    site.start_control()
    site.serve = site.control
    site.wait(
        lambda s: any(e.kind == "search.started" and e.body["attempt"] == 2 for e in site.entries()),
        "it is begun again",
    )


def test_an_unsigned_policy_stops_the_first_start(site: Site) -> None:
    policy = site.law / "policy.toml"
    policy.write_text(policy.read_text().replace("quorum = 1", "quorum = 1 "))
    assert "that does not verify" in refused(site)


def test_a_policy_that_misses_a_threshold_stops_the_first_start_with_key_clause_and_line(site: Site) -> None:
    policy = site.law / "policy.toml"
    text = policy.read_text().replace("quorum = 1", "")
    policy.write_text(text)
    line = text[: text.index("[modification_protocol.approval]")].count("\n") + 1
    said = refused(site)
    assert f"line {line}: modification_protocol.approval.quorum (MP-6): missing" in said


def test_a_taken_port_stops_the_start(site: Site) -> None:
    site.start_control()
    site.serve = site.control
    site.wait(lambda s: True, "control answers")
    other = Site(site.state.parent / "other")
    other.ports["control"] = site.ports["control"]
    assert "is it taken?" in refused(other)


def test_an_edited_journal_stops_the_next_start(site: Site) -> None:
    site.start_control()
    site.serve = site.control
    site.wait(lambda s: s["journal_entries"] > 2, "something is recorded")
    assert site.control is not None
    site.control.send_signal(signal.SIGTERM)
    site.control.wait(timeout=60)
    head = site.state / "journal.db.head"
    head.write_bytes(head.read_bytes().replace(b'"seq":', b'"seq":9'))
    assert "audit verify" in refused(site)
