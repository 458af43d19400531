"""Who stands in the serving benchmarks: servers that are started, asked, checked and ended."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.serving import contestants, environments, models, stage, tree
from benchmarks.serving.asks import Form
from benchmarks.serving.contestants import INSTAR, RAW, UVICORN, Peer
from benchmarks.serving.course import Cell, Course, verify
from benchmarks.serving.load import Burst, Door
from policies.errors import PermanentError

# -- processes --------------------------------------------------------------------------------------------

PARENT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", {child!r}], stdout=subprocess.PIPE, text=True)
print(child.pid, child.stdout.readline(), flush=True)
{then}
"""
STUBBORN = (
    "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); signal.pause()"
)
BUSY = "import time\nwhile time.process_time() < 0.3: pass\nprint(1, flush=True)\ntime.sleep(600)"


def family(child: str, then: str = "child.wait()") -> tuple[subprocess.Popen[str], int]:
    text = PARENT.format(child=child, then=then)
    parent = subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    return parent, int(parent.stdout.readline().split()[0])


def test_a_tree_is_ended_with_what_does_not_want_to() -> None:
    parent, child = family(STUBBORN)
    with parent:
        assert tree.pids(parent.pid) == [parent.pid, child]
        tree.end(parent.pid)
        parent.wait(10)
        assert not tree.alive(child)


def test_a_tree_s_cpu_time_has_that_of_its_children() -> None:
    parent, child = family(BUSY)
    with parent:
        whole, alone = tree.cpu_s(parent.pid), tree.cpu_s(child)
        tree.end(parent.pid)
    assert alone >= 0.29
    assert whole >= alone


# -- environments -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("peer", list(environments.PEERS))
def test_every_package_of_a_peer_is_pinned(peer: str) -> None:
    text = (environments.SCRIPTS / f"{peer}.txt").read_text().splitlines()
    packages = [line for line in text if not line.startswith("#")]
    assert all(line.count("==") == 1 and "@" not in line for line in packages)
    assert "onnxruntime==1.32.0" in packages
    assert environments.version_of(peer)


def test_an_unknown_peer_is_refused_by_name() -> None:
    with pytest.raises(PermanentError, match=r"expected a peer of mlserver, .* got 'tgi'"):
        environments.python_of("tgi")


def test_an_environment_is_kept_until_its_pins_or_its_python_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ray.txt").write_text("ray==1\n")
    monkeypatch.setattr(environments, "SCRIPTS", tmp_path)
    monkeypatch.setattr(environments, "ENVIRONMENTS", tmp_path / "made")
    asked: list[list[str]] = []

    def pretend(_peer: str, command: list[str]) -> None:
        asked.append(command)
        (tmp_path / "made" / "ray" / "bin").mkdir(parents=True, exist_ok=True)
        (tmp_path / "made" / "ray" / "bin" / "python").touch()

    monkeypatch.setattr(environments, "_do", pretend)
    python = environments.python_of("ray")
    assert environments.python_of("ray") == python
    assert len(asked) == 2
    (tmp_path / "ray.txt").write_text("ray==2\n")
    environments.python_of("ray")
    assert len(asked) == 4


def test_a_peer_that_wants_another_python_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environments, "PYTHONS", {"pytriton": "/nowhere/python3.11"})
    with pytest.raises(PermanentError, match=r"expected /nowhere/python3\.11 for pytriton"):
        environments.python_of("pytriton")


# -- whole turns, without a load generator ----------------------------------------------------------------


@pytest.fixture
def course(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Course:
    monkeypatch.setattr(Course, "burst", lambda *_: Burst(1.0, 1.0, 1.0, 1.0, 0.0))
    one = Course(tmp_path, 1, 1)
    one.lay()
    return one


@pytest.mark.scenario
@pytest.mark.skipif(shutil.which("taskset") is None, reason="needs taskset, of util-linux")
def test_the_plain_application_answers_rightly_and_is_ended(course: Course) -> None:
    peer = Peer(UVICORN, None, "uvicorn_tick.py", (Form.JSON, Form.BINARY))
    found = peer.turn(course, 0)
    assert set(found) == {(UVICORN, Cell(model, form)) for model in models.GRAPHS for form in peer.forms}


@pytest.mark.scenario
@pytest.mark.skipif(shutil.which("taskset") is None, reason="needs taskset, of util-linux")
def test_a_peer_that_answers_other_numbers_is_not_measured(course: Course) -> None:
    text = (environments.SCRIPTS / "uvicorn_tick.py").read_text()
    mutant = text.replace("future.set_result(logits[row : row + 1])", "future.set_result(logits[:1] + 0.01)")
    assert mutant != text
    (course.folder / "mutant.py").write_text(mutant)
    shutil.copy(environments.SCRIPTS / "v2.py", course.folder)
    peer = Peer("a mutant", None, str(course.folder / "mutant.py"), (Form.JSON,))
    with pytest.raises(PermanentError, match=r"expected a mutant \(mlp, JSON\) to answer"):
        peer.turn(course, 0)


@pytest.mark.scenario
@pytest.mark.skipif(shutil.which("taskset") is None, reason="needs taskset, of util-linux")
def test_a_peer_that_ends_at_once_is_not_awaited(course: Course) -> None:
    (course.folder / "ends.py").write_text("raise SystemExit('no')\n")
    peer = Peer("a peer", None, str(course.folder / "ends.py"), (Form.JSON,))
    with pytest.raises(PermanentError, match="expected a peer to answer within"):
        peer.turn(course, 0)
    assert peer.log(course).read_text() == "no\n"


@pytest.mark.scenario
def test_instar_serves_the_bench_s_bundles_and_answers_rightly(course: Course) -> None:
    state = course.folder / "state"
    digest = stage.put(state, course.file("conv").read_bytes())
    served = stage.start(state, "conv")
    try:
        stage.apply(state, "conv", 1, digest)
        door = Door(f"{served.host}:{served.port}", served.process.pid)
        asked = [(door, Cell("conv", form)) for form in (Form.JSON, Form.BINARY)]
        assert verify(INSTAR, asked, course) == {}
        course.file("conv").write_bytes(models.make_bundle("conv", seed=1))
        with pytest.raises(PermanentError, match=r"expected Instar \(conv, JSON\) to answer"):
            verify(INSTAR, asked, course)
        with pytest.raises(PermanentError, match="instar-serve says"):
            stage.apply(state, "conv", 2, "sha256:" + "0" * 64)
    finally:
        served.stop()
    assert served.process.returncode == 0


@pytest.mark.scenario
def test_a_turn_of_ours_measures_every_door_and_the_runtime_beside_it(
    course: Course, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contestants, "raw", lambda *_: Burst(1.0, 1.0, 1.0, 1.0, 0.0))
    ours = contestants.Ours()
    found = ours.turn(course, 0)
    cells = {Cell(model, form) for model in models.GRAPHS for form in ours.forms}
    alone = {cell for cell in cells if cell.form is not Form.GRPC}
    served = {(name, cell) for name in ours.names[1:] for cell in cells}
    assert set(found) == served | {(RAW, cell) for cell in alone}


def test_a_server_that_does_not_start_says_its_last_words(tmp_path: Path) -> None:
    with pytest.raises(PermanentError, match="it ended with 2; its last words"):
        stage.start(tmp_path, "conv", "--no-such-flag")


def test_a_flag_that_instar_serve_has_not_is_known() -> None:
    assert stage.supports("--spool-bytes")
    assert not stage.supports("--spool")
    assert not stage.supports("--no-such-flag")
