"""The verbs that change the world: approve, decline, freeze, thaw, rollback, policy reload.

Each goes to control over its socket, carries a reason, and prints the journal's sequence number. What control
refuses, or a person calls off, exits 2. ``--export`` changes nothing: it writes what a key elsewhere signs.
"""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from daemon.console import screen, signoff, words
from daemon.console.client import Control, Found, Refused
from daemon.console.options import (
    OK,
    By,
    Json,
    OptionalReason,
    Reason,
    State,
    interactive,
    socket_of,
    state_of,
    tell,
    warn,
    who,
)
from policies.clock import SystemClock
from policies.terms import Finding, Subject

_Id = Annotated[str, typer.Argument(metavar="ID", help="The candidate's id, or a unique beginning of it.")]
_Key = Annotated[
    Path | None,
    typer.Option(
        "--key",
        metavar="PATH",
        show_default="DIR/demo/approver in a demo",
        help="Your OpenSSH Ed25519 private key.",
    ),
]
_Principal = Annotated[
    str | None,
    typer.Option(
        "--principal",
        show_default="the comment of KEY.pub",
        help="Your name in the allowed-signers file.",
    ),
]
_Ttl = Annotated[
    float, typer.Option("--ttl", min=1.0, metavar="SECONDS", help="How long the signature is valid.")
]
_Export = Annotated[
    Path | None,
    typer.Option("--export", metavar="FILE", help="Write what is to be signed, for a key elsewhere."),
]
_Approval = Annotated[
    Path | None,
    typer.Option("--approval", metavar="FILE", help="Hand in an exported FILE and its signature FILE.sig."),
]
_Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask, even at a terminal.")]
_To = Annotated[
    int | None,
    typer.Option(
        "--to",
        min=1,
        metavar="GENERATION",
        show_default="the newcomer's incumbent, else the generation before",
        help="The generation whose bytes to serve again.",
    ),
]


def approve(
    name: _Id,
    reason: OptionalReason = None,
    key: _Key = None,
    principal: _Principal = None,
    ttl: _Ttl = 900.0,
    export: _Export = None,
    approval: _Approval = None,
    yes: _Yes = False,
    state: State = None,
    as_json: Json = False,
) -> int:
    """Sign a yes for a candidate. Read its report first: you sign the report's digest, too.

    The signature covers candidate, bundle, incumbent, policy, dossier and report at once and is valid for a
    while only. A quorum may need several people; one decline is a veto.
    """
    return _decide("approve", name, reason, key, principal, ttl, export, approval, yes, state, as_json)


def decline(
    name: _Id,
    reason: OptionalReason = None,
    key: _Key = None,
    principal: _Principal = None,
    ttl: _Ttl = 900.0,
    export: _Export = None,
    approval: _Approval = None,
    yes: _Yes = False,
    state: State = None,
    as_json: Json = False,
) -> int:
    """Sign a no for a candidate. One no is a veto: the candidate ends."""
    return _decide("decline", name, reason, key, principal, ttl, export, approval, yes, state, as_json)


def _decide(
    decision: signoff.Decision,
    name: str,
    reason: str | None,
    key: Path | None,
    principal: str | None,
    ttl: float,
    export: Path | None,
    approval: Path | None,
    yes: bool,
    state: Path | None,
    as_json: bool,
) -> int:
    if sum(way is not None for way in (key, export, approval)) > 1:
        raise typer.BadParameter("expected one of --key, --export, --approval, got several")
    if approval is None and reason is None:
        raise typer.BadParameter(f"expected --reason with at least 10 characters to {decision}")
    folder = state_of(state)
    with Control(socket_of(folder)) as control:
        found = control.candidate(name)
        subject = signoff.subject_of(found)
        if approval is not None:
            signed = signoff.load(approval, decision, subject)
        else:
            if export is None:
                key = _existing(key or _demo_key(folder))
            signer = principal or _principal(key)
            said = signoff.write(decision, subject, signer, reason or "", SystemClock().now(), ttl)
            if export is not None:
                return _exported(said.principal, export, as_json, said, decision, found)
            _summary(decision, found, subject, signer)
            _confirm(decision, yes or as_json)
            signed = signoff.sign(said, _existing(key))
        receipt = control.approval(found.candidate.id, signed.text, signed.signature)
    line = Text(f"{found.candidate.id}: {decision} recorded as journal entry {receipt.seq}; {receipt.state}")
    tell(as_json, receipt.model_dump(mode="json") | {"candidate": found.candidate.id}, line)
    return OK


