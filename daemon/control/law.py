"""The policy in force: read, signed, and kept when an edit of it is not acceptable.

* Only a policy whose signature a known signer made is in force.
* A refused edit leaves the old policy in force, also over a restart: its bytes lie in the blob store.
* It does not change under a candidate that is under way: its approvers spoke of the old one.
"""

import logging
from pathlib import Path

from daemon.control.book import Book
from daemon.store.blobs import Blobs
from guards.signing import Signers, verify_detached
from policies.clauses import Policy
from policies.document import parse
from policies.errors import InstarError, PolicyError
from policies.terms import Task
from policies.wire import digest_bytes

log = logging.getLogger(__name__)

NAMESPACE = "instar-policy@v1"
DEMO_PRINCIPAL = "UnsafeDemoApprover"


class Law:
    """The policy file, its signature file beside it, and the trusted signers."""

    def __init__(self, path: Path, signers: Path, task: Task, book: Book, blobs: Blobs) -> None:
        self._path = path
        self._signers = signers
        self._task = task
        self._book = book
        self._blobs = blobs
        self.problem: str | None = None
        self.policy, self.digest = self._first()

    @property
    def demo_key(self) -> bool:
        """Whether a demo's key may approve: every surface must say so."""
        return DEMO_PRINCIPAL in self.policy.modification_protocol.approval.approvers

    @property
    def trust(self) -> str:
        """Where trust comes from, in words."""
        return f"demo key ({self._signers})" if self.demo_key else str(self._signers)

    def signers(self) -> Signers:
        """Return the trusted signers, read afresh so that a revoked key is gone at once.

        Raises:
            PolicyError: The file cannot be read.
        """
        try:
            return Signers.parse(self._signers.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise PolicyError(f"expected an allowed-signers file at {self._signers}, got {error}") from error

    def reload(self) -> None:
        """Put the file on disk in force.

        Raises:
            InstarError: It is refused; the old policy stays.
        """
        try:
            policy, digest, raw, signer = self._read()
            self._admit(policy, digest, self.policy)
            self._same_senses(policy)
        except InstarError as error:
            self._refuse(error)
            raise
        self._enact(policy, digest, raw, signer)

    def _first(self) -> tuple[Policy, str]:
        former = self._book.ledger.policy
        in_force = None if former is None else parse(self._blobs.read(former).decode(), "the policy in force")
        try:
            policy, digest, raw, signer = self._read()
            if in_force is not None:
                self._admit(policy, digest, in_force)
        except InstarError as error:
            if former is None or in_force is None:
                raise
            self._refuse(error)
            return in_force, former
        self._enact(policy, digest, raw, signer)
        return policy, digest

    def _admit(self, policy: Policy, digest: str, in_force: Policy) -> None:
        """Refuse to change the law under a candidate, or to go back to an old one.

        Raises:
            PolicyError: It may not come into force now.
        """
        if digest == self._book.ledger.policy:
            return
        candidate = self._book.ledger.open_candidate
        if candidate is not None:
            raise PolicyError(
                f"expected no candidate under way, {candidate.id} is {candidate.stage}; "
                "reload when it has ended"
            )
        if policy.version <= in_force.version:
            raise PolicyError(
                f"{self._path}: expected a version above {in_force.version}, which is in force, got "
                f"{policy.version}; an old signature must not bring an old law back"
            )

    def _same_senses(self, policy: Policy) -> None:
        """Monitors and roles are made at the start: a change of theirs needs one.

        Raises:
            PolicyError: The policy changes them.
        """
        new, old = policy.modification_protocol, self.policy.modification_protocol
        if (new.monitoring, new.data) != (old.monitoring, old.data):
            raise PolicyError(
                f"{self._path}: expected the monitoring and data tables as they are in force; they are "
                "taken up at a start: systemctl restart instard"
            )

    def _read(self) -> tuple[Policy, str, bytes, str]:
        try:
            raw = self._path.read_bytes()
            signature = self._path.with_name(self._path.name + ".sig").read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise PolicyError(
                f"expected a policy at {self._path} and its signature beside it (.sig), got {error}; "
                f"sign it with: ssh-keygen -Y sign -n {NAMESPACE} -f KEY {self._path}"
            ) from error
        policy = parse(raw.decode("utf-8", "replace"), str(self._path))
        if policy.task != self._task.name:
            raise PolicyError(f"{self._path}: expected task {self._task.name!r}, got {policy.task!r}")
        signer = verify_detached(raw, signature, self.signers(), NAMESPACE, self._book.clock.now())
        return policy, digest_bytes(raw), raw, signer

    def _enact(self, policy: Policy, digest: str, raw: bytes, signer: str) -> None:
        self._blobs.put(raw)
        if self._book.ledger.policy != digest:
            self._book.write("policy.loaded", digest=digest, version=policy.version, signer=signer)
            log.info("policy=%s version=%d signed by %s is in force", digest[:19], policy.version, signer)
        self.policy, self.digest, self.problem = policy, digest, None

    def _refuse(self, error: InstarError) -> None:
        self.problem = str(error)
        self._book.write("policy.refused", reason=self.problem)
        log.warning("policy refused, the old one stays in force: %s", self.problem)
