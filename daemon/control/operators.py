"""What operators ask for: approve, decline, freeze, thaw, roll back; each one journalled act of a person."""

import logging

from daemon.control.book import Book
from daemon.control.law import Law
from daemon.control.performer import Performer
from daemon.control.targets.target import Target
from daemon.store.blobs import Blobs
from guards import approval as gate
from policies.approvals import tally
from policies.errors import InstarError, PermanentError
from policies.lifecycle import Stage
from policies.terms import Dossier, Subject
from policies.world import Candidate, Kind

log = logging.getLogger(__name__)


class Operators:
    """The people's side of control."""

    def __init__(self, book: Book, law: Law, blobs: Blobs, link: Target, performer: Performer) -> None:
        self._book = book
        self._law = law
        self._blobs = blobs
        self._link = link
        self._performer = performer

    def find(self, prefix: str) -> Candidate:
        """Return the candidate that an id or a unique beginning of one names.

        Raises:
            PermanentError: None or several match.
        """
        known = self._book.ledger.candidates
        if prefix in known:
            return known[prefix]
        found = [name for name in known if name.startswith(prefix)]
        if len(found) != 1:
            told = "none does" if not found else f"{len(found)} do: {', '.join(found)}"
            raise PermanentError(f"expected {prefix!r} to name one candidate, {told}; see instar candidates")
        return known[found[0]]

    def subject(self, candidate: Candidate) -> Subject | None:
        """Return what an approval of this candidate must speak of; None before its dossier is sealed."""
        if candidate.dossier is None:
            return None
        dossier = Dossier.model_validate_json(self._blobs.read(candidate.dossier))
        return dossier.subject(candidate.dossier)

    def approve(self, prefix: str, raw: bytes, signature: str) -> tuple[int, str]:
        """Take a signed approval or decline in.

        Returns:
            The journal's sequence number, and where the candidate stands.

        Raises:
            InstarError: It is refused; the refusal is journalled.
        """
        candidate = self.find(prefix)
        clause = self._law.policy.modification_protocol.approval
        now = self._book.clock.now()
        try:
            subject = self.subject(candidate)
            if subject is None or candidate.stage is not Stage.CLEARED:
                raise PermanentError(
                    f"expected a candidate in stage CLEARED, {candidate.id} is {candidate.stage}: "
                    f"{candidate.reason}"
                )
            approval = gate.verify(
                raw,
                signature,
                signers=self._law.signers(),
                clause=clause,
                subject=subject,
                now=now,
                spent_nonces=self._book.ledger.nonces(now),
            )
        except InstarError as error:
            self._book.write("approval.refused", candidate=candidate.id, reason=str(error))
            log.warning("candidate=%s approval refused: %s", candidate.id, error)
            raise
        entry = self._book.write(
            "approval.received",
            candidate=candidate.id,
            principal=approval.principal,
            decision=approval.decision,
            reason=approval.reason,
            approval=approval.model_dump(mode="json"),
            signature=signature,
        )
        log.info("candidate=%s %s by %s", candidate.id, approval.decision, approval.principal)
        given = self._book.ledger.candidates[candidate.id].approvals
        return entry.seq, tally(given, clause, now)

    def freeze(self, by: str, reason: str) -> int:
        """Stop adaptation; serving goes on."""
        if self._book.ledger.frozen is not None:
            raise PermanentError(f"already frozen by {self._book.ledger.frozen.by}; thaw first")
        log.info("frozen by %s: %s", by, reason)
        return self._book.write("freeze", by=by, reason=reason).seq

    def thaw(self, by: str, reason: str) -> int:
        """Let adaptation go on."""
        if self._book.ledger.frozen is None:
            raise PermanentError("expected a frozen system, it is not frozen")
        log.info("thawed by %s: %s", by, reason)
        return self._book.write("thaw", by=by, reason=reason).seq

    def rollback(self, by: str, reason: str, to: int | None) -> int:
        """Take a newcomer off probation, or bring a retired generation's bytes back under a new number.

        Raises:
            PermanentError: There is nothing to go back to, or the data plane cannot load it.
            TemporaryError: The data plane does not answer.
        """
        ledger = self._book.ledger
        candidate = ledger.open_candidate
        if to is None and candidate is not None and candidate.stage is Stage.PROBATION:
            if ledger.live is None:
                raise PermanentError("the first generation is on probation: there is nothing to go back to")
            seq = self._book.write("rollback.requested", by=by, reason=reason, to=None).seq
            self._book.move(candidate, Stage.ROLLED_BACK, f"rolled back by {by}: {reason}", cause="operator")
            self._performer.reconcile()
            return seq
        target = self._retired(to)
        # Nothing is given up before the data plane has answered: it must be there to go back at all.
        self._link.observed()
        live = 0 if ledger.live is None else ledger.live.generation
        # One entry is the whole act, so that a kill leaves all of it or none. The next turn makes it visible,
        # and ends what else is under way.
        entry = self._book.move(
            target,
            Stage.STAGED,
            f"rolled back to by {by}: {reason}",
            generation=ledger.last_generation + 1,
            base_generation=live,
            kind=Kind.ROLLBACK.value,
        )
        log.info("rollback to the bytes of generation %s by %s: %s", target.generation, by, reason)
        return entry.seq

    def _retired(self, to: int | None) -> Candidate:
        """Return whose bytes to bring back: those of a retired generation, or those before what is live.

        Going back twice goes back two steps: what was left is no longer on the way, and is named to return.
        """
        ledger = self._book.ledger
        if to is None:
            if len(ledger.line) < 2:
                left = ", ".join(str(generation) for generation in ledger.retired.values())
                more = f"; --to goes to a generation that was left: {left}" if left else ""
                raise PermanentError(
                    f"expected a generation before the one that is live, there is none{more}; "
                    "see instar candidates"
                )
            target = ledger.candidates[ledger.line[-2]]
            if target.stage is Stage.LIVE:
                # The newcomer was confirmed this moment, and the turn has not retired it yet.
                self._book.move(target, Stage.RETIRED, "an operator goes back to it")
            return ledger.candidates[target.id]
        found = [c for c in ledger.candidates.values() if c.stage is Stage.RETIRED and c.generation == to]
        if not found:
            raise PermanentError(
                f"expected retired generation {to} to go back to, there is none; see instar candidates"
            )
        return found[0]
