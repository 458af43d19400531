"""The nouns of the loop: frozen facts that travel between rooms and processes as canonical JSON.

* Frozen, no unknown keys, no NaN, strict types: a fact is checked once, where it is made.
* Times are seconds since the epoch, UTC. Units stand in names.
* A digest is ``sha256:<hex>``.

Nothing here decides anything.
"""

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from policies.wire import DIGEST_PATTERN

MOST = 2**53 - 1
"""The largest whole number that canonical JSON carries (RFC 8785)."""

Digest = Annotated[str, Field(pattern=DIGEST_PATTERN)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.-]{0,62}$")]
Time = Annotated[float, Field(ge=0.0)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]


class Term(BaseModel):
    """A frozen fact."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=True)


class Datatype(StrEnum):
    """Tensor element types, in the Open Inference Protocol's spelling."""

    BOOL = "BOOL"
    UINT8 = "UINT8"
    UINT16 = "UINT16"
    UINT32 = "UINT32"
    UINT64 = "UINT64"
    INT8 = "INT8"
    INT16 = "INT16"
    INT32 = "INT32"
    INT64 = "INT64"
    FP16 = "FP16"
    FP32 = "FP32"
    FP64 = "FP64"


class TensorSpec(Term):
    """A named tensor; ``-1`` in ``shape`` is the batch."""

    name: str
    datatype: Datatype
    shape: tuple[int, ...]


class Role(StrEnum):
    """What a sample may be used for; given once, at ingest, never changed."""

    TRAIN = "train"
    SEARCH = "search"
    GATE = "gate"
    REFERENCE = "reference"


class Modality(StrEnum):
    """What kind of input a task has.

    ``image``: UINT8 (-1, h, w), (-1, h, w, 3) or (-1, 3, h, w); ``window``: FP32 (-1, channels, steps);
    ``table``: FP32 (-1, features).
    """

    IMAGE = "image"
    WINDOW = "window"
    TABLE = "table"


class Precision(StrEnum):
    """What a network computes in."""

    FP32 = "fp32"
    INT8 = "int8"


class Schedule(StrEnum):
    """How a supernet is founded.

    ``sandwich``: all sizes at once, the largest teaches; ``shrinking``: kinds of genes become elastic in
    turn.
    """

    SANDWICH = "sandwich"
    SHRINKING = "shrinking"


class Source(Term):
    """A labelled file that founds a task: an ``.npz`` with arrays ``x`` and ``y``."""

    path: str = Field(description="Relative to the task file.")
    first: int = Field(ge=0, description="First row, inclusive.")
    last: int = Field(gt=0, description="Last row, exclusive.")


class Augmentation(Term):
    """The natural jitter that training may assume; nothing of any drift. What is not named does not
    jitter."""

    rotate_deg: float = Field(default=0.0, ge=0.0, le=45.0, description="Images.")
    shift_px: float = Field(default=0.0, ge=0.0, le=8.0, description="Images.")
    scale: float = Field(default=0.0, ge=0.0, le=0.5, description="Images.")
    shift_steps: int = Field(default=0, ge=0, description="Windows: how far one may begin elsewhere.")
    gain: float = Field(default=0.0, ge=0.0, le=0.9, description="Images and windows, as a share.")
    noise: float = Field(
        default=0.0, ge=0.0, le=0.5, description="Of full scale in images, of a standard deviation elsewhere."
    )


class Task(Term):
    """What is to be learned and kept fit."""

    name: Name
    modality: Modality
    model: Name = Field(description="The model name that clients use.")
    input: TensorSpec
    classes: tuple[str, ...] = Field(min_length=2)
    group_parameter: str = Field(description="Request parameter whose equal values are near-duplicates.")
    sources: tuple[Source, ...]
    augmentation: Augmentation


class Level(StrEnum):
    """How far a monitor has come; ``unknown`` is neither good nor bad."""

    UNKNOWN = "unknown"
    QUIET = "quiet"
    WARNING = "warning"
    ALARM = "alarm"


class Signal(Term):
    """What one monitor says at one moment. A score of 1 is its calibrated threshold."""

    monitor: Name
    level: Level
    score: float | None = Field(default=None, ge=0.0)
    since: Time | None = Field(default=None, description="When the present level began.")
    at: Time
    n: int = Field(ge=0, description="Observations that the statement rests on.")
    reason: str
    facts: dict[str, float] = Field(default_factory=dict, description="Numbers for people and rules.")


class TriggerKind(StrEnum):
    """Why we search."""

    FOUNDING = "founding"
    DATA = "data"
    LATENCY = "latency"


class Trigger(Term):
    """The reason for a search: which signals met which clause."""

    id: Name
    kind: TriggerKind
    at: Time
    clause: str
    reason: str
    signals: tuple[Signal, ...]
    policy: Digest
    generation: int = Field(ge=0, description="The live generation it speaks of; 0 at founding.")


class Limits(Term):
    """What a candidate must meet, on the device that serves it."""

    max_params: int = Field(gt=0, le=MOST)
    max_size_bytes: int = Field(gt=0, le=MOST)
    max_p99_ms: float = Field(gt=0.0)
    max_edit_distance: int = Field(ge=0, le=MOST, description="Genes that may differ from the parent.")


class Genome(Term):
    """A point in a space: one integer gene a decision."""

    space: Name
    genes: tuple[int, ...]


class Artefact(Term):
    """Bytes by path and digest; whoever opens the path checks the digest."""

    path: str
    digest: Digest


