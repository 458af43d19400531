"""What a guard is shown: the case of one candidate, and what the panel hands back.

The worker's command is ``python -m guards CASE OUT``: CASE is this term as canonical JSON; OUT is a folder in
which it writes ``panel.json`` (``PanelResult``), ``report.html`` and ``report.json``.

The gate file is an ``.npz`` with arrays ``x`` (n, ...) in the model's input type, ``y`` (n,) int64 and
``group`` (n,) V8, ``regime`` (n,) uint8: 1 for rows since the change that triggered the search, 0 for rows of
the regime before it. One row a group and regime, so that rows are independent. The traffic file holds
``x`` only: recorded inputs of role ``reference``, in arrival order.
"""

from typing import Annotated

from pydantic import Field, model_validator

from policies.clauses import Policy
from policies.terms import Artefact, Digest, Genome, Name, Point, SearchResult, Task, Term, Trigger, Verdict


class Case(Term):
    """One candidate before the panel."""

    candidate: Name
    task: Task
    trigger: Trigger
    genome: Genome
    incumbent_genome: Genome | None
    bundle: Artefact
    incumbent: Artefact | None
    baseline: Artefact | None
    gate: Artefact
    traffic: Artefact
    policy: Policy
    policy_digest: Digest
    search: SearchResult
    baseline_distance: int = Field(ge=0)
    incumbent_distance: int = Field(ge=0)
    demo_key: bool = Field(description="The approving key is a demo's: every surface must say so.")
    device_class: Name | None = Field(
        default=None, description="Devices that will serve it; latency is then judged by their timings alone."
    )
    timings: tuple[Artefact, ...] = Field(default=(), description="JSON of ``Timings``, one a device.")

    @property
    def founding(self) -> bool:
        """Whether there is nothing to compare with yet."""
        return self.incumbent is None


class Timings(Term):
    """What one device measured of a case's bundles, side by side: each row with the best of its runs."""

    job: Name
    device: Name
    machine: str = Field(max_length=400, description="For people: processor, clock, runtime.")
    bundles: tuple[Digest, ...] = Field(min_length=1, max_length=2, description="The candidate's first.")
    rows: Digest = Field(description="Of the file whose rows were run.")
    times_ms: tuple[tuple[Annotated[float, Field(gt=0.0)], ...], ...] = Field(description="A list a bundle.")

    @model_validator(mode="after")
    def _whole(self) -> "Timings":
        lengths = {len(times) for times in self.times_ms}
        if len(self.times_ms) != len(self.bundles) or len(lengths) != 1:
            raise ValueError(
                f"expected {len(self.bundles)} lists of equal length, got {[len(t) for t in self.times_ms]}"
            )
        return self


class PanelResult(Term):
    """All verdicts, and the digests of the report."""

    candidate: Name
    verdicts: tuple[Verdict, ...]
    report: Digest = Field(description="Of report.html.")
    report_json: Digest
    wall_s: float
    runners_up: tuple[Point, ...] = ()
