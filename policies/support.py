"""What a policy's promises need, and whether its own numbers can keep them.

A margin needs rows; a false-alarm budget needs a reference. A policy that promises more than its counts can
show is refused when it is read, not when it fails.
"""

from math import ceil
from statistics import NormalDist

from policies.clauses import NonInferiority, Policy

MAX_HORIZON = 20
"""Requests between false alarms, per reference row, that a bootstrap may be asked to extrapolate to."""


def required_rows(clause: NonInferiority) -> int:
    """Return the paired rows that show non-inferiority of an equal candidate.

    Source: normal approximation for paired binary data, n = (z_alpha + z_power)^2 * discordance / margin^2;
    Liu et al., Statistics in Medicine 21 (2002).

    >>> required_rows(NonInferiority(clause="MP-1", margin=0.02, alpha=0.05, power=0.9, discordance=0.08))
    1713
    """
    normal = NormalDist()
    z = normal.inv_cdf(1 - clause.alpha) + normal.inv_cdf(clause.power)
    return ceil(z * z * clause.discordance / clause.margin**2)


def unsupported(policy: Policy) -> list[tuple[tuple[str, ...], str, str]]:
    """Return (key, clause, reason) of every promise that the policy's own counts cannot keep."""
    protocol = policy.modification_protocol
    found: list[tuple[tuple[str, ...], str, str]] = []
    rows = protocol.data.min_gate_rows
    for name in ("incumbent", "baseline", "retention"):
        clause: NonInferiority = getattr(protocol.evaluation, name)
        need = required_rows(clause)
        if need > rows:
            key = ("modification_protocol", "evaluation", name, "margin")
            reason = (
                f"a margin of {clause.margin:g} at alpha {clause.alpha:g} and power {clause.power:g} needs "
                f"{need} gate rows, but data.min_gate_rows is {rows}; raise it or widen the margin"
            )
            found.append((key, clause.clause, reason))
    drift = protocol.monitoring.drift
    most = MAX_HORIZON * drift.min_reference_rows
    if drift.false_alarm_every > most:
        key = ("modification_protocol", "monitoring", "drift", "false_alarm_every")
        reason = (
            f"one false alarm every {drift.false_alarm_every} requests cannot be calibrated on "
            f"{drift.min_reference_rows} reference rows (at most {most}); raise min_reference_rows"
        )
        found.append((key, drift.clause, reason))
    if drift.min_reference_rows < 100 * drift.block_rows / 2:
        key = ("modification_protocol", "monitoring", "drift", "block_rows")
        reason = f"a bootstrap needs at least 50 blocks; {drift.min_reference_rows} rows hold fewer"
        found.append((key, drift.clause, reason))
    return found
