"""The leaves of a policy: every table that decides something, with its clause id.

The three headings are those of a predetermined change control plan (FDA, final guidance, December 2024).
No threshold has a default: the file must say it. Bounds here only refuse what has no meaning.
"""

from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field, PlainValidator, model_validator

from policies.terms import Datatype, Level, Name, Share, Term

Alpha = float


class Clause(Term):
    """A table of the policy that a verdict, a trigger or a refusal can cite."""

    clause: str = Field(pattern=r"^[A-Z]{2}-[0-9]+(\.[0-9]+)*$")


class Architecture(Clause):
    """Which changes of architecture are contemplated."""

    spaces: tuple[Name, ...] = Field(min_length=1)
    max_edit_distance: int = Field(ge=0, description="Genes that may differ from the incumbent.")
    max_edit_distance_baseline: int = Field(ge=0, description="Genes that may differ from the baseline.")


class Size(Clause):
    """How large a candidate may be."""

    max_params: int = Field(gt=0)
    max_size_bytes: int = Field(gt=0)


class Pace(Clause):
    """The rate limiter on self-modification."""

    swaps_per_day: int = Field(ge=0)
    min_gap_s: float = Field(ge=0.0, description="Between two swaps.")


class Modifications(Term):
    """Description of modifications: what may change, how far, how often."""

    architecture: Architecture
    size: Size
    pace: Pace


class Data(Clause):
    """Roles of samples, and how many a step needs."""

    train_share: Share
    search_share: Share
    gate_share: Share
    reference_share: Share
    min_train_rows: int = Field(gt=0, description="Labelled, since the change, for an adaptation.")
    min_search_rows: int = Field(gt=0)
    min_gate_rows: int = Field(gt=0, description="Independent groups, since the change.")
    max_gate_rows: int = Field(gt=0)

    @model_validator(mode="after")
    def _whole(self) -> "Data":
        total = self.train_share + self.search_share + self.gate_share + self.reference_share
        if abs(total - 1.0) > 1e-9:
            raise ValueError(f"expected the four role shares to sum to 1, got {total:g}")
        return self


class DriftMonitoring(Clause):
    """The label-free family and its calibration."""

    false_alarm_every: int = Field(ge=1000, description="Requests between two false alarms.")
    min_reference_rows: int = Field(ge=1000)
    block_rows: int = Field(ge=1, description="Block length of the bootstrap.")
    allowance: float = Field(gt=0.0, le=2.0, description="CUSUM k, in standard deviations.")
    warning_ratio: float = Field(gt=0.0, lt=1.0, description="Warning at this share of the threshold.")


class ErrorMonitoring(Clause):
    """Delayed labels: ADWIN on the error stream, and the accuracy with its interval."""

    delta: float = Field(gt=0.0, lt=1.0, description="ADWIN confidence.")
    window_rows: int = Field(ge=50, description="Latest labelled rows that accuracy is measured on.")
    confidence: float = Field(gt=0.5, lt=1.0, description="Of the Wilson interval.")
    min_label_share: Share = Field(description="Labels expected per request; fewer is a warning.")


class LatencyMonitoring(Clause):
    """Latency against its objective."""

    objective_ms: float = Field(gt=0.0)
    budget: float = Field(gt=0.0, lt=1.0, description="Allowed share of slower requests.")
    burn_rate: float = Field(gt=1.0, description="Alarm when the budget burns this many times too fast.")
    window_rows: int = Field(ge=100)


class Monitoring(Term):
    """What is watched."""

    drift: DriftMonitoring
    errors: ErrorMonitoring
    latency: LatencyMonitoring


class Condition(Term):
    """One monitor at or above one level."""

    monitor: Name
    level: Literal[Level.WARNING, Level.ALARM]


class TriggerRule(Clause):
    """A group of conditions that together ask for a search."""

    kind: Literal["data", "latency"]
    all_of: tuple[Condition, ...] = Field(min_length=1)
    min_accuracy_loss: float = Field(
        ge=0.0, lt=1.0, description="Measured loss, lower bound, that makes an alarm worth acting on."
    )
    hold_s: float = Field(ge=0.0, description="The group must hold this long.")


class Trigger(Clause):
    """When alarms become a search."""

    rules: tuple[TriggerRule, ...] = Field(min_length=1)
    cooldown_s: float = Field(ge=0.0, description="After a search ended, before the next may start.")


class Search(Clause):
    """What searches may spend."""

    founding_cpu_s: float = Field(gt=0.0)
    budget_cpu_s: float = Field(gt=0.0)
    budget_cpu_s_per_day: float = Field(gt=0.0)
    max_memory_bytes: int = Field(gt=0)
    threads: int = Field(ge=1)
    timeout_s: float = Field(gt=0.0)


class Panel(Clause):
    """Which guards a candidate must pass."""

    required: tuple[Name, ...] = Field(min_length=1)
    required_founding: tuple[Name, ...] = Field(min_length=1)
    timeout_s: float = Field(gt=0.0, description="A guard that takes longer is inconclusive.")
    attempts: int = Field(ge=1, le=5, description="Inconclusive after so many attempts counts as fail.")


class Integrity(Clause):
    """What an ONNX bundle may contain."""

    allowed_ops: tuple[str, ...] = Field(min_length=1)
    input_datatypes: tuple[Datatype, ...] = Field(min_length=1)


class Parity(Clause):
    """Served outputs against the trained network's."""

    atol: float = Field(gt=0.0)
    rtol: float = Field(ge=0.0)


class Constraints(Clause):
    """Resources, measured on the bytes that will ship."""

    max_params: int = Field(gt=0)
    max_size_bytes: int = Field(gt=0)


