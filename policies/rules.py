"""Signals and history and policy make a trigger, or none.

* A rule fires when all its conditions hold, each for at least ``hold_s``, and the measured accuracy loss
  (lower bound) reaches ``min_accuracy_loss``.
* An unknown signal meets no condition and speaks against none.
* After a search ended, nothing fires before the cool-down has passed.

Called by ``plan``. It does not look at budgets or data: those hold a search back, not a trigger.
"""

from policies.clauses import Policy, TriggerRule
from policies.terms import Level, Signal, Trigger, TriggerKind
from policies.world import World

_RANK = {Level.UNKNOWN: -1, Level.QUIET: 0, Level.WARNING: 1, Level.ALARM: 2}


def accuracy_loss(signals: tuple[Signal, ...]) -> float:
    """Return the measured loss of accuracy, lower bound; 0 while nothing was measured."""
    return max((signal.facts.get("loss_lower", 0.0) for signal in signals), default=0.0)


def change_since(trigger: Trigger) -> float:
    """Return the moment from which rows count as new: the first alarm's beginning; 0 at founding."""
    if trigger.kind is TriggerKind.FOUNDING:
        return 0.0
    begun = [s.since for s in trigger.signals if s.level is Level.ALARM and s.since is not None]
    return min(begun, default=trigger.at)


def holds(rule: TriggerRule, signals: tuple[Signal, ...], now: float) -> tuple[Signal, ...] | None:
    """Return the signals that meet a rule, or None while it does not hold."""
    by_name = {signal.monitor: signal for signal in signals}
    met: list[Signal] = []
    for condition in rule.all_of:
        signal = by_name.get(condition.monitor)
        if signal is None or _RANK[signal.level] < _RANK[condition.level]:
            return None
        if signal.since is None or now - signal.since < rule.hold_s:
            return None
        met.append(signal)
    if accuracy_loss(signals) < rule.min_accuracy_loss:
        return None
    return tuple(met)


def cooldown_until(world: World, policy: Policy) -> float:
    """Return the moment before which no rule may fire."""
    last = max((spent.at for spent in world.spent), default=None)
    return 0.0 if last is None else last + policy.modification_protocol.trigger.cooldown_s


def fire(world: World, policy: Policy, now: float) -> Trigger | None:
    """Return the trigger that the policy asks for at this moment, or None."""
    if world.live is None or now < cooldown_until(world, policy):
        return None
    for rule in policy.modification_protocol.trigger.rules:
        met = holds(rule, world.signals, now)
        if met is None:
            continue
        loss = accuracy_loss(world.signals)
        told = "; ".join(f"{signal.monitor} {signal.level}: {signal.reason}" for signal in met)
        return Trigger(
            id=f"{rule.kind}-g{world.live.generation}-{int(now)}",
            kind=TriggerKind(rule.kind),
            at=now,
            clause=rule.clause,
            reason=f"{told} (accuracy loss at least {100 * loss:.1f} points)",
            signals=met,
            policy=world.policy,
            generation=world.live.generation,
        )
    return None


def still_holds(trigger: Trigger, world: World) -> bool:
    """Tell whether an open trigger still speaks of what is live, and not all its monitors are quiet again.

    Hysteresis before a search: an unknown signal is not a quiet one.
    """
    if trigger.kind is TriggerKind.FOUNDING:
        return True
    if world.live is None or world.live.generation != trigger.generation:
        return False
    levels = {signal.monitor: signal.level for signal in world.signals}
    return any(levels.get(signal.monitor) is not Level.QUIET for signal in trigger.signals)
