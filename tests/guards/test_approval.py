"""Approvals: the genuine one is taken, each forgery is refused for its own reason."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest

from guards.approval import NAMESPACE, verify
from guards.signing import Signers, make_key, sign
from policies.approvals import tally
from policies.clauses import Approval as Clause
from policies.errors import InstarError, PermanentError, TamperError
from policies.terms import Approval, Subject
from policies.wire import canonical, digest_bytes

NOW = 1_800_000_000.0


def named(text: str) -> str:
    return digest_bytes(text.encode())


SUBJECT = Subject(
    candidate="c2-abc123",
    bundle=named("bundle"),
    incumbent=named("incumbent"),
    policy=named("policy"),
    dossier=named("dossier"),
    report=named("report"),
    nonce="n" * 20,
)
CLAUSE = Clause(clause="MP-6", approvers=("alice", "bob"), quorum=2, window_s=3600.0, max_ttl_s=900.0)


class Desk:
    """People with keys."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        lines = []
        for name in ("alice", "bob", "carol"):
            make_key(folder / name, name)
            lines.append(f"{name} {self.public(name)}")
        make_key(folder / "stranger", "alice")
        self.signers = Signers.parse("\n".join(lines))

    def public(self, name: str) -> str:
        return " ".join((self.folder / f"{name}.pub").read_text().split()[:2])

    def approval(self, **changes: Any) -> Approval:
        facts: dict[str, Any] = {
            "decision": "approve",
            "subject": SUBJECT,
            "principal": "alice",
            "reason": "read the report, all is well",
            "at": NOW - 5,
            "expires_at": NOW + 600,
        }
        return Approval(**(facts | changes))

    def sign(self, raw: bytes, by: str, namespace: str = NAMESPACE) -> str:
        return sign((self.folder / by).read_bytes(), raw, namespace)

    def take(
        self,
        raw: bytes,
        signature: str,
        *,
        subject: Subject = SUBJECT,
        now: float = NOW,
        spent: Collection[str] = (),
    ) -> Approval:
        return verify(
            raw,
            signature,
            signers=self.signers,
            clause=CLAUSE,
            subject=subject,
            now=now,
            spent_nonces=spent,
        )

    def give(self, by: str = "alice", **changes: Any) -> Approval:
        """Sign and take in one approval, in one go."""
        raw = canonical(self.approval(**changes))
        return self.take(raw, self.sign(raw, by))


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def test_a_genuine_approval_is_taken(desk: Desk) -> None:
    assert desk.give() == desk.approval()


def test_a_genuine_decline_is_taken(desk: Desk) -> None:
    assert desk.give(decision="decline").decision == "decline"


def test_one_changed_byte_is_refused(desk: Desk) -> None:
    raw = canonical(desk.approval())
    forged = raw.replace(b"all is well", b"all is fine")
    with pytest.raises(TamperError, match="does not verify"):
        desk.take(forged, desk.sign(raw, "alice"))


def test_a_decline_turned_into_an_approval_is_refused(desk: Desk) -> None:
    raw = canonical(desk.approval(decision="decline"))
    forged = canonical(desk.approval())
    with pytest.raises(TamperError, match="does not verify"):
        desk.take(forged, desk.sign(raw, "alice"))


@pytest.mark.parametrize("name", [n for n in Subject.model_fields if n not in ("candidate", "nonce")])
def test_an_approval_of_another_digest_names_which(desk: Desk, name: str) -> None:
    other = SUBJECT.model_copy(update={name: named("another")})
    with pytest.raises(TamperError, match=f"an approval of {name} sha256"):
        desk.give(subject=other)


def test_an_approval_of_another_candidate_is_refused(desk: Desk) -> None:
    with pytest.raises(TamperError, match="an approval of candidate"):
        desk.give(subject=SUBJECT.model_copy(update={"candidate": "c3-ffffff"}))


def test_an_approval_of_an_earlier_dossier_of_the_same_candidate_is_refused(desk: Desk) -> None:
    with pytest.raises(TamperError, match="an approval of nonce"):
        desk.give(subject=SUBJECT.model_copy(update={"nonce": "m" * 20}))


def test_an_unknown_key_is_refused(desk: Desk) -> None:
    with pytest.raises(TamperError, match="does not verify"):
        desk.give(by="stranger")


def test_impersonation_is_refused(desk: Desk) -> None:
    with pytest.raises(TamperError, match=r"expected a signature by alice.*that of bob"):
        desk.give(by="bob", principal="alice")


