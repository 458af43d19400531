"""A newcomer's way into the traffic over a simulated host: beside it, step by step, and back at any time."""

from collections.abc import Callable
from typing import Any

import pytest

from daemon.control import performer as performer_room
from daemon.control import state
from policies.errors import PermanentError
from policies.lifecycle import Stage
from policies.terms import Deployment
from tests.simulator.host import Hooks, Killed, SimulatedWorker

SHARES = [0.1, 0.3, 0.5]
FEW = {"requests": 5, "labels": 0, "correct": 0}


def bodies(host: Any, kind: str) -> list[dict[str, Any]]:
    return [entry.body for entry in host.book.journal.entries() if entry.kind == kind]


def given(host: Any, generation: int) -> list[float]:
    """Return the shares that the data plane was told to give a generation, each once, in order."""
    told: list[float] = []
    for deployment in host.plane.seen:
        newcomer = deployment.newcomer
        if newcomer is not None and newcomer.generation == generation and deployment.newcomer_share:
            told += [] if told[-1:] == [deployment.newcomer_share] else [deployment.newcomer_share]
    return told


def look_whether_it_is_recorded(host: Any) -> list[float]:
    """Have the data plane note every share that it is given before the journal has it."""
    early: list[float] = []
    apply = host.plane.apply

    def applied(deployment: Deployment) -> Any:
        recorded = [body["share"] for body in bodies(host, "probation.step")]
        if deployment.newcomer_share and deployment.newcomer_share not in recorded:
            early.append(deployment.newcomer_share)
        return apply(deployment)

    host.plane.apply = applied
    return early


def to_step(host: Any, number: int) -> None:
    """Run until the second generation stands in a step of its probation, and hold it there."""
    host.boot()
    for _ in range(60):
        candidate = host.book.ledger.open_candidate
        step = None if candidate is None else candidate.step
        if candidate is not None and candidate.generation == 2 and step and step.number == number:
            host.newcomer = FEW
            return
        host.turns(1)
    raise AssertionError(f"no step {number}: {host.stages()}")


