"""The same brief gives the same bytes: again, on two threads, and after a break at any moment."""

import itertools
import json
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from policies.terms import Brief, TriggerKind
from policies.wire import canonical
from search.admission import admit
from search.run import Run, Tools
from search.spaces import BUILTIN
from search.strategies import BUILTIN as STRATEGIES
from search.training import SNAPSHOT_EVERY
from tests.search import worlds
from tests.search.worlds import CLOUDS, Searched

_POLLS = 20_000
_POLL_S = 0.01


def _brief(folder: Path, **changed: object) -> Brief:
    """Return a brief whose steps are stated to be dear, so that no clock can cut it: some 60 steps."""
    brief = worlds.founding_brief(CLOUDS, folder, budget_cpu_s=40.0, **changed)
    profile = worlds.stated_profile(CLOUDS.space(worlds.BOTH), seconds_per_net=0.07)
    (folder / "dear.json").write_bytes(canonical(profile))
    return brief.model_copy(update={"profile": worlds.artefact(folder / "dear.json")})


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory) -> Searched:
    folder = tmp_path_factory.mktemp("unbroken")
    return worlds.run(_brief(folder), folder, folder / "out")


def _same(one: Searched, other: Searched) -> bool:
    ours, theirs = one.result, other.result
    return (ours.bundle, ours.state, ours.winner, ours.points, ours.architectures) == (
        theirs.bundle,
        theirs.state,
        theirs.winner,
        theirs.points,
        theirs.architectures,
    )


def test_the_same_brief_and_seed_give_the_same_genome_and_bytes_and_another_seed_does_not(tmp_path, unbroken):
    again, other = (
        worlds.run(_brief(tmp_path, seed=seed), tmp_path, tmp_path / f"out{seed}") for seed in (5, 6)
    )
    assert again.brief == unbroken.brief
    assert _same(again, unbroken)
    assert other.result.state != unbroken.result.state
    assert other.result.bundle != unbroken.result.bundle
    assert {one.name: one.value for one in again.result.evidence} == unbroken.evidence


def test_two_threads_give_the_bytes_of_one(tmp_path, unbroken):
    assert _same(worlds.run(_brief(tmp_path, threads=2), tmp_path, tmp_path / "out"), unbroken)


class _BrokenOffError(Exception):
    """What stands in for the end of the machine."""


def _kept(out: Path) -> dict[str, Any]:
    """Return the checkpoint that lies in a folder; an empty one where there is none yet."""
    try:
        kept: dict[str, Any] = json.loads((out / "checkpoint" / "checkpoint.json").read_bytes())
    except FileNotFoundError:
        return {"training": None, "rounds": 0, "trained": False}
    return kept


def _trained(steps: int) -> Callable[[dict[str, Any]], bool]:
    return lambda kept: kept["training"] is not None and kept["training"]["step"] >= steps


def _ready(kept: dict[str, Any]) -> bool:
    return bool(kept["trained"])


def _looked(kept: dict[str, Any]) -> bool:
    return bool(kept["rounds"] >= 2)


def _broken(brief: Brief, folder: Path, out: Path, when: Callable[[dict[str, Any]], bool]) -> None:
    """Search until the checkpoint says a moment, and break off there."""

    def cpu() -> float:
        if when(_kept(out)):
            raise _BrokenOffError
        return 0.0

    with pytest.raises(_BrokenOffError):
        worlds.run(brief, folder, out, cpu=cpu)
    assert not (out / "result.json").exists()


@pytest.mark.parametrize("when", [_trained(0), _trained(SNAPSHOT_EVERY), _ready, _looked])
def test_a_search_that_was_broken_off_ends_with_the_bytes_of_an_unbroken_one(tmp_path, unbroken, when):
    brief, out, said = _brief(tmp_path), tmp_path / "out", []
    _broken(brief, tmp_path, out, when)
    again = worlds.run(brief, tmp_path, out, say=said.append)
    assert "going on from the checkpoint" in said[0]
    assert _same(again, unbroken)
    assert {one.name: one.value for one in again.result.evidence} == unbroken.evidence
    assert not (out / "checkpoint").exists()


@pytest.mark.parametrize("when", [_trained(0), _looked])
def test_an_adaptation_that_was_broken_off_ends_with_the_bytes_of_an_unbroken_one(tmp_path, tabled, when):
    data = worlds.write_rows(CLOUDS, tmp_path / "data.npz", 400, 200, turned=True)
    brief = worlds.child_brief(tabled, CLOUDS, tmp_path, TriggerKind.DATA, data=data, budget_cpu_s=11.0)
    whole = worlds.run(brief, tmp_path, tmp_path / "whole")
    out = tmp_path / "out"
    _broken(brief, tmp_path, out, when)
    again = worlds.run(brief, tmp_path, out)
    assert _same(again, whole)
    assert again.evidence == whole.evidence