def test_a_known_person_who_may_not_approve_is_refused(desk: Desk) -> None:
    with pytest.raises(PermanentError, match=r"MP-6.*carol"):
        desk.give(by="carol", principal="carol")


@pytest.mark.parametrize("namespace", ["git", "instar-policy@v1"])
def test_a_signature_for_something_else_is_refused(desk: Desk, namespace: str) -> None:
    raw = canonical(desk.approval())
    with pytest.raises(TamperError, match="namespace"):
        desk.take(raw, desk.sign(raw, "alice", namespace))


def test_a_replay_is_refused(desk: Desk) -> None:
    raw = canonical(desk.approval())
    made = desk.sign(raw, "alice")
    taken = desk.take(raw, made)
    spent = {f"{taken.subject.nonce}/{taken.principal}"}
    with pytest.raises(TamperError, match="spoken on this nonce already"):
        desk.take(raw, made, spent=spent)
    other = canonical(desk.approval(principal="bob"))
    assert desk.take(other, desk.sign(other, "bob"), spent=spent).principal == "bob"


@pytest.mark.parametrize(
    ("times", "kind", "problem"),
    [
        ({"at": NOW - 700, "expires_at": NOW - 1}, PermanentError, "expired 1 s ago"),
        ({"at": NOW - 700, "expires_at": NOW}, PermanentError, "expired"),
        ({"at": NOW + 31}, TamperError, "dated 31 s from now"),
        ({"expires_at": NOW + 896}, PermanentError, "at most 900 s"),
    ],
)
def test_an_approval_out_of_its_time_is_refused(
    desk: Desk, times: dict[str, float], kind: type[InstarError], problem: str
) -> None:
    with pytest.raises(kind, match=problem):
        desk.give(**times)


@pytest.mark.parametrize("times", [{"at": NOW + 29}, {"expires_at": NOW + 895}, {"expires_at": NOW + 1}])
def test_an_approval_just_in_time_is_taken(desk: Desk, times: dict[str, float]) -> None:
    assert desk.give(**times).principal == "alice"


@pytest.mark.parametrize(
    "spoil",
    [
        lambda raw: raw[:-1] + b',"decision":"decline"}',
        lambda raw: raw.replace(b":", b": ", 1),
        lambda raw: raw + b"\n",
        lambda raw: b"{",
    ],
    ids=["doubled key", "a space", "a newline", "half"],
)
def test_a_second_spelling_is_refused_even_if_signed(desk: Desk, spoil: Any) -> None:
    raw = spoil(canonical(desk.approval()))
    with pytest.raises(TamperError, match="canonical JSON"):
        desk.take(raw, desk.sign(raw, "alice"))


@pytest.mark.parametrize("raw", [b"{}", b"[]", canonical({"decision": "approve"})])
def test_canonical_json_that_is_no_approval_is_refused(desk: Desk, raw: bytes) -> None:
    with pytest.raises(TamperError, match="expected an approval"):
        desk.take(raw, desk.sign(raw, "alice"))


def test_a_reason_is_needed(desk: Desk) -> None:
    raw = canonical(desk.approval().model_dump(mode="json") | {"reason": "ok"})
    with pytest.raises(TamperError, match="reason"):
        desk.take(raw, desk.sign(raw, "alice"))


# -- what they amount to ------------------------------------------------------------------------------------


def test_people_are_counted_not_approvals(desk: Desk) -> None:
    alice, bob = desk.give(), desk.give(by="bob", principal="bob")
    assert tally([alice], CLAUSE, NOW) == "waiting"
    assert tally([alice, alice], CLAUSE, NOW) == "waiting"
    assert tally([alice, bob], CLAUSE, NOW) == "approved"


def test_one_no_is_a_veto(desk: Desk) -> None:
    alice, bob = desk.give(), desk.give(by="bob", principal="bob")
    no = desk.give(by="bob", principal="bob", decision="decline")
    assert tally([alice, bob, no], CLAUSE, NOW) == "declined"


def test_an_approval_that_ran_out_no_longer_counts(desk: Desk) -> None:
    both = [desk.give(), desk.give(by="bob", principal="bob", expires_at=NOW + 60)]
    assert tally(both, CLAUSE, NOW + 59) == "approved"
    assert tally(both, CLAUSE, NOW + 61) == "waiting"
