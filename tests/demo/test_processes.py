"""Children: watched, told, and ended whatever they do."""

import os
import signal
import socket
import sys
from pathlib import Path

import pytest

from daemon.console.demo import processes as module
from daemon.console.demo.processes import Processes, check_ports
from policies.errors import PermanentError

_ECHO = "import sys; print('ready', flush=True); [print(x, end='', flush=True) for x in sys.stdin]"
_DEAF = (
    "import signal, sys; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); "
    "signal.pause()"
)


def _python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _wait_for(path: Path, word: str, child: int) -> None:
    """Block until a child has written a word; it must live as long."""
    while word not in path.read_text():
        assert _lives(child)


def test_all_children_end_with_the_block_even_a_deaf_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "GRACE_S", 0.2)
    with Processes(tmp_path) as processes:
        processes.start("echo", _python(_ECHO))
        processes.start("deaf", _python(_DEAF))
        pids = [child.pid for child in processes._children.values()]
        _wait_for(tmp_path / "deaf.out", "deaf", pids[1])
        processes.check()
    assert [pid for pid in pids if _lives(pid)] == []


def test_children_end_when_the_block_is_interrupted(tmp_path: Path) -> None:
    pids = []

    def interrupted() -> None:
        with Processes(tmp_path) as processes:
            processes.start("echo", _python(_ECHO))
            pids.extend(child.pid for child in processes._children.values())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not _lives(pids[0])


def test_a_child_hears_what_it_is_told(tmp_path: Path) -> None:
    with Processes(tmp_path) as processes:
        processes.start("echo", _python(_ECHO))
        processes.tell("echo", "hello")
        _wait_for(tmp_path / "echo.out", "hello", processes._children["echo"].pid)


def test_a_child_that_dies_is_named_with_its_last_words(tmp_path: Path) -> None:
    with Processes(tmp_path) as processes:
        processes.start("serve", _python("import sys; sys.exit('the port is gone')"))
        processes._children["serve"].wait(30)
        with pytest.raises(PermanentError, match=r"serve to run on(.|\n)*exit code 1(.|\n)*the port is gone"):
            processes.check()


def test_a_passing_child_may_end_well_and_not_badly(tmp_path: Path) -> None:
    with Processes(tmp_path) as processes:
        processes.start("good", _python("pass"), passing=True)
        processes.start("bad", _python("raise SystemExit(3)"), passing=True)
        for child in processes._children.values():
            child.wait(30)
        processes.check()
        assert processes.ended("good")
        with pytest.raises(PermanentError, match=r"bad.*exit code 3"):
            processes.ended("bad")


def test_ctrl_c_does_not_reach_a_child_before_the_demo(tmp_path: Path) -> None:
    with Processes(tmp_path) as processes:
        processes.start("echo", _python(_ECHO))
        child = processes._children["echo"]
        assert os.getpgid(child.pid) != os.getpgid(0)
        processes.stop("echo")
        assert child.returncode in (0, -signal.SIGTERM)


def test_a_port_in_use_is_named_with_what_it_is_for() -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        with pytest.raises(PermanentError, match=f"port {port} to be free for instard"):
            check_ports({"instard": port})
    check_ports({"instard": port})
