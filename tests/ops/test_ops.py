"""systemd's protocols, the log, clock jumps, rooms and settings."""

import io
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from apscheduler.schedulers.background import BackgroundScheduler

from daemon import rooms
from daemon.ops import logs, sd
from daemon.ops.jumps import JumpGuard, reanchor
from daemon.settings import ControlSettings
from policies.clock import StandingClock
from policies.errors import PermanentError

INHERITOR = """
import os, sys
os.dup2(int(sys.argv[2]), 3)
os.environ["LISTEN_PID"] = str(os.getpid() + int(sys.argv[1]))
from daemon.ops.sd import listen_fds
for one in listen_fds():
    print(one.getsockname()[1], one.family.name, os.get_inheritable(one.fileno()))
"""


class TestSystemd:
    def test_notify_speaks_to_the_service_manager(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        address = tmp_path / "notify"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.bind(str(address))
            monkeypatch.setenv("NOTIFY_SOCKET", str(address))
            assert sd.notify(READY="1", STATUS="watching\nWATCHDOG=1")
            # A status cannot smuggle a field of its own in.
            assert manager.recv(1000) == b"READY=1\nSTATUS=watching WATCHDOG=1"
        monkeypatch.delenv("NOTIFY_SOCKET")
        assert not sd.notify(READY="1")

    def test_a_service_manager_that_is_gone_is_logged_and_not_fatal(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
        assert not sd.notify(READY="1")
        assert "could not be told READY" in caplog.text

    @pytest.mark.parametrize(("other", "expected"), [("0", 1), ("1", 0)])
    def test_an_inherited_socket_is_taken_by_the_process_it_is_meant_for_alone(
        self, other: str, expected: int
    ) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
            ran = subprocess.run(
                [sys.executable, "-c", INHERITOR, other, str(listener.fileno())],
                env={**os.environ, "LISTEN_FDS": "1"},
                pass_fds=[listener.fileno()],
                capture_output=True,
                text=True,
                check=True,
            )
        assert ran.stdout.split() == ([str(port), "AF_INET", "False"] if expected else [])

    def test_the_watchdog_is_asked_for_in_seconds(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("WATCHDOG_USEC", raising=False)
        assert sd.watchdog_s() is None
        monkeypatch.setenv("WATCHDOG_USEC", "2500000")
        assert sd.watchdog_s() == 2.5
        monkeypatch.setenv("WATCHDOG_PID", str(os.getpid() + 1))
        assert sd.watchdog_s() is None


class TestLogs:
    @pytest.fixture(autouse=True)
    def _root(self) -> Iterator[None]:
        root = logging.getLogger()
        handlers, level = root.handlers[:], root.level
        yield
        root.handlers[:] = handlers
        root.setLevel(level)

    def test_a_line_has_time_level_name_and_facts(self) -> None:
        out = io.StringIO()
        logs.setup("info", {}, out)
        logging.getLogger("daemon.x").info("candidate=%s stage=%s", "c-1", "LIVE")
        logging.getLogger("daemon.x").debug("not this")
        assert out.getvalue().endswith(" INFO daemon.x: candidate=c-1 stage=LIVE\n")
        assert out.getvalue().startswith("20")
        assert "not this" not in out.getvalue()

    def test_the_journal_gets_one_line_an_event_with_its_priority(self, tmp_path: Path) -> None:
        with (tmp_path / "stream").open("w") as out:
            status = os.fstat(out.fileno())
            logs.setup("debug", {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"}, out)
            log = logging.getLogger("daemon.x")
            for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR, logging.CRITICAL):
                log.log(level, "two\nlines")
        lines = (tmp_path / "stream").read_text().splitlines()
        assert lines == [f"<{priority}>daemon.x: two | lines" for priority in (7, 6, 4, 3, 2)]

    def test_a_stream_that_is_not_the_journal_s_gets_times(self, tmp_path: Path) -> None:
        with (tmp_path / "stream").open("w") as out:
            logs.setup("info", {"JOURNAL_STREAM": "1:1"}, out)
            logging.getLogger("daemon.x").info("redirected")
        assert (tmp_path / "stream").read_text().startswith("20")


class SteppingClock(StandingClock):
    """A clock whose wall can be set without time going by."""

    def step(self, seconds: float) -> None:
        self._now += seconds


class TestJumps:
    @pytest.fixture
    def scheduler(self) -> Iterator[BackgroundScheduler]:
        scheduler = BackgroundScheduler(timezone="UTC")
        scheduler.start(paused=True)
        yield scheduler
        scheduler.shutdown()

    def test_a_clock_step_is_seen_once_and_time_going_by_is_none(self) -> None:
        clock = SteppingClock()
        guard = JumpGuard(clock)
        clock.advance(100.0)
        assert guard.check() == pytest.approx(0.0, abs=1e-6)
        clock.step(-3600.0)
        clock.advance(5.0)
        assert guard.check() == pytest.approx(-3600.0, abs=1e-6)
        assert guard.check() == pytest.approx(0.0, abs=1e-6)
        clock.step(7.0)
        assert guard.check() == pytest.approx(7.0, abs=1e-6)

    def test_after_a_backward_step_jobs_are_due_one_interval_from_now(
        self, scheduler: BackgroundScheduler
    ) -> None:
        scheduler.add_job(print, "interval", seconds=10, id="turn")
        scheduler.add_job(print, "cron", minute=0, id="hourly")
        now = datetime.now(UTC) - timedelta(hours=3)
        # The control: without help nothing is due for three hours.
        for name in ("turn", "hourly"):
            assert scheduler.get_job(name).next_run_time > now + timedelta(hours=2)
        reanchor(scheduler, now.timestamp())
        assert scheduler.get_job("turn").next_run_time == now + timedelta(seconds=10)
        assert now <= scheduler.get_job("hourly").next_run_time <= now + timedelta(hours=1)

    def test_a_paused_job_stays_paused_and_a_moment_stays_that_moment(
        self, scheduler: BackgroundScheduler
    ) -> None:
        moment = datetime.now(UTC) + timedelta(hours=1)
        scheduler.add_job(print, "interval", seconds=10, id="paused").pause()
        scheduler.add_job(print, "date", run_date=moment, id="once")
        reanchor(scheduler, moment.timestamp() - 9000.0)
        assert scheduler.get_job("paused").next_run_time is None
        assert scheduler.get_job("once").next_run_time == moment


class TestRooms:
    def test_a_foreign_owner_of_a_room_stops_the_start(self, monkeypatch: pytest.MonkeyPatch) -> None:
        rooms.check_rooms()
        owners = {"daemon": ["instar", "python-daemon"]}
        monkeypatch.setattr(rooms, "packages_distributions", lambda: owners)
        with pytest.raises(PermanentError, match="python-daemon installs it too"):
            rooms.check_rooms()

    def test_an_owner_that_is_listed_twice_is_one_owner(self, monkeypatch: pytest.MonkeyPatch) -> None:
        owners = {room: ["instar", "instar"] for room in rooms.ROOMS} | {"numpy": ["numpy"]}
        monkeypatch.setattr(rooms, "packages_distributions", lambda: owners)
        rooms.check_rooms()


class TestSettings:
    ARGS = ("--state", "s", "--task", "t", "--policy", "p", "--signers", "k")

    def test_flags_win_over_the_environment_and_that_over_defaults(self) -> None:
        settings = ControlSettings.from_args(
            [*self.ARGS, "--seed", "7"], {"INSTAR_SEED": "5", "INSTAR_TURN_S": "2.5", "INSTAR_LISTEN": ""}
        )
        assert (settings.seed, settings.turn_s, settings.listen) == (7, 2.5, "127.0.0.1:8090")
        assert settings.control_socket == Path("s/run/control.sock").absolute()
        assert settings.serve_socket == settings.run / "serve.sock"

    def test_the_environment_alone_is_enough(self) -> None:
        environ = {f"INSTAR_{name}": name.lower() for name in ("STATE", "TASK", "POLICY", "SIGNERS")}
        assert ControlSettings.from_args([], environ).policy == Path("policy").absolute()

    @pytest.mark.parametrize(
        ("extra", "expected"),
        [
            (("--turn-s", "0"), "--turn-s: Input should be greater than or equal to 0.1, got '0'"),
            (("--listen", "8090"), "--listen: "),
            (("--listen", "h:70000"), "--listen: expected a port from 1 to 65535, got 'h:70000'"),
            (("--log-level", "loud"), "--log-level: "),
            (("--state", ""), "--state: expected a path, got ''"),
            (("--sed", "1"), "unrecognized arguments: --sed 1"),
        ],
    )
    def test_a_wrong_flag_is_refused_with_usage_and_its_name(
        self, extra: tuple[str, str], expected: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(SystemExit) as stop:
            ControlSettings.from_args([*self.ARGS, *extra], {})
        assert stop.value.code == 2
        said = capsys.readouterr().err
        assert "usage: instard" in said
        assert expected in said

    def test_a_missing_flag_is_named_and_help_tells_of_every_variable(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(SystemExit):
            ControlSettings.from_args(["--state", "s"], {})
        assert "--task, --policy, --signers" in capsys.readouterr().err
        with pytest.raises(SystemExit) as stop:
            ControlSettings.from_args(["--help"], {})
        assert stop.value.code == 0
        said = capsys.readouterr().out
        for name, field in ControlSettings.model_fields.items():
            assert f"INSTAR_{name.upper()}" in said
            assert field.description
