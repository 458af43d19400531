"""The life of a candidate: its stages and the roads between them.

Every road to LIVE passes CLEARED, APPROVED and PROBATION; ``tests/policies`` walks them all. A retired
generation may be staged again by a recorded human act, and then passes probation anew.
"""

from enum import StrEnum

from policies.errors import IllegalMove


class Stage(StrEnum):
    """Where a candidate stands."""

    PROPOSED = "PROPOSED"
    EXPORTED = "EXPORTED"
    CLEARED = "CLEARED"
    APPROVED = "APPROVED"
    STAGED = "STAGED"
    PROBATION = "PROBATION"
    LIVE = "LIVE"
    RETIRED = "RETIRED"
    REJECTED = "REJECTED"
    EXPIRED = "EXPIRED"
    ROLLED_BACK = "ROLLED_BACK"
    ABANDONED = "ABANDONED"


_ENDS_BEFORE_TRAFFIC = frozenset({Stage.REJECTED, Stage.EXPIRED, Stage.ABANDONED})

MOVES: dict[Stage, frozenset[Stage]] = {
    Stage.PROPOSED: frozenset({Stage.EXPORTED}) | _ENDS_BEFORE_TRAFFIC,
    Stage.EXPORTED: frozenset({Stage.CLEARED}) | _ENDS_BEFORE_TRAFFIC,
    Stage.CLEARED: frozenset({Stage.APPROVED}) | _ENDS_BEFORE_TRAFFIC,
    Stage.APPROVED: frozenset({Stage.STAGED}) | _ENDS_BEFORE_TRAFFIC,
    Stage.STAGED: frozenset({Stage.PROBATION}) | _ENDS_BEFORE_TRAFFIC,
    Stage.PROBATION: frozenset({Stage.LIVE, Stage.ROLLED_BACK}),
    Stage.LIVE: frozenset({Stage.RETIRED}),
    Stage.RETIRED: frozenset({Stage.STAGED}),
    Stage.REJECTED: frozenset(),
    Stage.EXPIRED: frozenset(),
    Stage.ROLLED_BACK: frozenset(),
    Stage.ABANDONED: frozenset(),
}

OPEN = frozenset(
    {Stage.PROPOSED, Stage.EXPORTED, Stage.CLEARED, Stage.APPROVED, Stage.STAGED, Stage.PROBATION}
)


def move(stage: Stage, to: Stage) -> Stage:
    """Return ``to``, when the table has that road.

    Raises:
        IllegalMove: It has not.

    >>> move(Stage.PROBATION, Stage.LIVE).value
    'LIVE'
    """
    if to not in MOVES[stage]:
        roads = ", ".join(sorted(MOVES[stage])) or "nowhere"
        raise IllegalMove(f"expected a move from {stage} to one of: {roads}; got {to}")
    return to
