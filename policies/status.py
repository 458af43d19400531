"""What an operator is told at a glance, and the JSON that control's socket and its page both give."""

from pydantic import Field

from policies.probation import Step
from policies.shadow import ShadowVerdict
from policies.terms import Digest, Genome, Level, Name, Signal, Term, Time, Trigger, Verdict


class Freeze(Term):
    """Adaptation stands still until somebody thaws it; serving goes on."""

    at: Time
    by: str
    reason: str


class Swap(Term):
    """The last change of the live generation."""

    at: Time
    generation: int
    candidate: Name
    kind: str = Field(description="founding, adaptation or rollback")


class CandidateView(Term):
    """One candidate, whole."""

    id: Name
    stage: str
    since: Time
    reason: str
    trigger: Trigger
    genome: Genome | None
    bundle: Digest | None
    dossier: Digest | None
    report: str | None = Field(description="Path of the HTML report.")
    generation: int | None
    expires_at: Time | None
    approvals: tuple[str, ...] = Field(description="Principals who approved so far.")
    quorum: int
    verdicts: tuple[Verdict, ...]
    shadow: ShadowVerdict | None = Field(default=None, description="What it came to beside the traffic.")
    step: Step | None = Field(default=None, description="Of its probation.")


class Blocked(Term):
    """Something that cannot go on by itself, and what would help."""

    what: str
    why: str
    remedy: str


class Status(Term):
    """The state of one task. ``drift`` is the worst level among all monitors' signals."""

    at: Time
    task: Name
    model: Name
    generation: int | None
    bundle: Digest | None
    stage: str | None = Field(description="Of the open candidate, or of what is live.")
    phase: str = Field(description="One word of the loop: founding, commissioning, watching, ...")
    frozen: Freeze | None
    open_candidate: CandidateView | None
    drift: Level
    signals: tuple[Signal, ...]
    reference_rows: int
    reference_needed: int
    last_swap: Swap | None
    blocked: tuple[Blocked, ...]
    serving: str = Field(description="ok, unreachable or why it is not ready")
    newcomer_share: float
    search_cpu_s_today: float
    search_cpu_s_budget: float
    swaps_today: int
    swaps_allowed: int
    policy: Digest
    policy_version: int
    policy_problem: str | None = Field(description="Why the file on disk is not the policy in force.")
    journal_entries: int
    journal_valid: bool | None
    demo_key: bool
    trust: str = Field(description="Whose keys: an allowed-signers path, or the words demo key.")
    pid: int
    version: str
