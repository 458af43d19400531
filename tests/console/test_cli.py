"""The command ``instar`` against a control plane that is only its socket: answers, exit codes, sentences."""

import json
import os
import re
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from daemon.console import cli
from daemon.console.client import Unreachable
from daemon.console.options import state_of
from policies.errors import PermanentError
from policies.status import Status
from policies.terms import Level

ESCAPE = "\x1b["


def test_status_of_a_healthy_task_exits_0_and_says_what_is_served(instar: Any, control: Any) -> None:
    seen = instar("status")
    assert seen.code == 0, seen
    assert "meter-reader · watching · ok" in seen.out
    assert "generation 1 of meter-reader" in seen.out
    assert "2 h 1 min ago" in seen.out
    assert "chain verified" in seen.out
    assert "DEMO KEY" not in seen.out


def test_status_shows_alarm_open_candidate_remedy_and_the_demo_key(
    instar: Any, control: Any, made: Any
) -> None:
    control.status = made.busy_status()
    seen = instar("status")
    assert seen.code == 2
    assert "DEMO KEY" in seen.out
    assert re.search(r"drift +██████████ 2\.31 alarm", seen.out)
    assert "adapt-1800000000 CLEARED" in seen.out
    assert "→ instar approve adapt-1800000000 --key KEY" in seen.out


@pytest.mark.parametrize(
    ("change", "code", "word"),
    [
        ({"serving": "unreachable"}, 2, "the data plane is not well"),
        ({"journal_valid": False}, 2, "the journal does not verify"),
        ({"journal_valid": None}, 2, "not been verified"),
        ({"policy_problem": "policy.toml, line 3: expected 1"}, 2, "line 3"),
        ({"generation": None, "bundle": None}, 2, "no generation is live"),
        ({"drift": Level.UNKNOWN, "signals": ()}, 2, "every monitor does not know"),
        ({"drift": Level.UNKNOWN, "signals": (), "phase": "commissioning"}, 0, "attention"),
        ({"newcomer_share": 0.2}, 0, "newcomer gets 20% of the traffic"),
    ],
)
def test_status_exits_2_on_what_is_bad_or_unknown(
    instar: Any, control: Any, made: Any, change: dict[str, Any], code: int, word: str
) -> None:
    control.status = made.status(**change)
    seen = instar("status")
    assert seen.code == code
    assert word in seen.out


def test_a_freeze_wants_attention_and_is_no_fault(instar: Any, control: Any, made: Any) -> None:
    control.status = made.frozen_status()
    seen = instar("status")
    assert seen.code == 0
    assert "attention" in seen.out
    assert "by ada: the camera is being moved" in seen.out


def test_status_as_json_is_the_term_itself(instar: Any, control: Any) -> None:
    seen = instar("status", "--json")
    assert Status.model_validate_json(seen.out) == control.status
    assert seen.err == ""


def test_no_answer_exits_3_and_names_the_socket(instar: Any, tmp_path: Path) -> None:
    seen = instar("status", "--state", str(tmp_path / "elsewhere"))
    assert seen.code == 3
    assert "elsewhere/run/control.sock" in seen.err
    assert "is it running" in seen.err
    assert seen.out == ""


def test_an_order_whose_receipt_was_lost_is_never_called_not_taken(instar: Any, control: Any) -> None:
    control.answers["/v1/freeze"] = (0, None)
    seen = instar("freeze", "--reason", "a reason long enough")
    assert seen.code == 3
    assert "may have been taken" in seen.err
    control.answers["/v1/status"] = (0, None)
    assert "may have been taken" not in instar("status").err


def test_an_answer_of_another_version_is_an_error_that_says_so(instar: Any, control: Any) -> None:
    control.answers["/v1/status"] = (200, {"task": "meter-reader", "surprise": 1})
    seen = instar("status")
    assert seen.code == 1
    assert "have the same version" in seen.err


def test_control_failing_without_a_sentence_is_told_as_such(instar: Any, control: Any) -> None:
    control.answers["/v1/status"] = (500, b"<html>oops</html>")
    seen = instar("status")
    assert seen.code == 1
    assert "HTTP 500 without one" in seen.err


