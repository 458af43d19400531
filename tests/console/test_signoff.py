"""Approving and declining: what is signed, what is refused before it is signed, and what travels."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from daemon.console import orders, signoff
from guards.signing import Signers, make_key, verify_detached
from policies.terms import Approval
from policies.wire import canonical, digest_bytes

WHY = "I read the report and agree"


@pytest.fixture
def waiting(control: Any, made: Any) -> Any:
    """A control plane with one candidate that waits for a signature."""
    control.candidates = [made.candidate()]
    control.subject = made.subject(control.candidates[0])
    return control


@pytest.fixture
def key(tmp_path: Path) -> Path:
    """Ada's key, beside its public half."""
    path = tmp_path / "ada"
    make_key(path, "ada@example.org")
    return path


def signers(key: Path, principal: str) -> Signers:
    kind, text = key.with_name(key.name + ".pub").read_text(encoding="utf-8").split()[:2]
    return Signers.parse(f"{principal} {kind} {text}\n")


def handed_in(control: Any) -> tuple[str, str]:
    """Return the approval text and signature of the only order that control got."""
    assert [path for path, _ in control.told] == ["/v1/candidates/adapt-1800000000/approval"]
    body = control.told[0][1]
    assert set(body) == {"approval", "signature"}
    return body["approval"], body["signature"]


@pytest.mark.parametrize("verb", ["approve", "decline"])
def test_a_signature_covers_exactly_the_bytes_that_travel(
    instar: Any, waiting: Any, key: Path, verb: str
) -> None:
    seen = instar(verb, "adapt", "--key", str(key), "--reason", WHY, "--ttl", "60")
    assert seen.code == 0, seen
    assert "journal entry 62" in seen.out
    text, signature = handed_in(waiting)
    approval = Approval.model_validate_json(text)
    assert canonical(approval) == text.encode()
    assert (approval.decision, approval.principal, approval.reason) == (verb, "ada@example.org", WHY)
    assert approval.subject == waiting.subject
    assert approval.expires_at - approval.at == pytest.approx(60)
    trusted = signers(key, "ada@example.org")
    who = verify_detached(text.encode(), signature, trusted, "instar-approve@v1", approval.at)
    assert who == "ada@example.org"


def test_a_real_key_is_no_demo_key_and_a_demos_key_is_shouted_about(
    instar: Any, waiting: Any, key: Path
) -> None:
    assert "DEMO KEY" not in instar("approve", "adapt", "--key", str(key), "--reason", WHY).err
    (waiting.state / "demo").mkdir()
    make_key(waiting.state / "demo" / "approver", "UnsafeDemoApprover")
    waiting.told.clear()
    seen = instar("approve", "adapt", "--reason", WHY, "--json")
    assert seen.code == 0
    assert "DEMO KEY" in seen.err
    assert seen.json() == {"seq": 62, "state": "approved", "candidate": "adapt-1800000000"}
    assert Approval.model_validate_json(handed_in(waiting)[0]).principal == "UnsafeDemoApprover"


def test_nothing_is_signed_before_a_dossier_is_sealed(
    instar: Any, waiting: Any, made: Any, key: Path
) -> None:
    waiting.candidates = [made.candidate(stage="EXPORTED", dossier=None, reason="guards are at work")]
    waiting.subject = None
    seen = instar("approve", "adapt", "--key", str(key), "--reason", WHY)
    assert seen.code == 1
    assert "EXPORTED: guards are at work" in seen.err
    assert waiting.told == []


@pytest.mark.parametrize("field", ["candidate", "bundle", "dossier"])
def test_a_subject_of_something_else_is_not_signed(
    instar: Any, waiting: Any, made: Any, key: Path, field: str
) -> None:
    other = "adapt-2" if field == "candidate" else made.digest_of("other")
    waiting.subject = waiting.subject.model_copy(update={field: other})
    seen = instar("approve", "adapt", "--key", str(key), "--reason", WHY)
    assert seen.code == 1
    assert f"the subject's {field}" in seen.err
    assert waiting.told == []


def test_a_report_that_was_touched_after_the_guards_is_not_signed(
    instar: Any, waiting: Any, made: Any, key: Path
) -> None:
    report = waiting.state / "report.html"
    report.write_bytes(b"<h1>all is well</h1>")
    waiting.candidates = [made.candidate(report=str(report))]
    waiting.subject = made.subject(waiting.candidates[0], digest_bytes(report.read_bytes()))
    assert instar("approve", "adapt", "--key", str(key), "--reason", WHY).code == 0
    waiting.told.clear()
    report.write_bytes(b"<h1>all is very well</h1>")
    seen = instar("approve", "adapt", "--key", str(key), "--reason", WHY)
    assert seen.code == 1
    assert "not what the guards wrote" in seen.err
    assert waiting.told == []


@pytest.mark.parametrize(
    ("argv", "word"),
    [
        (["--reason", WHY], "--key PATH"),
        (["--key", "KEY"], "--reason"),
        (["--key", "KEY", "--reason", "short"], "10 characters"),
        (["--key", "KEY", "--reason", WHY, "--export", "x"], "several"),
        (["--key", "KEY", "--reason", WHY, "--ttl", "0"], "--ttl"),
        (["--export", "x", "--reason", WHY], "--principal"),
    ],
)
def test_what_is_missing_is_named_and_exits_64(
    instar: Any, waiting: Any, key: Path, argv: list[str], word: str
) -> None:
    seen = instar("approve", "adapt", *[str(key) if a == "KEY" else a for a in argv])
    assert seen.code == 64
    assert word in seen.err
    assert waiting.told == []


