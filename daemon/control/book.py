"""Journal and ledger in lockstep: what is written is folded, and nothing is folded that is not written."""

import logging
from collections.abc import Callable
from typing import Any

from daemon.control.ledger import Ledger
from daemon.store.journal import Entry, Journal
from policies.clock import Clock
from policies.errors import IllegalMove, TamperError
from policies.lifecycle import Stage, move
from policies.world import Candidate

log = logging.getLogger(__name__)


class Book:
    """The one writer of the journal."""

    def __init__(self, journal: Journal, clock: Clock) -> None:
        self.journal = journal
        self.clock = clock
        try:
            self.ledger = Ledger.fold(journal.entries())
        except (KeyError, ValueError, TypeError, IllegalMove) as error:
            raise TamperError(
                f"expected a journal that folds at {journal.path}, got {error!r}; run instar audit verify"
            ) from error
        self.listeners: list[Callable[[str, dict[str, Any]], None]] = []

    def write(self, kind: str, /, **body: Any) -> Entry:
        """Append an entry, durably, then fold it in."""
        entry = self.journal.append(kind, body, self.clock.now())
        self.ledger.apply(entry)
        for listener in self.listeners:
            listener(entry.kind, entry.body)
        return entry

    def move(self, candidate: Candidate, to: Stage, reason: str, /, **changes: Any) -> Entry:
        """Move a candidate along the lifecycle and tell its story in the log.

        Raises:
            IllegalMove: The lifecycle has no such road; nothing is written.
        """
        move(self.ledger.candidates[candidate.id].stage, to)
        entry = self.write(
            "candidate.moved",
            candidate=candidate.id,
            **{"from": candidate.stage.value, "to": to.value},
            reason=reason,
            **changes,
        )
        now = self.ledger.candidates[candidate.id]
        log.info("candidate=%s stage=%s generation=%s: %s", now.id, now.stage, now.generation, reason)
        return entry