class Latency(Clause):
    """Time through the real runtime, one row, one thread, interleaved with the incumbent."""

    max_p99_ms: float = Field(gt=0.0)
    max_ratio: float = Field(gt=0.0, description="Median against the incumbent's.")
    rows: int = Field(ge=50)


class Floor(Clause):
    """The least accuracy, lower confidence bound."""

    min_accuracy: Share
    alpha: Alpha = Field(gt=0.0, lt=0.5)


class NonInferiority(Clause):
    """Paired non-inferiority: the lower bound of the difference must lie above ``-margin``."""

    margin: float = Field(gt=0.0, lt=0.5)
    alpha: Alpha = Field(gt=0.0, lt=0.5)
    power: float = Field(gt=0.5, lt=1.0)
    discordance: float = Field(gt=0.0, le=1.0, description="Share of rows expected to differ, for the size.")


class Slices(Clause):
    """No class may become significantly worse than the incumbent (Holm over classes)."""

    alpha: Alpha = Field(gt=0.0, lt=0.5)
    min_rows: int = Field(ge=5)


class Evaluation(Term):
    """The guards' limits."""

    panel: Panel
    integrity: Integrity
    parity: Parity
    constraints: Constraints
    latency: Latency
    floor: Floor
    incumbent: NonInferiority
    baseline: NonInferiority
    retention: NonInferiority
    slices: Slices


class Approval(Clause):
    """Who must say yes."""

    approvers: tuple[str, ...] = Field(min_length=1, description="Principals of the allowed-signers file.")
    quorum: int = Field(ge=1)
    window_s: float = Field(gt=0.0, description="A candidate not approved by then expires.")
    max_ttl_s: float = Field(gt=0.0, description="An approval may not be valid for longer.")

    @model_validator(mode="after")
    def _reachable(self) -> "Approval":
        if self.quorum > len(set(self.approvers)):
            raise ValueError(
                f"expected a quorum of at most {len(set(self.approvers))} people, got {self.quorum}"
            )
        return self


class Shadow(Clause):
    """What a newcomer must show beside the traffic, before it answers any of it.

    It is run on inputs that the incumbent has answered long before. Data that drifted is why one searches, so
    disagreement is expected: ``max_disagreement`` is there against gross mistakes.
    """

    rows: int = Field(ge=20, description="Compared at the first look; each further look has twice as many.")
    max_disagreement: float = Field(gt=0.0, lt=1.0, description="Share of rows whose top class differs.")
    max_error_share: Share = Field(description="Rows that the newcomer could not answer.")
    max_p50_ratio: float = Field(
        gt=0.0, description="Median of its time against the incumbent's, row by row."
    )
    max_s: float = Field(gt=0.0, description="Undecided for longer ends the candidate.")
    alpha: Alpha = Field(gt=0.0, lt=0.5, description="Over all looks together.")
    attempts: int = Field(ge=1, le=5, description="A worker that was lost so often ends the candidate.")


class ProbationStep(Term):
    """One step of a probation. The founding and rollbacks take all traffic, by the counts of the last one."""

    share: float = Field(gt=0.0, lt=1.0, description="Of the traffic.")
    min_requests: int = Field(gt=0, description="Of the newcomer, in this step.")
    min_labels: int = Field(ge=0, description="Of either arm, in this step; 0: labels are not waited for.")
    max_accuracy_loss: float = Field(gt=0.0, lt=1.0, description="That must be ruled out in this step.")


class Probation(Clause):
    """How the newcomer is watched beside the incumbent, while its share grows step by step."""

    max_s: float = Field(gt=0.0, description="A step that is undecided for longer counts as failed.")
    max_error_share: Share = Field(
        description="Of an arm's requests; where both fail more, of the difference."
    )
    max_p99_ms: float = Field(gt=0.0)
    alpha: Alpha = Field(gt=0.0, lt=0.5, description="Of taking an equal for a worse one, over all steps.")
    steps: tuple[ProbationStep, ...] = Field(min_length=1, max_length=20)

    @model_validator(mode="after")
    def _grows(self) -> "Probation":
        shares = [step.share for step in self.steps]
        if any(later <= earlier for earlier, later in pairwise(shares)):
            raise ValueError(f"expected shares that grow from step to step, got {shares}")
        return self


def _sure(value: object) -> object:
    # A union would tell of each of its sides; a person wants one sentence.
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if value == "off" or (number and 0.0 < float(str(value)) <= 1.0):
        return value
    raise ValueError('expected a number in (0, 1], or the word "off"')


class Exits(Clause):
    """When a row may leave a network early."""

    confidence: Annotated[float | Literal["off"], PlainValidator(_sure)] = Field(
        description="Softmax maximum at the exit from which on a row leaves there; off: nobody does."
    )

    @property
    def threshold(self) -> float | None:
        """Return the confidence, or None where exits are off."""
        return None if isinstance(self.confidence, str) else float(self.confidence)


class Protocol(Term):
    """Modification protocol: data, monitoring, search, evaluation, update."""

    data: Data
    monitoring: Monitoring
    trigger: Trigger
    search: Search
    evaluation: Evaluation
    approval: Approval
    shadow: Shadow
    probation: Probation
    exits: Exits


class Risk(Clause):
    """Something that can go wrong, and which guards stand against it."""

    risk: str = Field(min_length=10)
    guards: tuple[Name, ...] = Field(min_length=1)


class Impact(Term):
    """Impact assessment."""

    risks: tuple[Risk, ...] = Field(min_length=1)


class Policy(Term):
    """The operator's law for one task."""

    format: Literal[1]
    id: Name
    version: int = Field(ge=1)
    task: Name
    description_of_modifications: Modifications
    modification_protocol: Protocol
    impact_assessment: Impact
