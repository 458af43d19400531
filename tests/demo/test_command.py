"""The command's face: its flags, its refusals, and its exit status."""

import json
import socket
from pathlib import Path
from typing import Any

import pytest

from daemon.console import cli
from daemon.console.demo import command, table
from daemon.console.demo.footage import Share
from daemon.console.demo.result import Figures, Latency, faults
from tests.demo.world import wishes

FIGURES: dict[str, Any] = {
    "demo_key": True,
    "drift": "tilt-fade",
    "strength": 1.0,
    "seed": 1,
    "candidate": "c2-abc",
    "generation": 2,
    "before": Share(97, 100),
    "under": Share(64, 100),
    "after": Share(96, 100),
    "unseen_before": Share(64, 100),
    "unseen_after": Share(96, 100),
    "oracle": 0.97,
    "oracle_n": 800,
    "alarm_delay_requests": 100,
    "trigger_delay_requests": 2000,
    "false_alarms": 0,
    "false_triggers": 0,
    "quiet_requests": 4500,
    "founding_cpu_s": 110.0,
    "adaptation_cpu_s": 45.0,
    "oracle_cpu_s": 60.0,
    "sent": 20_000,
    "failed": 0,
    "unrecorded": 0,
    "latency": {"steady": Latency(1.0, 2.0, 4500), "search": None, "swap": None},
    "phases_s": {"all": 400.0},
    "journal_entries": 50,
    "journal_fault": None,
    "report": "/r.html",
    "journal": "/j.db",
    "stuck": None,
}


def test_help_names_every_flag(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["demo", "--help"]) == 0
    text = capsys.readouterr().out
    for flag in (
        *("--state", "--example", "--rate", "--drift", "--strength", "--budget", "--seed", "--quiet-s"),
        *("--wait-for-me", "--exit", "--keep", "--ports", "--no-color", "--json"),
    ):
        assert flag in text


def test_a_port_in_use_ends_the_demo_before_it_touches_anything(
    tmp_path: Path, example: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        argv = ["demo", "--state", str(tmp_path / "s"), "--example", str(example), "--ports", f"{port}/1/2"]
        assert cli.main(argv) == 1
    assert f"expected port {port} to be free for instar-serve" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(("failed", "status"), [(0, 0), (1, 1)])
def test_exit_status_is_0_only_if_the_loop_closed_and_json_says_why_not(
    tmp_path: Path, example: Path, monkeypatch: pytest.MonkeyPatch, failed: int, status: int
) -> None:
    flags = wishes(tmp_path / "s", example)
    scene = command.scenes.prepare(flags)
    figures = Figures(**(FIGURES | {"failed": failed}))
    monkeypatch.setattr(command, "_play", lambda *_: figures)
    out = tmp_path / "figures.json"
    assert command._run(scene, flags, command.terminal(), out) == status
    said = json.loads(out.read_text())
    assert said["faults"] == faults(figures)
    assert len(said["faults"]) == failed
    assert said["fall"] == pytest.approx(0.33)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("generation", None),
        ("sent", 0),
        ("unrecorded", 1),
        ("before", Share(0, 0)),
        ("after", Share(0, 0)),
        ("oracle", None),
        ("unseen_after", None),
        ("unseen_after", Share(80, 100)),
        ("journal_fault", "entry 3: changed"),
        ("stuck", "nothing came"),
    ],
)
def test_what_is_not_known_or_not_well_never_closes_the_loop(name: str, value: Any) -> None:
    assert faults(Figures(**FIGURES)) == []
    broken = Figures(**(FIGURES | {name: value}))
    assert len(faults(broken)) >= 1
    table.render(broken)
