"""A person's yes or no over one subject: built, signed here or elsewhere, and handed in.

* What is signed is the subject that control hands out, checked against the candidate and the report on disk:
  the person signs what the person read.
* The canonical bytes that were signed are the bytes that travel; nothing re-serialises them.
* A private key that lies here signs here; any other signs with ``ssh-keygen -Y sign`` over an exported file.

The console is no gate: control verifies all of it again.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from daemon.console.client import Found
from policies.errors import PermanentError, TamperError
from policies.terms import Approval, Subject
from policies.wire import canonical, digest_bytes, parse_canonical

NAMESPACE = "instar-approve@v1"

Decision = Literal["approve", "decline"]


@dataclass(frozen=True, slots=True)
class Signed:
    """An approval's canonical text, and the armored signature over exactly that text."""

    text: str
    signature: str


def subject_of(found: Found) -> Subject:
    """Return what an approval of this candidate speaks of.

    Raises:
        PermanentError: Nothing is sealed yet.
        TamperError: Control's two answers, or the report on disk, do not belong together.
    """
    view, subject = found.candidate, found.subject
    if subject is None:
        raise PermanentError(
            f"expected candidate {view.id} to have a sealed dossier, it is {view.stage}: {view.reason}; "
            "there is nothing to sign yet"
        )
    told = {"candidate": view.id, "bundle": view.bundle, "dossier": view.dossier}
    for name, seen in told.items():
        if getattr(subject, name) != seen:
            raise TamperError(
                f"expected the subject's {name} to be {seen}, got {getattr(subject, name)}; do not sign"
            )
    if view.report is not None:
        _check_report(Path(view.report), subject.report)
    return subject


def _check_report(path: Path, digest: str) -> None:
    """Refuse a report that is not the one the dossier names; one that cannot be read here is no evidence."""
    if not path.is_file():
        return
    seen = digest_bytes(path.read_bytes())
    if seen != digest:
        raise TamperError(
            f"expected the report at {path} to be {digest}, it is {seen}: it is not what the guards wrote; "
            "do not sign"
        )


def write(
    decision: Decision, subject: Subject, principal: str, reason: str, now: float, ttl_s: float
) -> Approval:
    """Return an approval that is valid from ``now`` for ``ttl_s`` seconds (> 0)."""
    return Approval(
        decision=decision,
        subject=subject,
        principal=principal,
        reason=reason,
        at=now,
        expires_at=now + ttl_s,
    )


def principal_of(key: Path) -> str | None:
    """Return the name in the public key's comment, or None when there is no such file or no comment.

    Raises:
        PermanentError: The file is there and is not a public key.
    """
    public = key.with_name(key.name + ".pub")
    if not public.is_file():
        return None
    words = public.read_text(encoding="utf-8").split(maxsplit=2)
    if len(words) < 2 or not words[0].startswith(("ssh-", "ecdsa-", "sk-")):
        raise PermanentError(f"expected an OpenSSH public key in {public}, got something else")
    return words[2].strip() if len(words) == 3 else None


def sign(approval: Approval, key: Path) -> Signed:
    """Sign with a private key that lies here.

    Raises:
        PermanentError: The key cannot be read or used.
    """
    from guards.signing import sign as sign_bytes  # numpy and onnx stay unloaded for every other verb

    try:
        private = key.read_bytes()
    except OSError as error:
        raise PermanentError(f"expected a private key at {key}, got {error}") from error
    raw = canonical(approval)
    try:
        return Signed(raw.decode(), sign_bytes(private, raw, NAMESPACE))
    except PermanentError as error:
        raise PermanentError(f"{key}: {error}; write what is to be signed with --export FILE") from error


def export(approval: Approval, path: Path) -> None:
    """Write the canonical bytes for signing elsewhere.

    Raises:
        PermanentError: The file cannot be written, or is there already.
    """
    try:
        with path.open("xb") as file:
            file.write(canonical(approval))
    except OSError as error:
        raise PermanentError(f"expected to write a new file at {path}, got {error}") from error


def load(path: Path, decision: Decision, subject: Subject) -> Signed:
    """Read an exported approval and its signature beside it (``.sig``).

    Raises:
        PermanentError: A file cannot be read, or it speaks of something else.
        TamperError: The bytes are not those that were exported.
    """
    try:
        raw = path.read_bytes()
        signature = path.with_name(path.name + ".sig").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PermanentError(
            f"expected an approval at {path} and its signature at {path}.sig, got {error}; sign it with: "
            f"ssh-keygen -Y sign -n {NAMESPACE} -f KEY {path}"
        ) from error
    parse_canonical(raw, str(path))
    try:
        approval = Approval.model_validate_json(raw)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, fault["loc"]))
        raise PermanentError(f"expected an approval in {path}, got {where}: {fault['msg']}") from error
    if approval.decision != decision:
        raise PermanentError(f"expected a decision to {decision} in {path}, it says {approval.decision}")
    for name in Subject.model_fields:
        seen, wanted = getattr(approval.subject, name), getattr(subject, name)
        if seen != wanted:
            raise PermanentError(
                f"expected {path} to speak of {name} {wanted}, it speaks of {seen}; export it again"
            )
    return Signed(raw.decode(), signature)
