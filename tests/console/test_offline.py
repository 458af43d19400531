"""The verbs that need no running process: ``check`` and ``audit verify``."""

import sqlite3
from pathlib import Path
from typing import Any

import pytest

from daemon.store.journal import Journal
from guards.signing import make_key, sign
from policies.document import load

PROFILE = Path(__file__).parents[2] / "policies" / "profiles" / "default.toml"


def write_policy(folder: Path, *edits: tuple[str, str]) -> Path:
    text = PROFILE.read_text(encoding="utf-8")
    for old, new in edits:
        assert old in text
        text = text.replace(old, new, 1)
    path = folder / "policy.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_good_policy_passes_and_says_what_its_margins_take(instar: Any, tmp_path: Path) -> None:
    path = write_policy(tmp_path)
    seen = instar("check", str(path))
    assert seen.code == 0
    assert "no fault found" in seen.out
    assert "signature was not checked" in seen.out
    data = instar("check", str(path), "--json").json()
    assert data["digest"] == load(path)[1]
    assert set(data["required_rows"]) == {"incumbent", "baseline", "retention"}
    assert all(rows > 0 for rows in data["required_rows"].values())


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("format = 1", "format = 2", ["format", "line 8"]),
        ("swaps_per_day = 4", "", ["swaps_per_day", "DM-3", "there is no default"]),
        ("swaps_per_day = 4", "swaps_per_day = 4\nswap = 1", ["pace.swap", "unknown key"]),
        ("[description_of_modifications]", "[description", ["expected TOML"]),
    ],
)
def test_a_bad_twin_exits_2_and_names_key_clause_and_line(
    instar: Any, tmp_path: Path, old: str, new: str, words: list[str]
) -> None:
    path = write_policy(tmp_path, (old, new))
    seen = instar("check", str(path))
    assert seen.code == 2
    for word in [*words, str(path)]:
        assert word in seen.out
    assert instar("check", str(path), "--json").json()["faults"]


def test_a_policy_that_is_not_there_is_a_fault(instar: Any, tmp_path: Path) -> None:
    assert instar("check", str(tmp_path / "none.toml")).code == 2


def test_a_policy_must_fit_the_task(instar: Any, tmp_path: Path) -> None:
    path = write_policy(tmp_path)
    task = tmp_path / "task.toml"
    body = """name = "{name}"
modality = "image"
model = "m"
classes = ["a", "b"]
group_parameter = "group"
input = {{ name = "image", datatype = "UINT8", shape = [-1, 28, 28] }}
sources = [{{ path = "x.npz", first = 0, last = 10 }}]
augmentation = {{ rotate_deg = 1.0, shift_px = 1.0, scale = 0.1, gain = 0.1, noise = 0.1 }}
"""
    task.write_text(body.format(name="my-task"))
    assert instar("check", str(path), "--task", str(task)).code == 0
    task.write_text(body.format(name="other-task"))
    seen = instar("check", str(path), "--task", str(task))
    assert seen.code == 2
    assert "expected task 'other-task'" in seen.out


def test_a_signature_is_checked_against_the_named_signers(instar: Any, tmp_path: Path) -> None:
    path = write_policy(tmp_path)
    approver = load(path)[0].modification_protocol.approval.approvers[0]
    key, signers = tmp_path / "key", tmp_path / "signers"
    make_key(key, approver)
    public = key.with_name("key.pub").read_text(encoding="utf-8").split()
    signers.write_text(f"{approver} {public[0]} {public[1]}\n")
    order = ["check", str(path), "--signers", str(signers)]
    assert instar(*order).code == 2, "no signature file yet"
    armored = sign(key.read_bytes(), path.read_bytes(), "instar-policy@v1")
    path.with_name("policy.toml.sig").write_text(armored)
    seen = instar(*order)
    assert seen.code == 0, seen
    assert f"signed by {approver}" in seen.out
    assert "approver bob has no key" in seen.out
    signers.write_text(f"somebody {public[0]} {public[1]}\n")
    seen = instar(*order)
    assert seen.code == 2
    assert "expected keys of at least 1 of alice, bob, found 0" in seen.out
    path.write_text(path.read_text(encoding="utf-8") + "# one comment more\n", encoding="utf-8")
    assert instar(*order).code == 2, "the bytes are the law"


def test_audit_verify_exits_0_on_what_was_written_and_2_with_the_place_on_what_was_not(
    instar: Any, control: Any
) -> None:
    journal = Journal(control.state / "journal.db")
    for number in range(5):
        journal.append("signal", {"n": number}, 1.0 + number)
    journal.close()
    seen = instar("audit", "verify")
    assert seen.code == 0
    assert "5 entries, every link holds" in seen.out
    with sqlite3.connect(control.state / "journal.db") as database:
        table = database.execute("SELECT name FROM sqlite_master WHERE type='table'").fetchone()[0]
        database.execute(f"UPDATE {table} SET kind = 'thaw' WHERE seq = 3")
    database.close()
    seen = instar("audit", "verify", "--json")
    assert seen.code == 2
    assert seen.json()["valid"] is False
    assert seen.json()["seq"] == 3
    assert "entry 3" in instar("audit", "verify").out


def test_audit_verify_without_a_journal_is_an_error(instar: Any) -> None:
    seen = instar("audit", "verify")
    assert seen.code == 1
    assert "expected a journal at" in seen.err