def _demo_key(folder: Path) -> Path | None:
    """Return the demo's own key, when this is a demo's state folder."""
    key = folder / "demo" / "approver"
    return key if key.is_file() else None


def _existing(key: Path | None) -> Path:
    if key is None:
        raise typer.BadParameter("expected --key PATH, or --export FILE to sign with a key elsewhere")
    return key


def _principal(key: Path | None) -> str:
    found = None if key is None else signoff.principal_of(key)
    if found is None:
        where = "no key is given" if key is None else f"{key}.pub says none"
        raise typer.BadParameter(f"expected --principal NAME, for {where}")
    return found


def _exported(
    principal: str, path: Path, as_json: bool, said: Any, decision: signoff.Decision, found: Found
) -> int:
    signoff.export(said, path)
    candidate = found.candidate.id
    commands = [
        f"ssh-keygen -Y sign -n {signoff.NAMESPACE} -f KEY {path}",
        f"instar {decision} {candidate} --approval {path}",
    ]
    line = Text(
        f"written for {principal}: {path}, valid until {words.moment(said.expires_at)}; nothing is signed or "
        f"handed in yet. Next:\n  {commands[0]}\n  {commands[1]}"
    )
    tell(as_json, {"approval": str(path), "expires_at": said.expires_at, "next": commands}, line)
    return OK


def _summary(decision: signoff.Decision, found: Found, subject: Subject, signer: str) -> None:
    """Say, before the key is touched, what is about to be signed and in whose name."""
    view = found.candidate
    if words.is_demo(signer):
        warn(screen.demo_banner(f"{signer}, a key that lies beside what it guards"))
    passed = sum(v.finding is Finding.PASS for v in view.verdicts)
    warn(
        Text(
            f"{signer} is about to {decision} {view.id}: {passed} of {len(view.verdicts)} guards pass, "
            f"dossier {words.short(subject.dossier)}, report {view.report or words.UNKNOWN}"
        )
    )


def _confirm(decision: str, sure: bool) -> None:
    if not sure and interactive() and not typer.confirm(f"Sign and {decision}?"):
        raise Refused("nothing was signed: you said no")


def freeze(reason: Reason, by: By = None, state: State = None, as_json: Json = False) -> int:
    """Stop adaptation: no search, no swap. Serving and monitors go on."""
    return _order("freeze", {"by": who(by), "reason": reason}, "adaptation is frozen", state, as_json)


def thaw(reason: Reason, by: By = None, state: State = None, as_json: Json = False) -> int:
    """Let adaptation go on after a freeze."""
    return _order("thaw", {"by": who(by), "reason": reason}, "adaptation goes on", state, as_json)


def rollback(
    reason: Reason, to: _To = None, by: By = None, state: State = None, as_json: Json = False
) -> int:
    """Take a newcomer off probation, or serve a retired generation's bytes again under a new number.

    Without --to: the generation before the one that is live; asked again, the one before that.
    """
    body: dict[str, Any] = {"by": who(by), "reason": reason}
    if to is not None:
        body["to"] = to
    return _order("rollback", body, "rollback is under way", state, as_json)


def _order(verb: str, body: dict[str, Any], told: str, state: Path | None, as_json: bool) -> int:
    with Control(socket_of(state_of(state))) as control:
        receipt = control.order(verb, body)
    tell(as_json, receipt.model_dump(mode="json"), Text(f"{told}: journal entry {receipt.seq}"))
    return OK


def policy_reload(state: State = None, as_json: Json = False) -> int:
    """Put the policy file on disk in force. Refused: the old one stays in force, and you see why."""
    with Control(socket_of(state_of(state))) as control:
        receipt = control.reload_policy()
    line = Text(f"policy version {receipt.version} is in force\n{receipt.digest}")
    tell(as_json, receipt.model_dump(mode="json"), line)
    return OK
