"""The human gate: whose word over which digests counts, and until when.

* A person signs one subject: candidate, bundle, incumbent, policy, dossier, report and nonce together.
  Whatever differs by one digest is another subject.
* The bytes must be canonical, so that a duplicate key or a second spelling has no second meaning.
* A nonce counts once a person; a yes is good for a bounded time.

A refusal is an error here, not a verdict: an approval is a claim, and a false one is an attack or a mistake.
"""

from collections.abc import Collection

from pydantic import ValidationError

from guards.signing import Signers, verify_signer
from policies.clauses import Approval as ApprovalClause
from policies.errors import PermanentError, TamperError
from policies.terms import Approval, Subject
from policies.wire import parse_canonical

NAMESPACE = "instar-approve@v1"
_SKEW_S = 30.0


def verify(
    raw: bytes,
    signature: str,
    *,
    signers: Signers,
    clause: ApprovalClause,
    subject: Subject,
    now: float,
    spent_nonces: Collection[str],
) -> Approval:
    """Return the approval that these signed bytes are, or refuse it.

    Args:
        raw: Canonical JSON of an ``Approval``.
        signature: Armoured SSH signature of ``raw`` in ``NAMESPACE``.
        signers: Who is trusted to be whom.
        clause: Who may approve, and for how long.
        subject: What there is to approve.
        now: Seconds since the epoch.
        spent_nonces: ``nonce/principal`` of every approval that was taken before.

    Raises:
        TamperError: It is not what it claims to be; the message says in what.
        PermanentError: It is genuine, and may not be.
    """
    parse_canonical(raw, "the approval")
    try:
        approval = Approval.model_validate_json(raw)
    except ValidationError as error:
        raise TamperError(f"expected an approval, got {error.error_count()} faults: {error}") from error
    line = verify_signer(raw, signature, signers, NAMESPACE, now)
    if approval.principal not in line.principals:
        raise TamperError(
            f"expected a signature by {approval.principal}, whose name the approval bears; "
            f"its key is that of {', '.join(line.principals)}"
        )
    if approval.principal not in clause.approvers:
        raise PermanentError(
            f"expected one of {', '.join(clause.approvers)} ({clause.clause}), got {approval.principal}"
        )
    _same_subject(approval.subject, subject)
    _in_time(approval, clause, now)
    if f"{approval.subject.nonce}/{approval.principal}" in spent_nonces:
        raise TamperError(f"{approval.principal} has spoken on this nonce already; it counts once")
    return approval


def _same_subject(given: Subject, wanted: Subject) -> None:
    for name in Subject.model_fields:
        came, expected = getattr(given, name), getattr(wanted, name)
        if came != expected:
            raise TamperError(
                f"expected an approval of {name} {expected}, it speaks of {came}: it was signed for "
                "something else; read the present report and sign anew"
            )


def _in_time(approval: Approval, clause: ApprovalClause, now: float) -> None:
    if approval.at > now + _SKEW_S:
        raise TamperError(
            f"expected an approval of the past, it is dated {approval.at - now:.0f} s from now; set the clock"
        )
    if approval.expires_at <= now:
        raise PermanentError(f"it expired {now - approval.expires_at:.0f} s ago; sign anew")
    ttl = approval.expires_at - approval.at
    if ttl > clause.max_ttl_s:
        raise PermanentError(
            f"expected an approval valid for at most {clause.max_ttl_s:.0f} s ({clause.clause}), "
            f"it claims {ttl:.0f} s"
        )
