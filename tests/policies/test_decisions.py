"""Rules, clearance, limits and approvals: each answer, each side of each threshold."""

from collections.abc import Callable

import pytest

from policies import limits, rules
from policies.approvals import tally
from policies.clauses import Policy
from policies.clearance import clear
from policies.status import Swap
from policies.support import required_rows
from policies.terms import (
    Approval,
    Finding,
    Genome,
    Level,
    Release,
    Signal,
    Subject,
    TriggerKind,
    Verdict,
)
from policies.world import RowCounts, Spent, World

DIGEST = "sha256:" + "0" * 64
Make = Callable[..., Signal]


def world(**changes: object) -> World:
    base = World(
        policy=DIGEST,
        frozen=None,
        live=Release(generation=1, bundle=DIGEST, candidate="c1", at=0.0),
        last_generation=1,
        candidates=(),
        trigger=None,
        search=None,
        judge=None,
        shadow=None,
        splits=True,
        signals=(),
        rows=RowCounts(train=0, search=0, gate=0),
        swaps=(),
        spent=(),
    )
    return base.model_copy(update=changes)


def drifted(signal: Make, loss: float = 0.2, since: float = 0.0) -> tuple[Signal, ...]:
    return (
        signal("drift", Level.ALARM, since),
        signal("errors", Level.ALARM, since, loss_lower=loss),
        signal("latency", Level.QUIET, since),
    )


class TestRules:
    def test_drift_that_costs_accuracy_fires_and_cites_its_clause(self, policy: Policy, signal: Make) -> None:
        trigger = rules.fire(world(signals=drifted(signal)), policy, now=1000.0)
        assert trigger is not None
        assert (trigger.kind, trigger.clause) == (TriggerKind.DATA, "MP-3.1")
        assert {s.monitor for s in trigger.signals} == {"drift", "errors"}

    def test_an_alarm_without_measured_loss_is_no_reason(self, policy: Policy, signal: Make) -> None:
        rule = policy.modification_protocol.trigger.rules[0]
        just_under = rule.min_accuracy_loss - 1e-9
        assert rules.fire(world(signals=drifted(signal, loss=just_under)), policy, now=1000.0) is None
        assert rules.fire(world(signals=drifted(signal, loss=rule.min_accuracy_loss)), policy, now=1000.0)

    @pytest.mark.parametrize("level", [Level.UNKNOWN, Level.QUIET, Level.WARNING])
    def test_less_than_an_alarm_meets_no_alarm_condition(
        self, policy: Policy, signal: Make, level: Level
    ) -> None:
        signals = (signal("drift", level), *drifted(signal)[1:])
        assert rules.fire(world(signals=signals), policy, now=1000.0) is None

    def test_a_group_must_hold_for_its_time(self, policy: Policy, signal: Make) -> None:
        hold = policy.modification_protocol.trigger.rules[0].hold_s
        signals = drifted(signal, since=500.0)
        assert rules.fire(world(signals=signals), policy, now=500.0 + hold - 0.1) is None
        assert rules.fire(world(signals=signals), policy, now=500.0 + hold)

    def test_the_cool_down_keeps_every_rule_quiet(self, policy: Policy, signal: Make) -> None:
        cool = policy.modification_protocol.trigger.cooldown_s
        spent = (Spent(kind=TriggerKind.DATA, at=900.0, cpu_s=1.0, outcome="failed"),)
        hot = world(signals=drifted(signal), spent=spent)
        assert rules.fire(hot, policy, now=900.0 + cool - 1) is None
        assert rules.fire(hot, policy, now=900.0 + cool)

    def test_a_trigger_lapses_only_when_all_its_monitors_are_quiet(
        self, policy: Policy, signal: Make
    ) -> None:
        trigger = rules.fire(world(signals=drifted(signal)), policy, now=1000.0)
        assert trigger is not None
        half = (signal("drift", Level.WARNING), signal("errors", Level.QUIET))
        assert rules.still_holds(trigger, world(signals=half))
        quiet = (signal("drift", Level.QUIET), signal("errors", Level.QUIET))
        assert not rules.still_holds(trigger, world(signals=quiet))

    def test_new_rows_count_from_the_first_alarm(self, policy: Policy, signal: Make) -> None:
        signals = (signal("drift", Level.ALARM, 700.0), signal("errors", Level.ALARM, 720.0, loss_lower=0.2))
        trigger = rules.fire(world(signals=signals), policy, now=1000.0)
        assert trigger is not None
        assert rules.change_since(trigger) == 700.0


def verdicts(policy: Policy, **findings: Finding) -> tuple[Verdict, ...]:
    names = policy.modification_protocol.evaluation.panel.required
    return tuple(
        Verdict(guard=n, clause="MP-5", finding=findings.get(n, Finding.PASS), reason="n=3") for n in names
    )


