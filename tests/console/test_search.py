"""A search without a daemon, as a person meets it: the console's door, and the words of the search itself."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from daemon.console import searching
from policies.errors import PermanentError
from policies.terms import Artefact, Evidence, Point, SearchResult
from policies.wire import canonical, digest_bytes
from search import __main__ as door
from search.admission import read_brief
from search.space import to_genome
from search.spaces import BUILTIN as SPACES

# -- the console ------------------------------------------------------------------------------------------


@pytest.fixture
def order(tmp_path: Path) -> Path:
    path = tmp_path / "order.toml"
    path.touch()
    return path


@pytest.fixture
def puppet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Return what puts a program of the test in the place of ``python -m search``."""

    def put(text: str) -> None:
        (tmp_path / "search").mkdir()
        (tmp_path / "search" / "__init__.py").touch()
        (tmp_path / "search" / "__main__.py").write_text(text)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    return put


KEEPS_ARGV = """
import json, pathlib, sys
pathlib.Path(__file__).with_name("argv.json").write_text(json.dumps(sys.argv[1:]))
"""


def test_the_search_gets_what_the_person_said(
    instar: Any, order: Path, puppet: Callable[[str], None]
) -> None:
    puppet(KEEPS_ARGV)
    argv = order.parent / "search" / "argv.json"
    assert instar("search", "run", str(order)).code == 0
    assert json.loads(argv.read_text()) == ["run", str(order)]
    options = ["--out", "there", "--strategy", "uniform", "--json"]
    assert instar("search", "run", str(order), *options).code == 0
    assert json.loads(argv.read_text()) == ["run", str(order), *options]


def test_a_folder_named_search_where_the_person_stands_is_not_taken_for_ours(
    instar: Any, order: Path, puppet: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    puppet("import sys; sys.exit(9)")
    assert instar("search", "run", str(order)).code == 9, "the puppet is there"
    monkeypatch.delenv("PYTHONPATH")
    monkeypatch.chdir(order.parent)
    assert instar("search", "run", str(order)).code == door.REFUSED


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("import sys; sys.exit(0)", 0),
        ("import sys; sys.exit(3)", 3),
        ("import sys; sys.exit(130)", 130),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", 137),
    ],
)
def test_the_exit_code_of_the_search_is_the_consoles(
    instar: Any, order: Path, puppet: Callable[[str], None], text: str, code: int
) -> None:
    puppet(text)
    assert instar("search", "run", str(order)).code == code


