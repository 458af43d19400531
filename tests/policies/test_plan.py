"""The plan over whole lives: whatever happens, no road to LIVE without clearance, approval and probation."""

import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies import acts as a
from policies import plan as plan_room
from policies.clauses import Policy
from policies.lifecycle import OPEN, Stage, move
from policies.status import Freeze
from policies.terms import (
    Approval,
    Arm,
    Finding,
    Genome,
    Level,
    Release,
    Signal,
    Subject,
    TriggerKind,
    Verdict,
)
from policies.world import Candidate, Job, JobState, Kind, RowCounts, Spent, World

DIGEST = "sha256:" + "0" * 64
PLENTY = RowCounts(train=10_000, search=10_000, gate=10_000)


class Life:
    """A world that takes acts as control does, with every outcome drawn by Hypothesis."""

    def __init__(self, policy: Policy, pick: Callable[[Any], Any]) -> None:
        self.policy = policy
        self.pick = pick
        self.now = 1000.0
        self.world = World(
            policy=DIGEST,
            frozen=None,
            live=None,
            last_generation=0,
            candidates=(),
            trigger=None,
            search=None,
            judge=None,
            signals=(),
            rows=PLENTY,
            swaps=(),
            spent=(),
        )
        self.roads: dict[str, list[Stage]] = {}
        self.searches = 0

    def set(self, **changes: object) -> None:
        self.world = self.world.model_copy(update=changes)

    def candidate(self, name: str, **changes: object) -> Candidate:
        found = next(c for c in self.world.candidates if c.id == name)
        new = found.model_copy(update=changes | ({"since": self.now} if "stage" in changes else {}))
        if new.stage is not found.stage:
            move(found.stage, new.stage)
            self.roads[name].append(new.stage)
        self.set(candidates=tuple(new if c.id == name else c for c in self.world.candidates))
        return new

    def nature(self) -> None:
        """Let time pass and the outside world act."""
        self.now += self.pick([0.5, 5.0, 70.0, 4000.0])
        alarm = self.pick([False, True])
        level = Level.ALARM if alarm else Level.QUIET
        facts = {"loss_lower": 0.3 if alarm else 0.0}
        self.set(
            signals=tuple(
                Signal(monitor=m, level=level, since=0.0, at=self.now, n=9, reason="r", facts=facts)
                for m in ("drift", "errors")
            )
        )
        if self.pick(range(10)) == 9:
            self.set(frozen=None if self.world.frozen else Freeze(at=self.now, by="a", reason="r"))
        for kind in ("search", "judge"):
            job = getattr(self.world, kind)
            if job is not None and job.state is JobState.RUNNING:
                state = self.pick(JobState)
                self.set(**{kind: job.model_copy(update={"state": state})})
        for candidate in self.world.candidates:
            if candidate.stage is Stage.CLEARED and self.pick([False, True]):
                self.candidate(candidate.id, approvals=(*candidate.approvals, self.vote(candidate.id)))
            if candidate.stage is Stage.PROBATION:
                self.set(newcomer=self.arm(), incumbent=self.arm(), probation_since=candidate.since)

    def vote(self, name: str) -> Approval:
        subject = Subject(
            candidate=name,
            bundle=DIGEST,
            incumbent=None,
            policy=DIGEST,
            dossier=DIGEST,
            report=DIGEST,
            nonce="n" * 16,
        )
        return Approval(
            decision=self.pick(["approve", "approve", "decline"]),
            subject=subject,
            principal=self.pick(["UnsafeDemoApprover", "mallory"]),
            reason="looked at it",
            at=self.now,
            expires_at=self.now + self.pick([1e6, 1.0]),
        )

    def arm(self) -> Arm:
        requests = self.pick([0, 50, 5000])
        errors = self.pick([0, 0, requests // 2])
        correct = self.pick([int(0.7 * requests), int(0.95 * requests)])
        return Arm(
            generation=1,
            requests=requests,
            errors=errors,
            p50_ms=1.0,
            p99_ms=3.0,
            labels=requests,
            correct=correct,
        )

    def take(self, act: a.Act) -> None:
        """Do what control does with an act."""
        match act:
            case a.OpenTrigger():
                self.set(trigger=act.trigger)
            case a.LapseTrigger():
                self.set(trigger=None)
            case a.StartSearch():
                self.searches += 1
                self.set(search=self.job("search", f"search-{self.searches}"))
            case a.AdoptSearch():
                self.adopt()
            case a.CloseSearch():
                self.close("failed")
            case a.Export():
                self.candidate(act.candidate, stage=Stage.EXPORTED, bundle=DIGEST)
            case a.Judge():
                attempts = self.world.judge.attempts + 1 if self.world.judge else 1
                self.set(judge=self.job("judge", act.candidate, attempts))
            case a.Seal():
                self.seal(act.candidate)
            case a.Move():
                self.candidate(act.candidate, stage=act.to)
            case a.StageSlot():
                self.candidate(act.candidate, stage=Stage.STAGED, generation=act.generation)
                self.set(last_generation=act.generation)
            case a.BeginProbation():
                self.candidate(act.candidate, stage=Stage.PROBATION)
                self.set(newcomer=None, incumbent=None)
            case a.Promote():
                new = self.candidate(act.candidate, stage=Stage.LIVE)
                assert new.generation is not None
                release = Release(generation=new.generation, bundle=DIGEST, candidate=new.id, at=self.now)
                self.set(live=release)
            case a.Revert():
                self.candidate(act.candidate, stage=Stage.ROLLED_BACK)
            case a.Retire():
                self.candidate(act.candidate, stage=Stage.RETIRED)
            case a.Page():
                pass

    def job(self, kind: str, name: str, attempts: int = 1) -> Job:
        return Job(
            id=name, kind=kind, state=JobState.RUNNING, started_at=self.now, attempts=attempts, cpu_s=1.0
        )

    def adopt(self) -> None:
        trigger, live = self.world.trigger, self.world.live
        assert trigger is not None
        founding = trigger.kind is TriggerKind.FOUNDING
        name = f"c{self.searches}"
        new = Candidate(
            id=name,
            kind=Kind.FOUNDING if founding else Kind.ADAPTATION,
            stage=Stage.PROPOSED,
            since=self.now,
            trigger=trigger,
            genome=Genome(space="image", genes=(1, 2)),
            base_generation=0 if live is None else live.generation,
            incumbent_distance=self.pick([0, 3, 99]),
        )
        self.roads[name] = [Stage.PROPOSED]
        self.set(candidates=(*self.world.candidates, new), judge=None)
        self.close("done")

    def close(self, outcome: str) -> None:
        trigger = self.world.trigger
        assert trigger is not None
        spent = Spent(kind=trigger.kind, at=self.now, cpu_s=1.0, outcome=outcome)
        self.set(search=None, trigger=None, spent=(*self.world.spent, spent))

    def seal(self, name: str) -> None:
        finding = self.pick([Finding.PASS, Finding.PASS, Finding.FAIL])
        verdict = Verdict(guard="floor", clause="MP-5.5", finding=finding, reason="n=1")
        to = Stage.CLEARED if finding is Finding.PASS else Stage.REJECTED
        self.candidate(name, stage=to, verdicts=(verdict,), dossier=DIGEST, sealed_at=self.now)


def live_out(policy: Policy, pick: Callable[[Any], Any]) -> None:
    """Live sixty turns and check what must hold in every one."""
    life = Life(policy, pick)
    for _ in range(60):
        life.nature()
        decided = plan_room.plan(life.world, policy, life.now)
        touched = [act.candidate for act in decided.acts if hasattr(act, "candidate")]
        assert len(touched) == len(set(touched)), "one act a candidate a turn"
        if life.world.frozen is not None:
            assert all(
                isinstance(act, a.Revert | a.Retire | a.Page | a.AdoptSearch | a.CloseSearch)
                for act in decided.acts
            )
        assert plan_room.plan(life.world, policy, life.now) == decided, "the same world, the same plan"
        for act in decided.acts:
            if isinstance(act, a.StageSlot):
                assert act.generation > life.world.last_generation, "a generation is never given twice"
            life.take(act)
        assert sum(c.stage in OPEN for c in life.world.candidates) <= 1, "one candidate at a time"
    for name, road in life.roads.items():
        if Stage.LIVE in road:
            before = road[: road.index(Stage.LIVE)]
            assert {Stage.CLEARED, Stage.APPROVED, Stage.PROBATION} <= set(before), (name, road)
        candidate = next(c for c in life.world.candidates if c.id == name)
        if Stage.APPROVED in road:
            assert any(v.decision == "approve" for v in candidate.approvals)
            assert all(v.decision != "decline" for v in candidate.approvals)
            assert all(v.finding is not Finding.FAIL for v in candidate.verdicts)


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


def first(options: Any) -> Any:
    """Pick the first option: a life in which all goes well."""
    return next(iter(options))


def test_a_life_in_which_all_goes_well_ends_live_and_retires_the_first(policy: Policy) -> None:
    life = Life(policy, first)
    stages: list[str] = []
    for turn in range(60):
        life.now += 70.0
        level = Level.ALARM if life.world.live and life.world.live.generation == 1 else Level.QUIET
        facts = {"loss_lower": 0.3}
        life.set(
            signals=tuple(
                Signal(monitor=m, level=level, since=0.0, at=life.now, n=9, reason="r", facts=facts)
                for m in ("drift", "errors")
            )
        )
        for kind in ("search", "judge"):
            job = getattr(life.world, kind)
            if job is not None:
                life.set(**{kind: job.model_copy(update={"state": JobState.DONE})})
        for candidate in life.world.candidates:
            if candidate.stage is Stage.CLEARED:
                life.candidate(candidate.id, approvals=(life.vote(candidate.id),))
            if candidate.stage is Stage.PROBATION:
                good = Arm(
                    generation=2, requests=5000, errors=0, p50_ms=1.0, p99_ms=2.0, labels=5000, correct=4800
                )
                life.set(newcomer=good, incumbent=good.model_copy(update={"correct": 3500}))
        for act in plan_room.plan(life.world, policy, life.now).acts:
            life.take(act)
            stages.append(f"{turn} {type(act).__name__}")
    assert life.world.live is not None
    assert life.world.live.generation == 2, stages
    assert [c.stage for c in life.world.candidates] == [Stage.RETIRED, Stage.LIVE], stages


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
