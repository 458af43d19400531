"""The plan over whole lives: whatever happens, no road to LIVE without clearance, approval and probation."""

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies import acts as a
from policies import plan as plan_room
from policies import rollout
from policies.clauses import Policy
from policies.lifecycle import Stage
from policies.shadow import ShadowVerdict
from policies.terms import Finding
from policies.world import RowCounts
from tests.policies.lives import Life, check, first, good_life, live_out


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_no_road_to_live_without_clearance_approval_and_probation(policy: Policy, data: Any) -> None:
    live_out(policy, lambda options: data.draw(st.sampled_from(list(options))))


def _many_lives(policy: Policy) -> None:
    for seed in range(60):
        rng = random.Random(seed)
        live_out(policy, lambda options, rng=rng: rng.choice(list(options)))


def test_a_plan_that_approves_by_itself_would_be_noticed(
    policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    _many_lives(policy)
    monkeypatch.setattr(plan_room, "tally", lambda *_: "approved")
    with pytest.raises(AssertionError):
        _many_lives(policy)


def test_a_life_in_which_all_goes_well_ends_live_and_retires_the_first(policy: Policy) -> None:
    life, told = good_life(policy)
    assert life.world.live is not None
    assert life.world.live.generation == 2, told
    assert [c.stage for c in life.world.candidates] == [Stage.RETIRED, Stage.LIVE], told
    check(life, policy)
    assert life.shares == {"c1": [1.0], "c2": [0.1, 0.3, 0.5]}


@pytest.mark.parametrize("finding", [Finding.FAIL, Finding.INCONCLUSIVE])
def test_what_did_not_pass_beside_the_traffic_never_has_any(policy: Policy, finding: Finding) -> None:
    life, told = good_life(policy, finding)
    check(life, policy)
    assert life.world.live is not None
    assert life.world.live.generation == 1, told
    assert {c.stage for c in life.world.candidates[1:-1]} == {Stage.ABANDONED}
    assert set(life.shares) == {"c1"}


def test_a_plan_that_skips_a_step_would_be_noticed(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    step = rollout._step
    monkeypatch.setattr(rollout, "_step", lambda c, w, p, number: step(c, w, p, min(2 * number - 1, 3)))
    with pytest.raises(AssertionError, match="step by step"):
        check(good_life(policy)[0], policy)


def test_a_plan_that_takes_a_failed_shadow_for_a_passed_one_would_be_noticed(
    policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    staged, good = rollout.staged, ShadowVerdict(finding=Finding.PASS, reason="n=200")
    monkeypatch.setattr(
        rollout,
        "staged",
        lambda c, *rest: staged(c.model_copy(update={"shadow": c.shadow and good}), *rest),
    )
    with pytest.raises(AssertionError, match="passed beside the traffic"):
        check(good_life(policy, Finding.FAIL)[0], policy)


def test_where_the_traffic_cannot_be_shared_a_newcomer_takes_all_of_it_in_one_step(policy: Policy) -> None:
    world = Life(policy, first).world.model_copy(update={"splits": False})
    life, _ = good_life(policy)
    adapted = life.world.candidates[-1].model_copy(update={"stage": Stage.STAGED})
    act = rollout.staged(adapted, world, policy, [])
    assert act == a.BeginProbation(candidate="c2", of=1, share=1.0)


def test_unpaid_or_unlabelled_searches_wait_and_say_why(policy: Policy) -> None:
    life = Life(policy, first)
    life.set(rows=RowCounts(train=1, search=2, gate=3))
    for act in plan_room.plan(life.world, policy, life.now).acts:
        life.take(act)
    decided = plan_room.plan(life.world, policy, life.now)
    assert decided.acts == ()
    assert [b.why for b in decided.blocked] == [
        "labelled rows since the change: 1 of 1900 train, 2 of 350 search, 3 of 750 gate (MP-1)"
    ]