class TestClearance:
    def test_all_required_passes_clear(self, policy: Policy) -> None:
        panel = policy.modification_protocol.evaluation.panel
        assert clear(verdicts(policy), panel, founding=False).outcome == "cleared"

    @pytest.mark.parametrize("finding", [Finding.FAIL, Finding.INCONCLUSIVE])
    def test_any_required_guard_that_does_not_pass_rejects(self, policy: Policy, finding: Finding) -> None:
        panel = policy.modification_protocol.evaluation.panel
        for name in panel.required:
            answer = clear(verdicts(policy, **{name: finding}), panel, founding=False)
            assert answer.outcome == "rejected"
            assert f"{name} {finding}" in answer.reason

    def test_a_missing_verdict_is_not_a_pass(self, policy: Policy) -> None:
        panel = policy.modification_protocol.evaluation.panel
        for place in range(len(panel.required)):
            given = verdicts(policy)
            short = given[:place] + given[place + 1 :]
            assert clear(short, panel, founding=False).outcome == "rejected"

    def test_a_founding_needs_its_own_list_but_no_known_bad(self, policy: Policy) -> None:
        panel = policy.modification_protocol.evaluation.panel
        given = tuple(v for v in verdicts(policy) if v.guard in panel.required_founding)
        assert clear(given, panel, founding=True).outcome == "cleared"
        extra = Verdict(guard="slices", clause="MP-5.9", finding=Finding.FAIL, reason="n=3")
        assert clear((*given, extra), panel, founding=True).outcome == "rejected"


class TestLimits:
    def test_swaps_are_counted_over_a_day_and_foundings_are_not(self, policy: Policy) -> None:
        most = policy.description_of_modifications.pace.swaps_per_day
        swaps = [Swap(at=100.0 + i, generation=i + 2, candidate="c", kind="adaptation") for i in range(most)]
        full = world(swaps=tuple(swaps))
        reason = limits.pace(full, policy, now=1000.0)
        assert reason is not None
        assert "(DM-3)" in reason
        assert limits.pace(full, policy, now=100.0 + limits.DAY_S + most) is None
        founding = swaps[0].model_copy(update={"kind": "founding"})
        assert limits.pace(world(swaps=(founding, *swaps[1:])), policy, now=1000.0) is None

    def test_a_search_must_fit_the_rest_of_the_day(self, policy: Policy) -> None:
        clause = policy.modification_protocol.search
        left = clause.budget_cpu_s_per_day - clause.budget_cpu_s
        spent = Spent(kind=TriggerKind.DATA, at=10.0, cpu_s=left, outcome="done")
        assert limits.budget(world(spent=(spent,)), policy, now=20.0) is None
        over = spent.model_copy(update={"cpu_s": left + 0.1})
        assert limits.budget(world(spent=(over,)), policy, now=20.0) is not None

    def test_genomes_of_two_spaces_have_no_distance(self) -> None:
        with pytest.raises(ValueError, match="one space"):
            limits.edit_distance(Genome(space="image", genes=(1,)), Genome(space="tabular", genes=(1,)))


def approval(who: str, decision: str = "approve", expires_at: float = 100.0) -> Approval:
    subject = Subject(
        candidate="c1",
        bundle=DIGEST,
        incumbent=None,
        policy=DIGEST,
        dossier=DIGEST,
        report=DIGEST,
        nonce="n" * 16,
    )
    raw = {
        "decision": decision,
        "subject": subject,
        "principal": who,
        "reason": "looked at it",
        "at": 1.0,
        "expires_at": expires_at,
    }
    return Approval.model_validate(raw)


class TestApprovals:
    def test_people_are_counted_not_signatures(self, policy: Policy) -> None:
        two = policy.modification_protocol.approval.model_copy(
            update={"approvers": ("alice", "bob"), "quorum": 2}
        )
        assert tally([approval("alice"), approval("alice")], two, now=1.0) == "waiting"
        assert tally([approval("alice"), approval("bob")], two, now=1.0) == "approved"

    def test_one_no_is_a_veto(self, policy: Policy) -> None:
        one = policy.modification_protocol.approval.model_copy(update={"approvers": ("alice", "bob")})
        assert tally([approval("alice"), approval("bob", "decline")], one, now=1.0) == "declined"

    def test_an_expired_yes_and_a_stranger_count_for_nothing(self, policy: Policy) -> None:
        one = policy.modification_protocol.approval.model_copy(update={"approvers": ("alice",)})
        assert tally([approval("alice", expires_at=50.0)], one, now=50.0) == "waiting"
        assert tally([approval("mallory")], one, now=1.0) == "waiting"


def test_a_narrower_margin_needs_more_rows(policy: Policy) -> None:
    clause = policy.modification_protocol.evaluation.incumbent
    half = clause.model_copy(update={"margin": clause.margin / 2})
    assert required_rows(half) == pytest.approx(4 * required_rows(clause), abs=4)
