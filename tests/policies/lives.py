"""Whole lives of a world under the plan, and what must hold of every one of them."""

from collections.abc import Callable
from typing import Any

from policies import acts as a
from policies import plan as plan_room
from policies.clauses import Policy
from policies.lifecycle import OPEN, Stage, move
from policies.probation import Step
from policies.shadow import ShadowVerdict
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
            shadow=None,
            splits=True,
            signals=(),
            rows=PLENTY,
            swaps=(),
            spent=(),
        )
        self.roads: dict[str, list[Stage]] = {}
        self.shares: dict[str, list[float]] = {}
        self.shadows = [Finding.PASS, Finding.PASS, Finding.FAIL, Finding.INCONCLUSIVE]
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
        for kind in ("search", "judge", "shadow"):
            job = getattr(self.world, kind)
            if job is not None and job.state is JobState.RUNNING:
                state = self.pick(JobState)
                self.set(**{kind: job.model_copy(update={"state": state})})
        for candidate in self.world.candidates:
            if candidate.stage is Stage.CLEARED and self.pick([False, True]):
                self.candidate(candidate.id, approvals=(*candidate.approvals, self.vote(candidate.id)))
            if candidate.stage is Stage.PROBATION:
                self.set(newcomer=self.arm(), incumbent=self.arm())

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
            not_finite=self.pick([0, 0, 0, min(errors, 1)]),
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
            case a.StartShadow():
                attempts = self.world.shadow.attempts + 1 if self.world.shadow else 1
                self.set(shadow=self.job("shadow", act.candidate, attempts))
            case a.SealShadow():
                finding = self.pick(self.shadows)
                self.candidate(act.candidate, shadow=ShadowVerdict(finding=finding, reason="n=200"))
                self.set(shadow=None)
            case a.EndShadow():
                self.candidate(act.candidate, stage=Stage.ABANDONED)
            case a.BeginProbation():
                self.candidate(act.candidate, stage=Stage.PROBATION, step=None)
                if self.pick([True, True, False]):  # killed between the two entries
                    self.step(act.candidate, 1, act.of, act.share)
            case a.TakeStep():
                self.step(act.candidate, act.number, act.of, act.share)
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

    def step(self, name: str, number: int, of: int, share: float) -> None:
        step = Step(number=number, of=of, share=share, since=self.now)
        self.candidate(name, step=step)
        self.shares.setdefault(name, []).append(share)
        self.set(newcomer=None, incumbent=None)

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
    check(life, policy)


def check(life: Life, policy: Policy) -> None:
    """Check what must hold of a life that was lived."""
    for name, road in life.roads.items():
        if Stage.LIVE in road:
            before = road[: road.index(Stage.LIVE)]
            assert {Stage.CLEARED, Stage.APPROVED, Stage.PROBATION} <= set(before), (name, road)
        candidate = next(c for c in life.world.candidates if c.id == name)
        shares = life.shares.get(name, [])
        wanted = [step.share for step in policy.modification_protocol.probation.steps]
        adapted = candidate.kind is Kind.ADAPTATION
        assert shares == (wanted[: len(shares)] if adapted else [1.0][: len(shares)]), "step by step"
        if Stage.LIVE in road and adapted:
            assert len(shares) == len(wanted), "every step was taken"
            passed = candidate.shadow is not None and candidate.shadow.finding is Finding.PASS
            assert passed, "it passed beside the traffic"
        if Stage.APPROVED in road:
            assert any(v.decision == "approve" for v in candidate.approvals)
            assert all(v.decision != "decline" for v in candidate.approvals)
            assert all(v.finding is not Finding.FAIL for v in candidate.verdicts)


def first(options: Any) -> Any:
    """Pick the first option: a life in which all goes well."""
    return next(iter(options))


def good_life(policy: Policy, shadow: Finding = Finding.PASS) -> tuple[Life, list[str]]:
    """Live a life in which all goes well but what is named; return it with its acts."""
    life = Life(policy, first)
    life.shadows = [shadow]
    told: list[str] = []
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
        for kind in ("search", "judge", "shadow"):
            job = getattr(life.world, kind)
            if job is not None:
                life.set(**{kind: job.model_copy(update={"state": JobState.DONE})})
        for candidate in life.world.candidates:
            if candidate.stage is Stage.CLEARED:
                life.candidate(candidate.id, approvals=(life.vote(candidate.id),))
            if candidate.stage is Stage.PROBATION:
                good = life.arm().model_copy(update={"requests": 5000, "labels": 5000, "correct": 4800})
                life.set(newcomer=good, incumbent=good.model_copy(update={"correct": 3500}))
        for act in plan_room.plan(life.world, policy, life.now).acts:
            life.take(act)
            told.append(f"{turn} {type(act).__name__}")
    return life, told
