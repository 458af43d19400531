"""The way of a newcomer into the traffic: beside it first, then by steps into it.

Called by ``plan`` for a candidate that is staged or on probation.

* Beside the traffic (``policies.shadow``) it answers nobody. A founding has nothing to be compared with, and
  a rollback brings back bytes that were live: both go on at once.
* Every step of a probation has its share of the traffic from the policy; the next one begins when
  ``policies.probation`` confirms the last, and after the last the newcomer is promoted.
* A founding, a rollback, and every newcomer where the traffic cannot be shared take all of it in one step, by
  the counts of the policy's last one.
"""

from policies import probation
from policies.acts import (
    Act,
    BeginProbation,
    EndShadow,
    Move,
    Page,
    Promote,
    Revert,
    SealShadow,
    StartShadow,
    TakeStep,
)
from policies.clauses import Policy
from policies.lifecycle import Stage
from policies.status import Blocked
from policies.terms import Finding
from policies.world import Candidate, JobState, Kind, World


def staged(candidate: Candidate, world: World, policy: Policy, blocked: list[Blocked]) -> Act | None:
    """Return what is due for a newcomer that is loaded and has answered nothing yet."""
    if candidate.kind is Kind.ADAPTATION and candidate.shadow is None:
        return _beside(candidate, world, policy, blocked)
    if candidate.shadow is not None and candidate.shadow.finding is not Finding.PASS:
        reason = f"beside the traffic: {candidate.shadow.reason}"
        if candidate.shadow.finding is Finding.FAIL:
            return Move(candidate=candidate.id, to=Stage.ABANDONED, reason=reason)
        return EndShadow(candidate=candidate.id, reason=f"undecided {reason}")
    of, share = _step(candidate, world, policy, 1)
    return BeginProbation(candidate=candidate.id, of=of, share=share)


def _beside(candidate: Candidate, world: World, policy: Policy, blocked: list[Blocked]) -> Act | None:
    clause = policy.modification_protocol.shadow
    job = world.shadow
    if job is None or job.id != candidate.id:
        return StartShadow(candidate=candidate.id)
    if job.state is JobState.DONE:
        return SealShadow(candidate=candidate.id)
    if job.state is JobState.FAILED:
        if job.attempts < clause.attempts:
            return StartShadow(candidate=candidate.id)
        reason = f"its shadow failed {job.attempts} times: {job.detail} ({clause.clause})"
        return EndShadow(candidate=candidate.id, reason=reason)
    why = f"{clause.rows} rows or more are compared, within {clause.max_s:.0f} s ({clause.clause})"
    blocked.append(
        Blocked(what=f"candidate {candidate.id} runs beside the traffic", why=why, remedy="wait for traffic")
    )
    return None


def _whole(candidate: Candidate, world: World) -> bool:
    """Tell whether a newcomer takes all traffic at once.

    A founding has nobody to share with, an operator's rollback is wanted at once, and there are servers that
    cannot share the traffic between two generations.
    """
    return candidate.kind is not Kind.ADAPTATION or not world.splits


def _step(candidate: Candidate, world: World, policy: Policy, number: int) -> tuple[int, float]:
    """Return how many steps a candidate's probation has, and the share of one of them."""
    steps = policy.modification_protocol.probation.steps
    return (1, 1.0) if _whole(candidate, world) else (len(steps), steps[number - 1].share)


def watch(
    candidate: Candidate, world: World, policy: Policy, now: float, blocked: list[Blocked]
) -> Act | None:
    """Return what is due for a newcomer on probation."""
    clause, step = policy.modification_protocol.probation, candidate.step
    if step is None:
        of, share = _step(candidate, world, policy, 1)
        return TakeStep(candidate=candidate.id, number=1, of=of, share=share, reason="probation begins")
    if world.newcomer is None:
        return None
    whole = step.share == 1.0
    counts = clause.steps[-1 if whole else step.number - 1]
    compared = None if whole else world.incumbent
    outcome = probation.judge(world.newcomer, compared, clause, counts, now - step.since)
    if outcome.decision == "confirm":
        if step.number == step.of:
            return Promote(candidate=candidate.id, reason=outcome.reason)
        of, share = _step(candidate, world, policy, step.number + 1)
        return TakeStep(
            candidate=candidate.id, number=step.number + 1, of=of, share=share, reason=outcome.reason
        )
    # The first generation has nothing to go back to: it is served, and a person is called.
    if outcome.decision == "revert" and world.live is None:
        return Page(what=f"the first generation {candidate.id} is unhealthy", why=outcome.reason)
    if outcome.decision == "revert":
        return Revert(candidate=candidate.id, reason=outcome.reason, page=outcome.page)
    if outcome.page:
        return Page(what=f"candidate {candidate.id} and the incumbent are unhealthy", why=outcome.reason)
    what = f"candidate {candidate.id} is on probation, step {step.number} of {step.of}"
    blocked.append(Blocked(what=what, why=outcome.reason, remedy="wait for traffic"))
    return None