def test_candidates_and_show_find_an_id_by_its_beginning(instar: Any, control: Any, made: Any) -> None:
    assert "no candidate yet" in instar("candidates").out
    control.candidates = [made.candidate(), made.candidate("founding-1", "LIVE", generation=1)]
    control.subject = made.subject(control.candidates[0])
    listed = instar("candidates").out
    assert "adapt-1800000000" in listed
    assert "3/3 pass" in listed
    shown = instar("show", "adapt")
    assert shown.code == 0
    assert "p99 0.41 ms, limit 5 (n=400)" in shown.out
    assert made.digest_of("bundle") in shown.out
    assert instar("show", "adapt", "--json").json()["subject"]["nonce"] == "0123456789abcdef"


def test_an_id_that_fits_none_is_an_error_with_controls_sentence(instar: Any) -> None:
    seen = instar("show", "zzz")
    assert seen.code == 1
    assert "'zzz' to name one candidate" in seen.err


@pytest.mark.parametrize("name", ["../status", "..", "a b", "a?x=1", ""])
def test_an_id_never_becomes_another_address(instar: Any, control: Any, name: str) -> None:
    control.answers["/v1/status"] = (200, {"candidate": "not reached"})
    seen = instar("show", "--", name)
    assert seen.code == 1
    assert "expected a candidate's id or its beginning" in seen.err


def test_history_shows_the_last_entries_in_order(instar: Any, control: Any) -> None:
    found = instar("history", "--limit", "3", "--json").json()
    assert [entry["seq"] for entry in found] == [59, 60, 61]
    assert "candidate.moved" in instar("history").out


def test_history_goes_on_from_a_sequence_number(instar: Any) -> None:
    found = instar("history", "--after", "7", "--limit", "2", "--json").json()
    assert [entry["seq"] for entry in found] == [8, 9]


def test_history_of_a_kind_shows_the_last_of_that_kind_over_all_blocks(
    instar: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "_PAGE", 4)
    found = instar("history", "--kind", "candidate.moved", "--limit", "6", "--json").json()
    assert [entry["seq"] for entry in found] == [45, 48, 51, 54, 57, 60]


@pytest.mark.parametrize(
    "argv",
    [
        ["status", "--bogus"],
        ["nonsense"],
        ["freeze"],
        ["freeze", "--reason", "short"],
        ["freeze", "--reason", "          "],
        ["history", "--limit", "0"],
        ["rollback", "--to", "0", "--reason", "a reason long enough"],
        [],
    ],
)
def test_usage_exits_64_and_nothing_is_ordered(instar: Any, control: Any, argv: list[str]) -> None:
    assert instar(*argv).code == 64
    assert control.told == []


@pytest.mark.parametrize(
    ("argv", "path", "extra"),
    [
        (["freeze"], "/v1/freeze", {}),
        (["thaw"], "/v1/thaw", {}),
        (["rollback"], "/v1/rollback", {}),
        (["rollback", "--to", "3"], "/v1/rollback", {"to": 3}),
    ],
)
def test_orders_carry_name_and_reason_and_print_the_entry(
    instar: Any, control: Any, argv: list[str], path: str, extra: dict[str, int]
) -> None:
    seen = instar(*argv, "--reason", "the camera is being moved", "--by", "ada")
    assert seen.code == 0
    assert "journal entry 62" in seen.out
    assert control.told == [(path, {"by": "ada", "reason": "the camera is being moved"} | extra)]
    again = instar(*argv, "--reason", "the camera is being moved", "--by", "ada", "--json")
    assert again.json() == {"seq": 62}


@pytest.mark.parametrize(("http", "code"), [(409, 2), (403, 2), (422, 2), (503, 1), (500, 1)])
def test_a_refused_order_exits_2_and_a_failed_one_1(instar: Any, control: Any, http: int, code: int) -> None:
    control.answers["/v1/thaw"] = (http, {"error": "expected a frozen system, it is not frozen"})
    seen = instar("thaw", "--reason", "a reason long enough")
    assert seen.code == code
    assert "expected a frozen system" in seen.err


def test_policy_reload_tells_what_is_in_force_or_why_not(instar: Any, control: Any) -> None:
    assert "policy version 4 is in force" in instar("policy", "reload").out
    control.answers["/v1/policy/reload"] = (422, {"error": "policy.toml, line 7: missing"})
    seen = instar("policy", "reload")
    assert seen.code == 2
    assert "line 7" in seen.err