def test_a_key_without_a_public_half_needs_a_principal(instar: Any, waiting: Any, key: Path) -> None:
    key.with_name("ada.pub").unlink()
    assert instar("approve", "adapt", "--key", str(key), "--reason", WHY).code == 64
    seen = instar("approve", "adapt", "--key", str(key), "--reason", WHY, "--principal", "ada")
    assert seen.code == 0
    assert Approval.model_validate_json(handed_in(waiting)[0]).principal == "ada"


def test_a_key_that_cannot_be_used_is_an_error_with_a_way_out(
    instar: Any, waiting: Any, tmp_path: Path
) -> None:
    (tmp_path / "bad").write_text("no key")
    for name in ("bad", "absent"):
        seen = instar("approve", "adapt", "--key", str(tmp_path / name), "--reason", WHY, "--principal", "a")
        assert seen.code == 1, seen
        assert str(tmp_path / name) in seen.err
    assert waiting.told == []


def test_a_refusal_by_control_exits_2_with_its_sentence(instar: Any, waiting: Any, key: Path) -> None:
    path = "/v1/candidates/adapt-1800000000/approval"
    waiting.answers[path] = (403, {"error": "expected a key of ada, got an unknown one"})
    seen = instar("approve", "adapt", "--key", str(key), "--reason", WHY)
    assert seen.code == 2
    assert "an unknown one" in seen.err


def test_a_person_at_a_terminal_is_asked_and_may_say_no(
    instar: Any, waiting: Any, key: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = {"yes": False}
    monkeypatch.setattr(orders, "interactive", lambda: True)
    monkeypatch.setattr(orders.typer, "confirm", lambda _question: said["yes"])
    order = ["approve", "adapt", "--key", str(key), "--reason", WHY]
    seen = instar(*order)
    assert (seen.code, waiting.told) == (2, [])
    assert "nothing was signed" in seen.err
    assert instar(*order, "--yes").code == 0
    said["yes"] = True
    assert instar(*order).code == 0


@pytest.fixture
def exported(instar: Any, waiting: Any, tmp_path: Path) -> Path:
    """An approval that was written for a key elsewhere."""
    path = tmp_path / "approval.json"
    order = ["approve", "adapt", "--export", str(path), "--reason", WHY, "--principal", "ada"]
    seen = instar(*order, "--json")
    assert seen.code == 0
    assert f"ssh-keygen -Y sign -n instar-approve@v1 -f KEY {path}" in seen.json()["next"]
    assert waiting.told == []
    assert instar(*order).code == 1, "an export never overwrites"
    return path


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="ssh-keygen is not installed")
def test_an_exported_approval_is_signed_elsewhere_and_handed_in_untouched(
    instar: Any, waiting: Any, exported: Path, tmp_path: Path
) -> None:
    key = tmp_path / "elsewhere"
    quiet = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "ada", "-f", str(key)]
    subprocess.run(quiet, check=True, timeout=60)
    sign = ["ssh-keygen", "-Y", "sign", "-n", "instar-approve@v1", "-f", str(key), str(exported)]
    subprocess.run(sign, check=True, timeout=60, capture_output=True)
    seen = instar("approve", "adapt", "--approval", str(exported))
    assert seen.code == 0, seen
    text, signature = handed_in(waiting)
    assert text.encode() == exported.read_bytes()
    at = Approval.model_validate_json(text).at
    assert verify_detached(text.encode(), signature, signers(key, "ada"), "instar-approve@v1", at) == "ada"


def test_an_exported_approval_without_a_signature_says_how_to_make_one(
    instar: Any, waiting: Any, exported: Path
) -> None:
    seen = instar("approve", "adapt", "--approval", str(exported))
    assert seen.code == 1
    assert "ssh-keygen -Y sign" in seen.err
    assert waiting.told == []


def test_an_exported_approval_that_was_edited_reused_or_turned_round_is_refused(
    instar: Any, waiting: Any, exported: Path, made: Any
) -> None:
    exported.with_name("approval.json.sig").write_text("armored\n")
    order = ["approve", "adapt", "--approval", str(exported)]
    assert instar(*order).code == 0, "the twin that nobody touched"
    waiting.told.clear()
    turned = instar("decline", "adapt", "--approval", str(exported))
    assert "it says approve" in turned.err
    raw = exported.read_bytes()
    exported.write_bytes(raw + b"\n")
    edited = instar(*order)
    assert "do not edit or reformat" in edited.err
    exported.write_bytes(raw)
    waiting.subject = waiting.subject.model_copy(update={"nonce": "fedcba9876543210"})
    reused = instar(*order)
    assert "export it again" in reused.err
    assert [turned.code, edited.code, reused.code] == [1, 1, 1]
    assert waiting.told == []


def test_an_unreadable_report_is_no_evidence_and_no_hindrance(waiting: Any, made: Any) -> None:
    found = signoff.Found(candidate=made.candidate(report="/nowhere/report.html"), subject=waiting.subject)
    assert signoff.subject_of(found) == waiting.subject
