"""What can be said of a policy file before it is put in force: lint, fit to a task, signature, sizes.

Called by ``instar check``; reads files, changes nothing, asks no running process.

* A fault is what control would refuse, too; a note is what an operator should know.
* The signature is checked only when the signers are named: without them nobody is trusted.
"""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from policies.clauses import NonInferiority, Policy
from policies.document import load, load_task
from policies.errors import InstarError, PolicyError
from policies.support import required_rows

NAMESPACE = "instar-policy@v1"


@dataclass(frozen=True, slots=True)
class Margin:
    """A margin of the policy, and the rows that it takes to show it."""

    key: str
    clause: str
    margin: float
    alpha: float
    power: float
    rows: int


@dataclass(frozen=True, slots=True)
class Report:
    """What the check found."""

    policy: Policy | None
    digest: str | None
    faults: tuple[str, ...]
    notes: tuple[str, ...]
    margins: tuple[Margin, ...]


def check(path: Path, task: Path | None, signers: Path | None, now: float) -> Report:
    """Check a policy file; whatever is wrong with it is in the report."""
    try:
        policy, digest = load(path)
    except PolicyError as error:
        return Report(None, None, tuple(str(error).splitlines()), (), ())
    faults: list[str] = []
    notes: list[str] = []
    if task is not None:
        faults += _against_task(policy, path, task)
    if signers is None:
        notes.append("the signature was not checked: name the trusted signers with --signers FILE")
    else:
        bad, good = _signature(policy, path, signers, now)
        faults += bad
        notes += good
    return Report(policy, digest, tuple(faults), tuple(notes), _margins(policy))


def _against_task(policy: Policy, path: Path, task: Path) -> list[str]:
    try:
        found = load_task(task)
    except PolicyError as error:
        return str(error).splitlines()
    if found.name == policy.task:
        return []
    return [f"{path}: expected task {found.name!r} as in {task}, got {policy.task!r}"]


def _signature(policy: Policy, path: Path, signers: Path, now: float) -> tuple[list[str], list[str]]:
    """Return faults and notes about who signed the file and who may approve."""
    from guards.signing import Signers, verify_detached

    signature = path.with_name(path.name + ".sig")
    try:
        raw, armored = path.read_bytes(), signature.read_text(encoding="utf-8")
        trusted = Signers.parse(signers.read_text(encoding="utf-8"))
        who = verify_detached(raw, armored, trusted, NAMESPACE, now)
    except (OSError, UnicodeDecodeError) as error:
        return [f"expected the files {signature} and {signers}, got {error}"], []
    except InstarError as error:
        return [f"{signature}: {error}"], []
    keyless, short = _approvers(policy, trusted.principals())
    notes = [f"signed by {who}", *(f"approver {name} has no key in {signers}" for name in keyless)]
    return [f"{path}: {short} in {signers}"] if short else [], notes


def _approvers(policy: Policy, named: Collection[str]) -> tuple[list[str], str | None]:
    """Return the approvers without a key, and what is short when a quorum cannot be reached."""
    clause = policy.modification_protocol.approval
    people = sorted(set(clause.approvers))
    keyless = [name for name in people if name not in named]
    have = len(people) - len(keyless)
    if have >= clause.quorum:
        return keyless, None
    return keyless, (
        f"modification_protocol.approval.quorum ({clause.clause}): expected keys of at least "
        f"{clause.quorum} of {', '.join(people)}, found {have}"
    )


def _margins(policy: Policy) -> tuple[Margin, ...]:
    evaluation = policy.modification_protocol.evaluation
    found = []
    for name in ("incumbent", "baseline", "retention"):
        clause: NonInferiority = getattr(evaluation, name)
        found.append(
            Margin(name, clause.clause, clause.margin, clause.alpha, clause.power, required_rows(clause))
        )
    return tuple(found)
