"""The whole decision of a turn: ``plan(world, policy, now) -> Plan``. No IO, no state.

* At most one act a candidate a turn.
* Frozen: nothing starts, stages or promotes; a sick newcomer still loses its traffic, a person is still
  called, and an operator's rollback goes on.
* One open candidate and one open trigger at a time; workers that run are waited for.
* What cannot go on says why, and what would help.
"""

from policies import limits, rollout, rules
from policies.acts import (
    Act,
    AdoptSearch,
    CloseSearch,
    Export,
    Judge,
    LapseTrigger,
    Move,
    OpenTrigger,
    Page,
    Retire,
    Revert,
    Seal,
    StageSlot,
    StartSearch,
)
from policies.approvals import tally
from policies.clauses import Policy
from policies.lifecycle import OPEN, Stage
from policies.status import Blocked
from policies.terms import Term, Trigger, TriggerKind
from policies.world import Candidate, JobState, Kind, World


class Plan(Term):
    """What to do now, and what waits for what."""

    acts: tuple[Act, ...]
    blocked: tuple[Blocked, ...]


def plan(world: World, policy: Policy, now: float) -> Plan:
    """Return the acts of this turn."""
    acts: list[Act] = []
    blocked: list[Blocked] = []
    if world.frozen is not None:
        why = f"by {world.frozen.by}: {world.frozen.reason}"
        blocked.append(Blocked(what="adaptation is frozen", why=why, remedy="instar thaw --reason …"))
    rollback = next((c for c in world.candidates if c.kind is Kind.ROLLBACK and c.stage in OPEN), None)
    for candidate in world.candidates:
        if rollback is not None and candidate is not rollback and candidate.stage in OPEN:
            acts.append(_give_way(candidate))
            continue
        act = _candidate(candidate, world, policy, now, blocked)
        if act is not None and (world.frozen is None or _allowed_frozen(act, candidate)):
            acts.append(act)
    if rollback is not None and world.search is not None:
        acts.append(CloseSearch(job=world.search.id, reason="an operator rolls back: its base is given up"))
    else:
        acts += _search(world, policy, now, blocked)
    return Plan(acts=tuple(acts), blocked=tuple(blocked))


def _give_way(candidate: Candidate) -> Act:
    """End a candidate whose base an operator leaves behind."""
    reason = "an operator rolls back"
    if candidate.stage is Stage.PROBATION:
        return Revert(candidate=candidate.id, reason=reason, page=False)
    return Move(candidate=candidate.id, to=Stage.EXPIRED, reason=reason)


def _allowed_frozen(act: Act, candidate: Candidate) -> bool:
    """Tell whether an act goes on while frozen: what makes safe, and what a person asked for."""
    return isinstance(act, Revert | Retire | Page) or candidate.kind is Kind.ROLLBACK


def _candidate(
    candidate: Candidate, world: World, policy: Policy, now: float, blocked: list[Blocked]
) -> Act | None:
    """Return the one act that a candidate is due."""
    live = 0 if world.live is None else world.live.generation
    if candidate.stage is Stage.LIVE:
        if candidate.generation == live:
            return None
        return Retire(candidate=candidate.id, reason=f"generation {live} is confirmed")
    if candidate.stage not in OPEN:
        return None
    moved_on = candidate.base_generation != live
    if moved_on and candidate.stage is not Stage.PROBATION:
        reason = f"its base generation {candidate.base_generation} moved on to {live}"
        return Move(candidate=candidate.id, to=Stage.EXPIRED, reason=reason)
    match candidate.stage:
        case Stage.PROPOSED:
            far = limits.distance(candidate, policy)
            if far is not None:
                return Move(candidate=candidate.id, to=Stage.REJECTED, reason=far)
            return Export(candidate=candidate.id)
        case Stage.EXPORTED:
            return _judge(candidate, world, policy)
        case Stage.CLEARED:
            return _approval(candidate, policy, now, blocked)
        case Stage.APPROVED:
            return _stage(candidate, world, policy, now, blocked)
        case Stage.STAGED:
            return rollout.staged(candidate, world, policy, blocked)
        case _:
            return rollout.watch(candidate, world, policy, now, blocked)


def _judge(candidate: Candidate, world: World, policy: Policy) -> Act | None:
    job = world.judge
    if job is None or job.id != candidate.id:
        return Judge(candidate=candidate.id)
    if job.state is JobState.DONE:
        return Seal(candidate=candidate.id)
    if job.state is JobState.FAILED:
        panel = policy.modification_protocol.evaluation.panel
        if job.attempts < panel.attempts:
            return Judge(candidate=candidate.id)
        reason = f"the guard worker failed {job.attempts} times: {job.detail} ({panel.clause})"
        return Move(candidate=candidate.id, to=Stage.ABANDONED, reason=reason)
    return None