@pytest.mark.parametrize("argv", [[], ["run"], ["run", "nowhere.toml"], ["run", "--bogus"], ["walk"]])
def test_a_wrong_call_is_usage_and_starts_nothing(
    instar: Any, argv: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(searching, "_attended", lambda command: pytest.fail(f"started {command}"))
    assert instar("search", *argv).code == 64


def test_help_says_what_is_left_and_what_the_exit_codes_mean(instar: Any) -> None:
    assert "Pareto" in instar("search", "--help").out
    shown = instar("search", "run", "--help").out
    assert all(word in shown for word in ("ORDER", "--out", "--json", "130", "refused"))


WAITS = """
import signal, sys

# Held back until it is waited for: between a print and a pause one could be lost.
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
print("ready", flush=True)
signal.sigwait({signal.SIGINT})
sys.exit(130)
"""


@pytest.mark.parametrize("whole_group", [False, True])
def test_ctrl_c_reaches_the_search_whoever_gets_it_first(
    order: Path, puppet: Callable[[str], None], whole_group: bool
) -> None:
    puppet(WAITS)
    # A shell that starts a run in the background has it ignore Ctrl-C, and that is inherited.
    heeds = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    run = f"{heeds}; import sys; from daemon.console.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", run]
    with subprocess.Popen(
        [*command, "search", "run", str(order)], stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as console:
        assert console.stdout is not None
        assert console.stdout.readline() == "ready\n"
        if whole_group:
            os.killpg(console.pid, signal.SIGINT)
        else:
            console.send_signal(signal.SIGINT)
        try:
            assert console.wait(timeout=60) == 130
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(console.pid, signal.SIGKILL)


# -- the search's own words -------------------------------------------------------------------------------

TASK = """
name = "dials"
modality = "table"
model = "dials"
classes = ["low", "high"]
group_parameter = "id"
sources = []
augmentation = {}
[input]
name = "reading"
datatype = "FP32"
shape = [-1, 4]
"""

ORDER = """
task = "task.toml"
seed = 3
budget_cpu_s = 20
profile = "costs.json"
[data]
path = "rows.npz"
[limits]
max_params = 1000
max_size_bytes = 20000
max_p99_ms = 2.0
"""

LATER = ORDER.replace("seed = 3", 'seed = 3\nkind = "data"\nparent = "order-result"').replace(
    "[limits]", "[limits]\nmax_edit_distance = 4"
)


def _searched(brief: Path, out: Path, tools: Any) -> SearchResult:
    """Stand in for a whole search: leaves what one leaves, and finds a largest and a smallest network."""
    asked = read_brief(brief)
    space = SPACES[asked.task.modality](asked.task, asked.precisions)
    tools.say("   1.0 CPU-s  train: step 0 of 9")
    files = {}
    for name in ("bundle.onnx", "state.safetensors", "archive.json", "profile.json"):
        (out / name).write_bytes(name.encode())
        files[name] = Artefact(path=name, digest=digest_bytes(name.encode()))
    points = tuple(
        Point(genome=to_genome(space, genes), accuracy=accuracy, latency_ms=ms, params=params, measured=True)
        for genes, accuracy, ms, params in ((space.largest, 0.9, 0.2, 4321), (space.smallest, 0.8, 0.1, 123))
    )
    evidence = [Evidence(name="accuracy_search", value=0.9, unit="share", n=40)]
    if asked.parent_genome is not None:
        evidence.append(Evidence(name="accuracy_before", value=0.625, unit="share", n=40))
    result = SearchResult(
        brief=asked.id,
        seed=asked.seed,
        winner=points[0].genome,
        bundle=files["bundle.onnx"],
        state=files["state.safetensors"],
        archive=files["archive.json"],
        evidence=tuple(evidence),
        points=points,
        cpu_s=19.0,
        wall_s=9.0,
        architectures=55,
        versions={},
        phases_s={},
    )
    (out / "result.json").write_bytes(canonical(result))
    return result


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with two orders, in which a search takes no time."""
    (tmp_path / "task.toml").write_text(TASK)
    (tmp_path / "order.toml").write_text(ORDER)
    (tmp_path / "later.toml").write_text(LATER)
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "rows.npz", x=rng.normal(size=(80, 4)).astype(np.float32), y=rng.integers(0, 2, 80))
    monkeypatch.setattr(door, "search", _searched)
    return tmp_path


@pytest.fixture(autouse=True)
def _signals() -> Any:
    """Leave the handling of Ctrl-C as it was."""
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_search_shows_its_phases_its_front_and_where_its_files_lie(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert door.main(["run", str(folder / "order.toml")]) == 0
    seen = capsys.readouterr()
    assert "train: step 0 of 9" in seen.err
    assert "0.9000" in seen.out
    assert "4,321" in seen.out
    assert "fp32" in seen.out
    assert "incumbent" not in seen.out
    assert "no slower" not in seen.out
    out = folder / "order-result"
    for name in ("result.json", "bundle.onnx", "pareto.svg", "profile.json"):
        assert str(out / name) in seen.out
        assert (out / name).is_file()
    assert "winner: 0.9000 at 0.2 ms" in (out / "pareto.svg").read_text()


def test_costs_measured_by_a_first_search_are_in_the_brief_of_the_second(folder: Path) -> None:
    command = ["run", str(folder / "order.toml"), "--json"]
    assert door.main(command) == 0
    first = read_brief(folder / "order-result" / "brief.json")
    assert door.main(command) == 0
    second = read_brief(folder / "order-result" / "brief.json")
    assert first.profile is None
    assert second == first.model_copy(
        update={"profile": Artefact(path="../costs.json", digest=digest_bytes(b"profile.json"))}
    )


def test_a_later_search_shows_its_winner_beside_the_incumbent(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    door.main(["run", str(folder / "order.toml")])
    capsys.readouterr()
    assert door.main(["run", str(folder / "later.toml")]) == 0
    seen = capsys.readouterr().out
    assert "winner     accuracy 0.9000 at 0.2 ms" in seen
    assert "incumbent  accuracy 0.6250 at 0.2 ms" in seen
    assert "no slower  accuracy 0.9000 at 0.2 ms" in seen
    assert "incumbent: 0.6250" in (folder / "later-result" / "pareto.svg").read_text()


def test_a_search_without_labels_shows_no_front_and_no_picture(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refreshed(brief: Path, out: Path, tools: Any) -> SearchResult:
        found = _searched(brief, out, tools)
        points = tuple(point.model_copy(update={"measured": False}) for point in found.points)
        return found.model_copy(update={"points": points})

    monkeypatch.setattr(door, "search", refreshed)
    assert door.main(["run", str(folder / "order.toml")]) == 0
    assert "nothing could be ranked" in capsys.readouterr().out
    assert not (folder / "order-result" / "pareto.svg").exists()


def test_json_is_the_result_and_nothing_else(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = folder / "elsewhere"
    assert door.main(["run", str(folder / "order.toml"), "--out", str(out), "--json"]) == 0
    found = capsys.readouterr().out
    assert SearchResult.model_validate_json(found).architectures == 55
    assert found.encode() == (out / "result.json").read_bytes() + b"\n"


def test_a_refused_search_exits_3_with_its_reason_and_leaves_no_older_success(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["run", str(folder / "order.toml"), "--json"]
    assert door.main(command) == 0
    capsys.readouterr()

    def refuse(*_: object) -> SearchResult:
        raise PermanentError("expected a wider limit")

    monkeypatch.setattr(door, "search", refuse)
    assert door.main(command) == 3
    seen = capsys.readouterr()
    assert (seen.out, seen.err) == ("", "refused: expected a wider limit\n")
    out = folder / "order-result"
    assert json.loads((out / "refusal.json").read_bytes()) == {"reason": "expected a wider limit"}
    assert not (out / "result.json").exists()
    monkeypatch.setattr(door, "search", _searched)
    assert door.main(command) == 0
    assert not (out / "refusal.json").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("seed = 3", "speed = 3"), "speed: unknown key"),
        (("rows.npz", "no.npz"), "no.npz"),
        (('profile = "costs.json"', 'profile = "costs.json"\nkind = "data"'), "parent: expected the folder"),
    ],
)
def test_an_order_with_a_mistake_is_refused_before_any_search(
    folder: Path, capsys: pytest.CaptureFixture[str], change: tuple[str, str], said: str
) -> None:
    (folder / "bad.toml").write_text(ORDER.replace(*change))
    assert door.main(["run", str(folder / "bad.toml")]) == 3
    assert said in capsys.readouterr().err
    assert not (folder / "bad-result" / "result.json").exists()


def test_a_folder_for_the_result_that_is_a_file_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert door.main(["run", str(folder / "order.toml"), "--out", str(folder / "task.toml")]) == 3
    assert "expected a folder for the result" in capsys.readouterr().err


@pytest.mark.parametrize("kept", [False, True])
def test_ctrl_c_ends_with_130_and_says_how_to_go_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kept: bool
) -> None:
    ended = []

    def stopped(_: Path, out: Path, tools: Any) -> SearchResult:
        if kept:
            (out / "checkpoint").touch()
        try:
            signal.raise_signal(signal.SIGINT)
        finally:
            # Once more, from a console that stands before us: it must not break into the ending.
            signal.raise_signal(signal.SIGINT)
            ended.append("whole")
        return pytest.fail("went on")

    monkeypatch.setattr(door, "search", stopped)
    assert door.main(["run", str(folder / "order.toml")]) == 130
    assert ended == ["whole"]
    seen = capsys.readouterr().err
    assert "stopped; the same command" in seen
    assert ("goes on from" in seen) is kept
    assert not (folder / "order-result" / "result.json").exists()