class TestSteps:
    def test_the_share_grows_as_the_policy_says_and_every_step_is_recorded_before_it_is_given(
        self, host: Any
    ) -> None:
        host.boot()
        early = look_whether_it_is_recorded(host)
        host.turns(60)
        assert host.book.ledger.live.generation == 2
        assert given(host, 2) == SHARES
        assert early == []
        steps = [(b["step"], b["of"], b["share"]) for b in bodies(host, "probation.step")]
        assert steps == [(1, 1, 1), (1, 3, 0.1), (2, 3, 0.3), (3, 3, 0.5)]
        assert "requests" in bodies(host, "probation.step")[-1]["reason"]

    def test_a_share_that_is_given_first_and_recorded_later_would_be_noticed(
        self, host: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def hasty(*args: Any) -> Deployment:
            wish = state.wanted(*args)
            return wish.model_copy(update={"newcomer_share": 0.9}) if wish.newcomer_share else wish

        monkeypatch.setattr(performer_room, "wanted", hasty)
        host.boot()
        early = look_whether_it_is_recorded(host)
        host.turns(25)
        assert 0.9 in early

    def test_each_step_is_judged_in_its_own_window(self, host: Any) -> None:
        host.boot()
        host.turns(60)
        begun = [e.at for e in host.book.journal.entries() if e.kind == "probation.step"]
        windows = [since for since in dict.fromkeys(host.windows) if since is not None]
        assert windows == begun
        assert len(set(begun)) == 4

    @pytest.mark.parametrize("number", [1, 2, 3])
    def test_a_step_that_is_undecided_for_too_long_ends_it_and_calls_a_person(
        self, host: Any, number: int
    ) -> None:
        to_step(host, number)
        host.turns(3)
        assert host.stage_of(2) == Stage.PROBATION
        host.clock.advance(400.0)
        host.turns(1)
        assert host.stage_of(2) == Stage.ROLLED_BACK
        assert bodies(host, "page")[-1]["what"].endswith("was rolled back")
        assert host.plane.deployment.newcomer is None

    @pytest.mark.parametrize("number", [1, 2, 3])
    def test_one_answer_that_is_not_finite_ends_it_in_any_step(self, host: Any, number: int) -> None:
        to_step(host, number)
        host.newcomer = FEW | {"errors": 1, "not_finite": 1}
        host.turns(1)
        assert host.stage_of(2) == Stage.ROLLED_BACK
        assert host.plane.deployment.newcomer is None
        assert host.plane.deployment.stable.generation == 1

    def test_frozen_no_step_is_taken_and_a_sick_newcomer_still_goes(self, host: Any) -> None:
        to_step(host, 1)
        host.newcomer = {}
        host.operators.freeze("ann", "a holiday is on")
        host.turns(5)
        assert host.plane.deployment.newcomer_share == 0.1
        host.newcomer = FEW | {"errors": 1, "not_finite": 1}
        host.turns(1)
        assert host.plane.deployment.newcomer is None

    def test_where_the_traffic_cannot_be_shared_the_journal_tells_the_true_share(self, host: Any) -> None:
        host.plane.abilities = host.plane.abilities.model_copy(update={"splits": False})
        host.boot()
        host.turns(60)
        assert [b["share"] for b in bodies(host, "probation.step")] == [1, 1]
        assert given(host, 2) == [1.0]

    def test_a_probation_that_was_begun_before_there_were_steps_begins_its_first(self, host: Any) -> None:
        to_step(host, 1)
        folded = [e for e in host.book.journal.entries() if e.kind != "probation.step"]
        old = type(host.book.ledger).fold(folded)
        assert old.open_candidate.step is None
        assert state.wanted(old, "meter-reader").newcomer_share == 0.0
        host.book.ledger = old
        host.turns(1)
        assert host.plane.deployment.newcomer_share == 0.1


class TestBack:
    @pytest.mark.parametrize("number", [1, 2, 3])
    def test_an_operator_takes_a_newcomer_off_in_any_step(self, host: Any, number: int) -> None:
        to_step(host, number)
        assert host.plane.deployment.newcomer_share == SHARES[number - 1]
        host.operators.rollback("ann", "it looks odd to me", None)
        assert host.plane.deployment.newcomer is None
        assert host.stage_of(2) == Stage.ROLLED_BACK

    @pytest.mark.parametrize("number", [1, 2, 3])
    def test_killed_in_any_step_it_goes_on_where_the_journal_stands(self, host: Any, number: int) -> None:
        to_step(host, number)
        before = len(bodies(host, "probation.step"))
        host.boot()
        host.turns(2)
        assert host.plane.deployment.newcomer_share == SHARES[number - 1]
        assert len(bodies(host, "probation.step")) == before

    def three_generations(self, host: Any) -> None:
        host.drifted = lambda generation: generation in (1, 2)
        host.boot()
        for _ in range(90):
            if host.book.ledger.live is not None and host.book.ledger.live.generation == 3:
                break
            host.turns(1)
        host.drifted = lambda _generation: False
        host.turns(3)
        assert host.book.ledger.live.generation == 3

    def bundle_of(self, host: Any, generation: int) -> str:
        swap = next(s for s in host.book.ledger.swaps if s.generation == generation)
        return str(host.book.ledger.candidates[swap.candidate].bundle)

    def test_going_back_twice_goes_back_two_steps_and_then_there_is_nothing(self, host: Any) -> None:
        self.three_generations(host)
        for goes_to in (2, 1):
            host.operators.rollback("ann", "it reads badly today", None)
            host.turns(8)
            assert host.book.ledger.live.bundle == self.bundle_of(host, goes_to)
        with pytest.raises(PermanentError, match=r"before the one that is live, there is none; --to goes"):
            host.operators.rollback("ann", "it reads badly today", None)
        host.operators.rollback("ann", "it was the best", 3)
        host.turns(8)
        assert host.book.ledger.live.bundle == self.bundle_of(host, 3)
        host.operators.rollback("ann", "it was not", None)
        host.turns(8)
        assert host.book.ledger.live.bundle == self.bundle_of(host, 1), "from where one came"

    def test_right_after_a_promotion_it_goes_back_too(self, host: Any) -> None:
        host.boot()
        while host.book.ledger.live is None or host.book.ledger.live.generation < 2:
            host.turns(1)
        assert host.stage_of(1) == Stage.LIVE, "not retired yet"
        host.drift = False
        host.operators.rollback("ann", "it reads badly today", None)
        host.turns(8)
        assert host.book.ledger.live.bundle == self.bundle_of(host, 1)


class TestBesideTheTraffic:
    def test_it_is_journalled_before_it_starts_and_passed_before_any_share(self, host: Any) -> None:
        host.boot()
        host.turns(60)
        kinds = host.kinds()
        assert kinds.index("shadow.started") < kinds.index("shadow.judged")
        judged = bodies(host, "shadow.judged")
        assert [(b["finding"], b["rows"], b["disagreed"]) for b in judged] == [("pass", 200, 60)]
        entries = list(host.book.journal.entries())
        share = next(e.seq for e in entries if e.kind == "probation.step" and e.body["share"] < 1)
        assert share > next(e.seq for e in entries if e.kind == "shadow.judged")

    def test_a_founding_and_a_rollback_have_none(self, host: Any) -> None:
        host.boot()
        host.turns(60)
        host.drift = False
        host.operators.rollback("ann", "it reads badly today", None)
        host.turns(8)
        assert host.book.ledger.live.generation == 3
        assert len(bodies(host, "shadow.started")) == 1

    def test_who_fails_is_abandoned_with_the_numbers_and_never_had_traffic(self, host: Any) -> None:
        host.shadow = {"disagreed": 190}
        host.boot()
        host.turns(25)
        ended = next(c for c in host.book.ledger.candidates.values() if c.stage is Stage.ABANDONED)
        assert ended.reason.startswith("beside the traffic: another answer in 95.0 % of rows")
        assert given(host, 2) == []
        assert bodies(host, "page") == []

    @pytest.mark.parametrize(
        "fault",
        [
            {"shadow": {"rows": 3, "looks": 0}},
            {"shadow_outcomes": ["killed by SIGKILL", "killed by SIGKILL"]},
        ],
        ids=["no verdict within its time", "its worker is lost twice"],
    )
    def test_who_comes_to_no_answer_is_abandoned_and_a_person_called(
        self, host: Any, fault: dict[str, Any]
    ) -> None:
        for name, value in fault.items():
            setattr(host, name, value)
        host.boot()
        host.until(Stage.STAGED, generation=2)
        host.turns(6)
        assert host.stage_of(2) == Stage.ABANDONED
        assert given(host, 2) == []
        assert bodies(host, "page")[-1]["what"].endswith("was abandoned before it had traffic")

    def test_a_worker_that_is_lost_once_is_started_again(self, host: Any) -> None:
        host.shadow_outcomes = ["killed by SIGKILL"]
        host.boot()
        host.turns(60)
        assert [b["attempt"] for b in bodies(host, "shadow.started")] == [1, 2]
        assert host.book.ledger.live.generation == 2

    def test_counts_of_other_bytes_are_not_believed(self, host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        host.boot()
        host.until(Stage.STAGED, generation=2)
        host.turns(1)
        path = next((host.state / "jobs").glob("shadow-*/out/shadow.json"))
        bundle = host.book.ledger.open_candidate.bundle
        path.write_text(path.read_text().replace(bundle, "sha256:" + "e" * 64))
        host.turns(1)
        assert host.stage_of(2) == Stage.ABANDONED
        assert "expected a shadow of" in bodies(host, "page")[-1]["why"]

    def test_a_rollback_meanwhile_ends_the_worker(self, host: Any) -> None:
        host.drifted = lambda generation: generation in (1, 2)
        host.shadow_outcomes = ["done", "running"]
        host.boot()
        host.until(Stage.STAGED, generation=3)
        host.turns(2)
        _, worker = host.shadows._worker
        assert isinstance(worker, SimulatedWorker)
        assert any("runs beside the traffic" in b.what for b in host.turn.blocked)
        host.operators.rollback("ann", "it reads badly today", None)
        host.drifted = lambda _generation: False
        host.turns(8)
        assert worker.ended == "stopped"
        assert host.stage_of(3) == Stage.EXPIRED
        assert host.book.ledger.swaps[-1].kind == "rollback"

    def test_killed_while_it_runs_the_worker_is_found_again(
        self, make_host: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        host = make_host()
        host.boot(Hooks())
        host.until(Stage.STAGED, generation=2)

        def die(place: str) -> None:
            if place == "after StartShadow":
                raise Killed(place)

        host.boot(die)
        with pytest.raises(Killed):
            host.turns(3)
        host.boot()
        host.turns(1)
        assert [b["attempt"] for b in bodies(host, "shadow.started")] == [1]
        assert [b["finding"] for b in bodies(host, "shadow.judged")] == ["pass"]
