"""What a run amounted to: the figures of the table, and the verdict whether the loop really closed.

``Figures`` is all that the table shows and all that ``--json`` writes. ``faults`` is the whole test behind
the exit status: an empty list closes the loop, and a figure that is not known is a fault, never a pass. Pure.
"""

from dataclasses import dataclass

from daemon.console.demo.footage import Share

MIN_FALL = 0.15
MIN_REGAINED = 0.95


@dataclass(frozen=True)
class Latency:
    """Median and 99th percentile, from when a request was due."""

    p50_ms: float
    p99_ms: float
    n: int


@dataclass(frozen=True)
class Figures:
    """One run."""

    demo_key: bool
    drift: str
    strength: float
    seed: int
    candidate: str | None
    generation: int | None
    before: Share
    under: Share
    after: Share
    unseen_before: Share | None
    unseen_after: Share | None
    oracle: float | None
    oracle_n: int
    alarm_delay_requests: int | None
    trigger_delay_requests: int | None
    false_alarms: int
    false_triggers: int
    quiet_requests: int
    founding_cpu_s: float
    adaptation_cpu_s: float
    oracle_cpu_s: float | None
    sent: int
    failed: int
    unrecorded: int
    latency: dict[str, Latency | None]
    phases_s: dict[str, float]
    journal_entries: int
    journal_fault: str | None
    report: str | None
    journal: str
    stuck: str | None

    @property
    def fall(self) -> float | None:
        """Points of accuracy that the drift cost, of 1."""
        if self.before.value is None or self.under.value is None:
            return None
        return self.before.value - self.under.value

    @property
    def regained(self) -> float | None:
        """The oracle's share that the adapted model reaches: the worse of live traffic and unseen digits."""
        unseen = None if self.unseen_after is None else self.unseen_after.value
        if not self.oracle or self.after.value is None or unseen is None:
            return None
        return min(self.after.value, unseen) / self.oracle


def faults(figures: Figures) -> list[str]:
    """Return every reason why the loop did not really close."""
    told = []
    if figures.stuck is not None:
        told.append(figures.stuck)
    if figures.generation is None:
        told.append("expected a generation of an adaptation to be live, there is none")
    if figures.sent == 0:
        told.append("expected requests, none was sent")
    if figures.failed:
        told.append(f"expected 0 failed requests, {figures.failed} of {figures.sent} failed")
    if figures.unrecorded:
        told.append(f"expected every request in the camera's record, {figures.unrecorded} are missing")
    told += _accuracy_faults(figures)
    if figures.false_triggers:
        told.append(f"expected 0 triggers in the quiet while, there were {figures.false_triggers}")
    if figures.journal_fault is not None:
        told.append(f"expected the journal to verify: {figures.journal_fault}")
    return told


def _accuracy_faults(figures: Figures) -> list[str]:
    told = []
    if figures.fall is None:
        told.append("expected accuracies before and under drift, one is not known")
    elif figures.fall < MIN_FALL:
        told.append(
            f"expected accuracy to fall by {100 * MIN_FALL:.0f} points, it fell by {100 * figures.fall:.1f}"
        )
    if figures.regained is None:
        told.append("expected the adapted model beside its oracle, one is not known")
    elif figures.regained < MIN_REGAINED:
        told.append(
            f"expected {100 * MIN_REGAINED:.0f} % of the oracle's accuracy, "
            f"got {100 * figures.regained:.1f} %"
        )
    return told
