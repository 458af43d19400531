"""How well a task stands, in one word, with the reasons; the terminal's dot and the page's dot are this.

* ``degraded``: something that should hold does not, or is not known although it should be.
* ``attention``: something is under way or waits for a person.
* ``ok``: neither. A state that is not known is never ok.

``instar status`` exits 2 on ``degraded``. Pure; decides nothing about the loop.
"""

from dataclasses import dataclass
from enum import StrEnum

from policies.status import Status
from policies.terms import Level


class Health(StrEnum):
    """One word for the dot."""

    OK = "ok"
    ATTENTION = "attention"
    DEGRADED = "degraded"


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """The word, and a sentence a reason; a freeze and what is blocked have places of their own."""

    health: Health
    reasons: tuple[str, ...]


_NOT_YET = frozenset(
    {"founding", "exporting", "judging", "approval", "staging", "shadow", "probation", "commissioning"}
)
"""Phases in which the monitors of the live generation may not have their reference yet."""


def diagnose(status: Status) -> Diagnosis:
    """Return how well the task stands."""
    bad, soft = _degraded(status), _attention(status)
    waits = bool(soft or status.blocked or status.frozen)
    health = Health.DEGRADED if bad else Health.ATTENTION if waits else Health.OK
    return Diagnosis(health, (*bad, *soft))


def _degraded(status: Status) -> tuple[str, ...]:
    told = []
    if status.generation is None:
        told.append("no generation is live yet")
    if status.serving != "ok":
        told.append(f"the data plane is not well: {status.serving}")
    if status.journal_valid is None:
        told.append("the journal has not been verified yet")
    elif not status.journal_valid:
        told.append("the journal does not verify: somebody or something changed it")
    if status.policy_problem is not None:
        told.append(f"the policy file on disk is not in force: {status.policy_problem}")
    told += [f"{s.monitor} alarms: {s.reason}" for s in status.signals if s.level is Level.ALARM]
    if status.drift is Level.UNKNOWN and status.phase not in _NOT_YET:
        blind = ", ".join(s.monitor for s in status.signals if s.level is Level.UNKNOWN) or "every monitor"
        told.append(f"{blind} does not know how things stand")
    return tuple(told)


def _attention(status: Status) -> tuple[str, ...]:
    told = [f"{s.monitor} warns: {s.reason}" for s in status.signals if s.level is Level.WARNING]
    if status.drift is Level.UNKNOWN and status.phase in _NOT_YET:
        told.append(
            f"{status.phase}: {status.reference_rows:,} of {status.reference_needed:,} reference rows"
        )
    return tuple(told)
