"""Good policy files are read; each bad twin is refused with the key, the clause and the line."""

import re
from pathlib import Path

import pytest

from policies.document import load, load_task, parse
from policies.errors import PolicyError

ROOT = Path(__file__).parents[2]
GOOD = sorted((ROOT / "policies" / "profiles").glob("*.toml"))
EXAMPLE = ROOT / "examples" / "meter-reader" / "policy.toml"
TEXT = EXAMPLE.read_text()

# A mistake: what is replaced, by what, and the refusal that must come. LINE stands for the true line.
BAD = {
    "a missing threshold": (
        "max_p99_ms = 25.0\n",
        "\n",
        r"modification_protocol\.evaluation\.latency\.max_p99_ms \(MP-5\.4\): missing",
        "[modification_protocol.evaluation.latency]",
    ),
    "an unknown key": (
        "share = 0.3\n",
        "share = 0.3\nshaer = 0.5\n",
        r"probation\.steps\.1\.shaer \(MP-7\): unknown key",
        "shaer = 0.5",
    ),
    "a value out of bounds": (
        "warning_ratio = 0.6",
        "warning_ratio = 1.6",
        r"drift\.warning_ratio \(MP-2\.1\): .*less than 1.*got 1\.6",
        "warning_ratio = 1.6",
    ),
    "a text for a number": (
        "swaps_per_day = 6",
        'swaps_per_day = "6"',
        r"pace\.swaps_per_day \(DM-3\): .*integer",
        'swaps_per_day = "6"',
    ),
    "a margin that the gate cannot show": (
        'clause = "MP-5.6"\nmargin = 0.03',
        'clause = "MP-5.6"\nmargin = 0.01',
        r"incumbent\.margin \(MP-5\.6\): a margin of 0\.01 .* needs 6183 gate rows",
        "margin = 0.01",
    ),
    "a false-alarm budget that the reference cannot carry": (
        "false_alarm_every = 50000",
        "false_alarm_every = 5000000",
        r"false_alarm_every \(MP-2\.1\): .*cannot be calibrated on 5000 reference rows",
        "false_alarm_every = 5000000",
    ),
    "shares that do not sum to one": (
        "gate_share = 0.38",
        "gate_share = 0.48",
        r"data \(MP-1\): .*sum to 1, got 1\.1",
        "[modification_protocol.data]",
    ),
    "a quorum that nobody can reach": (
        "quorum = 1",
        "quorum = 2",
        r"approval \(MP-6\): .*quorum of at most 1 people, got 2",
        "[modification_protocol.approval]",
    ),
    "a clause id used twice": (
        'clause = "MP-5.3"',
        'clause = "MP-5.2"',
        r"constraints\.clause \(MP-5\.2\): id already used by .*parity",
        'clause = "MP-5.2"\nmax_params',
    ),
    "a rule for a level that is none": (
        '{ monitor = "errors", level = "alarm" }',
        '{ monitor = "errors", level = "quiet" }',
        r"trigger\.rules\.0\.all_of\.1\.level \(MP-3\.1\)",
        "all_of = [",
    ),
    "steps whose shares do not grow": (
        "share = 0.5\nmin_requests",
        "share = 0.3\nmin_requests",
        r"probation \(MP-7\): .*shares that grow from step to step, got \[0\.1, 0\.3, 0\.3\]",
        "[modification_protocol.probation]",
    ),
    "a step that gives all": (
        "share = 0.5\nmin_requests",
        "share = 1.0\nmin_requests",
        r"probation\.steps\.2\.share \(MP-7\): .*less than 1",
        "share = 1.0",
    ),
    "not TOML": ("format = 1", "format = = 1", r"expected TOML, got .*line 8", None),
    "an infinite threshold": ("hold_s = 2.0", "hold_s = inf", r"hold_s \(MP-3\.1\)", "hold_s = inf"),
}


@pytest.mark.parametrize("path", [*GOOD, EXAMPLE], ids=lambda p: p.stem)
def test_a_good_policy_is_read(path: Path) -> None:
    policy, digest = load(path)
    assert digest.startswith("sha256:")
    assert policy.format == 1


def test_the_four_profiles_are_there() -> None:
    assert [path.stem for path in GOOD] == ["cautious", "default", "edge", "regulated"]


@pytest.mark.parametrize("mistake", BAD)
def test_a_bad_policy_is_refused_by_key_clause_and_line(mistake: str) -> None:
    old, new, expected, marker = BAD[mistake]
    assert old in TEXT
    text = TEXT.replace(old, new, 1)
    with pytest.raises(PolicyError) as caught:
        parse(text, "policy.toml")
    message = str(caught.value)
    assert re.search(expected, message), message
    if marker is not None:
        line = text[: text.index(marker)].count("\n") + 1
        assert f"policy.toml, line {line}:" in message


def test_every_threshold_must_be_said() -> None:
    """Remove each key in turn: none has a silent default."""
    lines = TEXT.splitlines()
    keys = [n for n, line in enumerate(lines) if re.match(r"^[a-z0-9_]+ = (?!\[$)", line)]
    assert len(keys) > 80
    for number in keys:
        text = "\n".join(lines[:number] + lines[number + 1 :])
        with pytest.raises(PolicyError, match=lines[number].split(" = ")[0]):
            parse(text)


def test_an_edit_of_a_comment_changes_the_digest(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_text(TEXT)
    first = load(path)[1]
    path.write_text(TEXT.replace("# The law", "# the law"))
    assert load(path)[1] != first


def test_a_file_that_is_not_there_is_a_policy_error(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="expected a readable UTF-8 policy file"):
        load(tmp_path / "none.toml")
    with pytest.raises(PolicyError, match="expected a readable TOML task file"):
        load_task(tmp_path / "none.toml")


def test_a_task_with_an_unknown_key_is_refused_by_line(tmp_path: Path) -> None:
    path = tmp_path / "task.toml"
    path.write_text('name = "a"\nmodality = "image"\nmodle = "a"\n')
    with pytest.raises(PolicyError, match=r"line 3: modle \(task\)"):
        load_task(path)