class Heirloom(Term):
    """What an earlier regime's search left: tried first, since a regime may return."""

    generation: int = Field(gt=0)
    genome: Genome
    state: Artefact
    accuracy: Share = Field(description="On rows of role search, in its own regime.")


class Brief(Term):
    """What one search may spend and must meet."""

    id: Name
    kind: TriggerKind
    task: Task
    seed: int = Field(ge=0, le=MOST)
    budget_cpu_s: float = Field(gt=0.0)
    max_memory_bytes: int = Field(gt=0, le=MOST)
    threads: int = Field(ge=1, le=1024)
    limits: Limits
    data: Artefact = Field(description="npz of roles train, search and replay; never gate.")
    parent_generation: int = Field(ge=0)
    parent_genome: Genome | None
    parent_state: Artefact | None = Field(description="safetensors of the supernet to start from.")
    parent_archive: Artefact | None = Field(description="JSON of the last Pareto archive.")
    precisions: tuple[Precision, ...] = Field(default=(Precision.FP32,), min_length=1)
    profile: Artefact | None = Field(default=None, description="JSON of this device's costs; None: measured.")
    library: tuple[Heirloom, ...] = Field(default=(), description="Earlier regimes, the latest first.")
    served_p50_ms: float | None = Field(
        default=None, gt=0.0, description="The parent's median on its device, by telemetry."
    )
    exit_confidence: float | None = Field(
        default=None, gt=0.0, le=1.0, description="At which rows may leave early; None: no exit is sought."
    )
    moved: bool = Field(
        default=False,
        description="The parent was chosen for another device: how fast it is here is no measure.",
    )
    schedule: Schedule = Schedule.SANDWICH
    pseudo_labels: bool = Field(
        default=False, description="Whether a search without labels may trust the parent's own answers."
    )


class Evidence(Term):
    """One measured number."""

    name: str
    value: float
    unit: str
    n: int = Field(ge=0)
    interval: tuple[float, float] | None = None
    limit: float | None = None
    source: Digest | None = None


class Point(Term):
    """An architecture that a search looked at."""

    genome: Genome
    accuracy: float
    latency_ms: float
    params: int
    measured: bool = Field(description="False: predicted only.")


class SearchResult(Term):
    """What a search worker hands back, beside the files it names (relative to its output folder)."""

    brief: Name
    seed: int
    winner: Genome
    bundle: Artefact
    state: Artefact
    archive: Artefact
    evidence: tuple[Evidence, ...]
    points: tuple[Point, ...]
    cpu_s: float
    wall_s: float
    architectures: int = Field(ge=0)
    versions: dict[str, str]
    phases_s: dict[str, float]


class Finding(StrEnum):
    """The three answers."""

    PASS = "pass"
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"


class Verdict(Term):
    """What a guard says of a case."""

    guard: Name
    clause: str
    finding: Finding
    reason: str
    evidence: tuple[Evidence, ...] = ()
    attempts: int = Field(default=1, ge=1)


class Subject(Term):
    """What an approval speaks of: all digests at once."""

    candidate: Name
    bundle: Digest
    incumbent: Digest | None
    policy: Digest
    dossier: Digest
    report: Digest
    nonce: str = Field(min_length=16)


class Dossier(Term):
    """A candidate and everything said of it, sealed by its digest."""

    candidate: Name
    bundle: Digest
    incumbent: Digest | None
    baseline: Digest | None
    policy: Digest
    trigger: Trigger
    genome: Genome
    verdicts: tuple[Verdict, ...]
    report: Digest
    sealed_at: Time
    nonce: str = Field(min_length=16)

    def subject(self, digest: str) -> Subject:
        """Return what a person signs; ``digest`` is this dossier's own."""
        return Subject(
            candidate=self.candidate,
            bundle=self.bundle,
            incumbent=self.incumbent,
            policy=self.policy,
            dossier=digest,
            report=self.report,
            nonce=self.nonce,
        )


class Approval(Term):
    """A person's yes or no over one subject, until a moment."""

    decision: Literal["approve", "decline"]
    subject: Subject
    principal: str = Field(min_length=1)
    reason: str = Field(min_length=10)
    at: Time
    expires_at: Time


class Release(Term):
    """A generation: it only grows; a rollback is a new one that names old bytes."""

    generation: int = Field(gt=0)
    bundle: Digest
    candidate: Name
    at: Time


class Slot(Term):
    """One model in the data plane."""

    generation: int = Field(gt=0)
    bundle: Digest


class Deployment(Term):
    """What the data plane shall serve: a whole, wanted state, so that applying it twice is once."""

    revision: int = Field(ge=0)
    model: Name
    stable: Slot | None
    newcomer: Slot | None
    newcomer_share: Share
    previous: Slot | None = Field(description="Kept warm for an instant way back.")
    exit_confidence: float | None = Field(
        default=None, gt=0.0, le=1.0, description="At which a row leaves early; None: nobody does."
    )


class Arm(Term):
    """What one generation did in the probation window."""

    generation: int = Field(gt=0)
    requests: int = Field(ge=0)
    errors: int = Field(ge=0, description="Server errors, time-outs and answers that are not finite.")
    not_finite: int = Field(ge=0, description="Of the errors, answers that are not finite.")
    p50_ms: float | None
    p99_ms: float | None
    labels: int = Field(ge=0)
    correct: int = Field(ge=0)