def test_a_reason_is_never_read_as_markup(instar: Any, control: Any, made: Any) -> None:
    control.candidates = [made.candidate(reason="[bold]not bold[/bold] [/nothing]")]
    assert "[bold]not bold[/bold] [/nothing]" in instar("show", "adapt").out
    control.answers["/v1/thaw"] = (409, {"error": "[red]plain[/red] [/x]"})
    assert "[red]plain[/red] [/x]" in instar("thaw", "--reason", "a reason long enough").err


def test_watch_goes_on_through_an_outage_until_a_person_stops_it(
    capsys: pytest.CaptureFixture[str], made: Any
) -> None:
    answers: Iterator[Any] = iter([made.status(), Unreachable("nobody answers"), made.busy_status()])

    def look() -> Status:
        answer = next(answers)
        if isinstance(answer, Unreachable):
            raise answer
        assert isinstance(answer, Status)
        return answer

    pauses = iter([None, None, KeyboardInterrupt])

    def pause() -> None:
        stop = next(pauses)
        if stop is not None:
            raise stop

    assert cli.follow(look, True, pause) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line.get("phase", line.get("error")) for line in lines] == [
        "watching",
        "nobody answers",
        "approval",
    ]


def test_no_color_is_honoured_and_colour_is_there_without_it(control: Any) -> None:
    def run(**extra: str) -> str:
        environment = {k: v for k, v in os.environ.items() if k not in {"NO_COLOR", "FORCE_COLOR"}}
        environment |= {
            "INSTAR_STATE": str(control.state),
            "TERM": "xterm-256color",
            "FORCE_COLOR": "1",
        } | extra
        command = [sys.executable, "-c", "import sys; from daemon.console.cli import main; sys.exit(main())"]
        done = subprocess.run(
            [*command, "status"], env=environment, capture_output=True, text=True, timeout=60, check=True
        )
        return done.stdout

    colour = re.compile(r"\x1b\[[0-9;]*3[0-9]")
    assert colour.search(run())
    assert not colour.search(run(NO_COLOR="1"))


def test_the_state_folder_is_a_local_one_before_the_systems(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert state_of(None) == Path("/var/lib/instar")
    (tmp_path / ".instar" / "demo").mkdir(parents=True)
    assert state_of(None) == Path(".instar")
    (tmp_path / ".instar" / "demo" / "journal.db").touch()
    assert state_of(None) == Path(".instar/demo")
    (tmp_path / ".instar" / "journal.db").touch()
    assert state_of(None) == Path(".instar")
    assert state_of(Path("x")) == Path("x")


def test_every_verb_has_help_and_json(instar: Any) -> None:
    verbs = ["status", "candidates", "show", "history", "approve", "decline", "rollback", "freeze", "thaw"]
    for argv in [[verb] for verb in verbs] + [
        ["check"],
        ["version"],
        ["policy", "reload"],
        ["audit", "verify"],
    ]:
        seen = instar(*argv, "--help")
        assert seen.code == 0
        assert "--json" in seen.out, argv
        assert len(seen.out.splitlines()) > 6


def test_version_names_the_distribution(instar: Any) -> None:
    assert instar("version", "--json").json()["version"] in instar("version").out


def test_the_demo_is_loaded_only_when_asked_for_and_brings_its_own_flags(
    instar: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, str]] = []

    def demo(rate: int = 100, drift: str = "tilt-fade", fail: bool = False) -> int:
        """Tell the story."""
        seen.append((rate, drift))
        if fail:
            raise PermanentError("port 8080 is in use")
        return 1 if rate == 1 else 0

    monkeypatch.setitem(sys.modules, "daemon.console.demo", None)  # type: ignore[arg-type]
    assert instar("version").code == 0, "no other verb needs it"
    stub = types.ModuleType("daemon.console.demo")
    monkeypatch.setattr(stub, "demo", demo, raising=False)
    monkeypatch.setitem(sys.modules, "daemon.console.demo", stub)
    assert instar("demo", "--rate", "7", "--drift", "noise").code == 0
    assert instar("demo", "--rate", "1").code == 1
    assert seen == [(7, "noise"), (1, "tilt-fade")]
    assert "--drift" in instar("demo", "--help").out
    assert instar("demo", "--bogus").code == 64
    failed = instar("demo", "--fail")
    assert failed.code == 1
    assert "port 8080 is in use" in failed.err
