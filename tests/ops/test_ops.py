"""systemd's protocols, clock jumps, rooms, settings and metrics."""

import os
import shutil
import socket
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest
from apscheduler.schedulers.background import BackgroundScheduler

from daemon import rooms
from daemon.ops import sd
from daemon.ops.jumps import JumpGuard, reanchor
from daemon.ops.metrics import ControlMetrics
from daemon.settings import ControlSettings
from policies.clock import StandingClock
from policies.errors import PermanentError
from policies.terms import Level, Signal


def test_notify_speaks_to_the_service_manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(address))
        monkeypatch.setenv("NOTIFY_SOCKET", str(address))
        assert sd.notify(READY="1", STATUS="watching")
        assert manager.recv(1000) == b"READY=1\nSTATUS=watching"
    monkeypatch.delenv("NOTIFY_SOCKET")
    assert not sd.notify(READY="1")


def test_sockets_meant_for_another_process_are_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LISTEN_FDS", "1")
    monkeypatch.setenv("LISTEN_PID", str(os.getpid() + 1))
    assert sd.listen_fds() == []


def test_the_watchdog_is_asked_for_in_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    assert sd.watchdog_s() is None
    monkeypatch.setenv("WATCHDOG_USEC", "2500000")
    assert sd.watchdog_s() == 2.5


class SteppingClock(StandingClock):
    """A clock whose wall can be set without time going by."""

    def step(self, seconds: float) -> None:
        self._now += seconds


def test_a_clock_step_is_seen_once_and_time_going_by_is_none() -> None:
    clock = SteppingClock()
    guard = JumpGuard(clock)
    clock.advance(100.0)
    assert guard.check() == pytest.approx(0.0, abs=1e-6)
    clock.step(-3600.0)
    assert guard.check() == pytest.approx(-3600.0, abs=1e-6)
    assert guard.check() == pytest.approx(0.0, abs=1e-6)


def test_after_a_backward_step_jobs_are_due_one_interval_from_now() -> None:
    scheduler = BackgroundScheduler(timezone="UTC")
    scheduler.add_job(print, "interval", seconds=10, id="turn")
    scheduler.start(paused=True)
    now = datetime.now(UTC).timestamp() - 3600.0
    reanchor(scheduler, now)
    due = scheduler.get_job("turn").next_run_time.timestamp()
    scheduler.shutdown()
    assert due == pytest.approx(now + 10.0, abs=0.001)


def test_a_foreign_owner_of_a_room_stops_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    rooms.check_rooms()
    owners = {"daemon": ["instar", "python-daemon"]}
    monkeypatch.setattr(rooms, "packages_distributions", lambda: owners)
    with pytest.raises(PermanentError, match="python-daemon installs it too"):
        rooms.check_rooms()


class TestSettings:
    ARGS = ("--state", "s", "--task", "t", "--policy", "p", "--signers", "k")

    def test_flags_win_over_the_environment_and_that_over_defaults(self) -> None:
        settings = ControlSettings.from_args(
            [*self.ARGS, "--seed", "7"], {"INSTAR_SEED": "5", "INSTAR_TURN_S": "2.5"}
        )
        assert (settings.seed, settings.turn_s, settings.listen) == (7, 2.5, "127.0.0.1:8090")
        assert settings.control_socket == Path.cwd() / "s/run/control.sock"

    @pytest.mark.parametrize("extra", [("--turn-s", "0"), ("--listen", "8090"), ("--sed", "1")])
    def test_a_wrong_flag_is_refused_with_usage(
        self, extra: tuple[str, str], capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(SystemExit) as stop:
            ControlSettings.from_args([*self.ARGS, *extra], {})
        assert stop.value.code == 2
        assert "usage: instard" in capsys.readouterr().err


def fed() -> ControlMetrics:
    metrics = ControlMetrics("meter-reader")
    for level in (Level.QUIET, Level.ALARM, Level.ALARM):
        metrics.monitor(
            Signal(monitor="drift", level=level, score=1.5, at=5.0, n=10, reason="r", facts={"accuracy": 0.9})
        )
    metrics.entry("search.ended", {"kind": "data", "outcome": "done", "wall_s": 30.0})
    metrics.entry("dossier.sealed", {"findings": {"floor": "pass"}})
    metrics.entry("policy.loaded", {"digest": "sha256:0"})
    metrics.entry("candidate.moved", {"to": "ROLLED_BACK"})
    metrics.fold(
        stages={"LIVE": 1},
        frozen=True,
        chain_valid=True,
        verified_at=9.0,
        newcomer_share=0.3,
        pending_since=None,
        budget_used=0.5,
        free_bytes=10,
    )
    return metrics


def test_metrics_tell_what_was_fed() -> None:
    text = fed().exposition()[0].decode()
    for line in (
        'instar_drift_alarms_total{detector="drift",model="meter-reader"} 1.0',
        'instar_search_jobs_total{kind="data",outcome="done"} 1.0',
        'instar_search_jobs_total{kind="data",outcome="failed"} 0.0',
        'instar_guard_checks_total{guard="floor",outcome="pass"} 1.0',
        'instar_guard_rollbacks_total{reason="probation"} 1.0',
        'instar_frozen{scope="task"} 1.0',
        "instar_audit_entries_total 4.0",
        "instar_audit_chain_valid 1.0",
    ):
        assert line in text


def test_promtool_accepts_the_exposition() -> None:
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not installed (Debian package prometheus)")
    text = fed().exposition()[0]
    answer = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, check=False)
    assert answer.returncode == 0, answer.stdout + answer.stderr
