"""What a turn knows: the folded journal and the fresh signals, as one frozen fact.

``daemon/control`` builds it; ``policies/plan.py`` decides on it. Nothing here reads anything.
"""

from enum import StrEnum

from pydantic import Field

from policies.lifecycle import Stage
from policies.probation import Step
from policies.shadow import ShadowVerdict
from policies.status import Freeze, Swap
from policies.terms import (
    Approval,
    Arm,
    Digest,
    Genome,
    Name,
    Release,
    Signal,
    Term,
    Time,
    Trigger,
    TriggerKind,
    Verdict,
)


class JobState(StrEnum):
    """How a worker process stands."""

    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"


class Job(Term):
    """A search, a panel or a shadow at work."""

    id: Name
    kind: str
    state: JobState
    started_at: Time
    attempts: int = Field(ge=1)
    cpu_s: float = Field(ge=0.0)
    detail: str = ""


class Kind(StrEnum):
    """Where a candidate comes from."""

    FOUNDING = "founding"
    ADAPTATION = "adaptation"
    ROLLBACK = "rollback"


class Candidate(Term):
    """A candidate as the journal tells it."""

    id: Name
    kind: Kind
    stage: Stage
    since: Time
    trigger: Trigger
    genome: Genome
    base_generation: int = Field(ge=0, description="Live when it was proposed.")
    bundle: Digest | None = None
    generation: int | None = None
    verdicts: tuple[Verdict, ...] = ()
    dossier: Digest | None = None
    report: Digest | None = None
    sealed_at: Time | None = None
    approvals: tuple[Approval, ...] = ()
    incumbent_distance: int = 0
    baseline_distance: int = 0
    shadow: ShadowVerdict | None = None
    step: Step | None = Field(default=None, description="Of its probation, as recorded last.")
    reason: str = ""


class RowCounts(Term):
    """Labelled rows since a change, by role; ``gate`` counts independent groups."""

    train: int = Field(ge=0)
    search: int = Field(ge=0)
    gate: int = Field(ge=0)


class Spent(Term):
    """A search that ended."""

    kind: TriggerKind
    at: Time
    cpu_s: float
    outcome: str
    reason: str = ""


class World(Term):
    """Everything a turn decides on."""

    policy: Digest
    frozen: Freeze | None
    live: Release | None
    last_generation: int = Field(ge=0)
    candidates: tuple[Candidate, ...]
    trigger: Trigger | None = Field(description="Open: recorded, its search not yet ended.")
    search: Job | None
    judge: Job | None
    shadow: Job | None
    signals: tuple[Signal, ...]
    rows: RowCounts
    swaps: tuple[Swap, ...]
    spent: tuple[Spent, ...]
    splits: bool = Field(description="Whether what serves can share the traffic between two generations.")
    newcomer: Arm | None = Field(default=None, description="Since the present step of probation began.")
    incumbent: Arm | None = Field(default=None, description="In the same window.")