def _approval(candidate: Candidate, policy: Policy, now: float, blocked: list[Blocked]) -> Act | None:
    clause = policy.modification_protocol.approval
    said = tally(candidate.approvals, clause, now)
    if said == "declined":
        no = next(a for a in candidate.approvals if a.decision == "decline")
        return Move(
            candidate=candidate.id, to=Stage.REJECTED, reason=f"declined by {no.principal}: {no.reason}"
        )
    if said == "approved":
        names = ", ".join(sorted({a.principal for a in candidate.approvals}))
        return Move(candidate=candidate.id, to=Stage.APPROVED, reason=f"approved by {names}")
    sealed_at = candidate.since if candidate.sealed_at is None else candidate.sealed_at
    left = sealed_at + clause.window_s - now
    if left <= 0:
        reason = f"not approved within {clause.window_s:.0f} s ({clause.clause})"
        return Move(candidate=candidate.id, to=Stage.EXPIRED, reason=reason)
    yes = len({a.principal for a in candidate.approvals if a.expires_at > now})
    blocked.append(
        Blocked(
            what=f"candidate {candidate.id} waits for approval",
            why=f"{yes} of {clause.quorum} signatures ({clause.clause}), {left:.0f} s left",
            remedy=f"instar approve {candidate.id} --key KEY --reason …, or instar decline",
        )
    )
    return None


def _stage(
    candidate: Candidate, world: World, policy: Policy, now: float, blocked: list[Blocked]
) -> Act | None:
    if candidate.kind is not Kind.ROLLBACK:
        clause = policy.modification_protocol.approval
        if tally(candidate.approvals, clause, now) != "approved":
            reason = f"its approval lapsed before it could be staged ({clause.clause})"
            return Move(candidate=candidate.id, to=Stage.EXPIRED, reason=reason)
    held = limits.pace(world, policy, now) if candidate.kind is Kind.ADAPTATION else None
    if held is not None:
        blocked.append(
            Blocked(what=f"candidate {candidate.id} may not be staged yet", why=held, remedy="wait")
        )
        return None
    generation = candidate.generation or world.last_generation + 1
    return StageSlot(candidate=candidate.id, generation=generation)


def _search(world: World, policy: Policy, now: float, blocked: list[Blocked]) -> list[Act]:
    """Return what is due about triggers and searches."""
    job = world.search
    if job is not None:
        if job.state is JobState.RUNNING:
            return []
        if job.state is JobState.DONE:
            open_ = any(candidate.stage in OPEN for candidate in world.candidates)
            return [] if open_ else [AdoptSearch(job=job.id)]
        return [CloseSearch(job=job.id, reason=job.detail)]
    if world.frozen is not None or any(c.stage in OPEN for c in world.candidates):
        return []
    if world.trigger is None:
        _cooling(world, policy, now, blocked)
        trigger = _founding(world, policy, now) or rules.fire(world, policy, now)
        return [] if trigger is None else [OpenTrigger(trigger=trigger)]
    trigger = world.trigger
    if not rules.still_holds(trigger, world):
        reason = "all its monitors are quiet again, or another generation is live"
        return [LapseTrigger(trigger=trigger.id, reason=reason)]
    held = _held(trigger, world, policy, now)
    if held is not None:
        blocked.append(held)
        return []
    return [StartSearch(trigger=trigger)]


def _cooling(world: World, policy: Policy, now: float, blocked: list[Blocked]) -> None:
    """Say why nothing is tried right after a search that failed."""
    last = max(world.spent, key=lambda spent: spent.at, default=None)
    left = rules.cooldown_until(world, policy) - now
    if last is not None and last.outcome == "failed" and left > 0:
        clause = policy.modification_protocol.trigger
        blocked.append(
            Blocked(
                what=f"the last {last.kind} search failed",
                why=f"{last.reason}; {left:.0f} s of the cool-down left ({clause.clause})",
                remedy="see its log under jobs/; a later turn tries again",
            )
        )


def _founding(world: World, policy: Policy, now: float) -> Trigger | None:
    """Return the first trigger of all: nothing is served and nothing is under way."""
    if world.live is not None:
        return None
    if world.spent and now < rules.cooldown_until(world, policy):
        return None
    return Trigger(
        id=f"founding-{int(now)}",
        kind=TriggerKind.FOUNDING,
        at=now,
        clause=policy.modification_protocol.search.clause,
        reason="no generation is live: train and search the first one",
        signals=(),
        policy=world.policy,
        generation=0,
    )


def _held(trigger: Trigger, world: World, policy: Policy, now: float) -> Blocked | None:
    """Return what an open trigger's search waits for, or None."""
    protocol = policy.modification_protocol
    if trigger.kind is not TriggerKind.FOUNDING:
        unpaid = limits.budget(world, policy, now)
        if unpaid is not None:
            return Blocked(what="a search is wanted", why=unpaid, remedy="wait, or sign a larger budget")
        paced = limits.pace(world, policy, now)
        if paced is not None:
            return Blocked(what="a search is wanted", why=paced, remedy="wait")
    if trigger.kind is TriggerKind.LATENCY:
        return None
    data = protocol.data
    short = [
        f"{have} of {need} {name}"
        for name, have, need in (
            ("train", world.rows.train, data.min_train_rows),
            ("search", world.rows.search, data.min_search_rows),
            ("gate", world.rows.gate, data.min_gate_rows),
        )
        if have < need
    ]
    if short:
        why = f"labelled rows since the change: {', '.join(short)} ({data.clause})"
        return Blocked(what="a search is wanted", why=why, remedy="wait for labels")
    return None