def test_what_was_used_before_the_break_counts_against_the_budget(tmp_path):
    brief, out = _brief(tmp_path), tmp_path / "out"
    ticks, broken = itertools.count(1), [False]

    def cpu() -> float:
        if not broken[0] and _looked(_kept(out)):
            broken[0] = True
            raise _BrokenOffError
        return next(ticks) * 0.01

    with pytest.raises(_BrokenOffError):
        worlds.run(brief, tmp_path, out, cpu=cpu)
    used_s = _kept(out)["cpu_s"]
    assert used_s > 0
    again = worlds.run(brief, tmp_path, out, cpu=lambda: 1.0)
    assert again.result.cpu_s == pytest.approx(used_s + 1.0)
    assert again.result.phases_s["train"] > 0


@pytest.fixture(scope="module")
def half(tmp_path_factory) -> tuple[Brief, Path]:
    """A search that was broken off while it trained: its brief, and its folder."""
    folder = tmp_path_factory.mktemp("half")
    brief = _brief(folder)
    _broken(brief, folder, folder / "out", _trained(SNAPSHOT_EVERY))
    return brief, folder


def _goes_on(brief: Brief, folder: Path, out: Path, strategy: str = "nsga2") -> bool:
    """Tell whether a search would go on from what lies in a folder."""
    said: list[str] = []
    Run(
        admit(brief, folder, BUILTIN),
        out,
        Tools(STRATEGIES[strategy], worlds.standing, worlds.standing, said.append),
    )
    return any("going on from the checkpoint" in line for line in said)


def _flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


def _flip_tensors(folder: Path) -> None:
    _flip(next(folder.glob("*.safetensors")))


def _cut_text(folder: Path) -> None:
    path = folder / "checkpoint.json"
    path.write_bytes(path.read_bytes()[:-20])


def _lose_tensors(folder: Path) -> None:
    next(folder.glob("*.safetensors")).unlink()


@pytest.mark.parametrize("harm", [_flip_tensors, _cut_text, _lose_tensors])
def test_a_checkpoint_that_is_broken_is_not_taken_up(tmp_path, half, harm):
    brief, folder = half
    out = tmp_path / "out"
    shutil.copytree(folder / "out", out)
    assert _goes_on(brief, folder, out)
    harm(out / "checkpoint")
    assert not _goes_on(brief, folder, out)


def test_a_checkpoint_of_another_brief_or_another_strategy_is_not_taken_up(half):
    brief, folder = half
    assert _goes_on(brief, folder, folder / "out")
    assert not _goes_on(brief.model_copy(update={"seed": 6}), folder, folder / "out")
    for strategy in STRATEGIES.keys() - {"nsga2"}:
        assert not _goes_on(brief, folder, folder / "out", strategy)


def test_a_checkpoint_of_other_libraries_is_not_taken_up(half, monkeypatch):
    brief, folder = half
    monkeypatch.setattr("torch.__version__", "another")
    assert not _goes_on(brief, folder, folder / "out")
    monkeypatch.undo()
    assert _goes_on(brief, folder, folder / "out")


def test_a_search_over_a_broken_checkpoint_begins_anew_and_comes_to_the_same_end(tmp_path, half, unbroken):
    brief, folder = half
    shutil.copytree(folder, tmp_path / "copy")
    out, said = tmp_path / "copy" / "out", []
    _flip_tensors(out / "checkpoint")
    again = worlds.run(brief, tmp_path / "copy", out, say=said.append)
    assert not any("going on" in line for line in said)
    assert _same(again, unbroken)


def test_a_worker_that_was_killed_in_training_goes_on_and_ends_with_the_bytes_of_an_unbroken_one(
    tmp_path, unbroken
):
    brief, out = _brief(tmp_path), tmp_path / "out"
    (tmp_path / "brief.json").write_bytes(canonical(brief))
    command = [*worlds.COMMAND, str(tmp_path / "brief.json"), str(out)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as worker:
        for _ in range(_POLLS):
            if _trained(SNAPSHOT_EVERY)(_kept(out)):
                break
            try:
                worker.wait(_POLL_S)
            except subprocess.TimeoutExpired:
                continue
            pytest.fail(f"the worker ended by itself, with {worker.returncode}")
        worker.kill()
    assert worker.returncode == -signal.SIGKILL
    assert not (out / "result.json").exists()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "going on from the checkpoint" in done.stdout
    for name in ("bundle.onnx", "state.safetensors"):
        assert (out / name).read_bytes() == (unbroken.out / name).read_bytes()
