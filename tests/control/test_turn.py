"""The turn over a simulated host: the whole loop, every way that it can end, and a kill at every place."""

from collections.abc import Callable
from typing import Any

import pytest

from daemon.control import workers
from daemon.control.performer import Performer
from policies.errors import InstarError, PermanentError, TamperError
from policies.lifecycle import Stage
from policies.terms import Finding
from tests.simulator.host import Hooks, Killed

TURNS = 60


def summary(host: Any) -> dict[str, Any]:
    """Return what a run came to: what is served, and where every candidate ended."""
    ledger = host.book.ledger
    served = host.plane.deployment
    return {
        "live": None if ledger.live is None else (ledger.live.generation, ledger.live.bundle),
        "stages": sorted(host.stages().items()),
        "stable": served.stable,
        "newcomer": served.newcomer,
        "open": ledger.trigger is not None or ledger.search is not None,
        "spent": [round(s.cpu_s, 1) for s in ledger.spent],
        "valid": host.book.journal.verify().valid,
    }


def boot_and_run(host: Any, hooks: Hooks) -> None:
    host.boot(hooks)
    host.turns(TURNS)


def test_the_loop_closes(host: Any) -> None:
    host.boot()
    host.turns(TURNS)
    assert host.book.ledger.live.generation == 2
    assert host.plane.deployment.stable.generation == 2
    assert host.stage_of(1) == Stage.RETIRED
    assert host.stage_of(2) == Stage.LIVE
    assert [s.kind for s in host.book.ledger.swaps] == ["founding", "adaptation"]
    assert host.plane.deployment.previous.generation == 1


def test_promotion_is_recorded_before_it_is_visible(host: Any) -> None:
    host.boot()
    seen: list[tuple[int, int]] = []

    def look(place: str) -> None:
        live = host.book.ledger.live
        stable = host.plane.deployment.stable
        if place == "before apply" and live is not None and stable is not None:
            seen.append((live.generation, stable.generation))

    host.plane.hook = look
    host.turns(TURNS)
    assert (2, 1) in seen
    assert all(recorded >= visible for recorded, visible in seen)


def test_killed_anywhere_and_started_again_it_comes_to_the_same_end(make_host: Callable[[], Any]) -> None:
    unbroken = make_host()
    count = Hooks()
    unbroken.boot(count)
    unbroken.turns(TURNS)
    expected = summary(unbroken)
    assert len(count.places) > 80
    for strike, place in enumerate(count.places):
        host = make_host()
        with pytest.raises(Killed):
            boot_and_run(host, Hooks(strike))
        host.boot()
        host.turns(TURNS)
        got = summary(host)
        assert got == expected, f"killed {place} (place {strike})"


def test_a_control_plane_that_forgets_its_intent_would_be_noticed(
    make_host: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mutant records a promotion only after it is visible, and never reconciles."""
    monkeypatch.setattr(Performer, "reconcile", lambda self: None)
    host = make_host()
    host.boot(Hooks())
    host.turns(TURNS)
    assert host.plane.deployment.stable is None or host.plane.deployment.stable.generation != 2


class TestEnds:
    def test_a_failed_guard_rejects_and_the_incumbent_serves_on(self, host: Any) -> None:
        host.boot()
        host.found()
        host.findings = {"incumbent": Finding.FAIL}
        host.turns(TURNS)
        assert host.plane.deployment.stable.generation == 1
        assert "REJECTED" in host.stages().values()

    def test_a_decline_rejects_and_the_journal_says_who_and_why(self, host: Any) -> None:
        host.boot()

        def decline_the_second(h: Any) -> None:
            candidate = h.book.ledger.open_candidate
            if candidate is None or candidate.stage is not Stage.CLEARED:
                return
            if h.book.ledger.live is None:
                h.operators.approve(*h.signed())
            else:
                h.operators.approve(*h.signed("decline", reason="the sevens look wrong"))

        host.operator = decline_the_second
        host.turns(20)
        rejected = [c for c in host.book.ledger.candidates.values() if c.stage is Stage.REJECTED]
        assert rejected
        assert rejected[0].reason == "declined by UnsafeDemoApprover: the sevens look wrong"
        assert host.plane.deployment.stable.generation == 1
        assert host.plane.deployment.newcomer is None

    def test_nobody_there_the_candidate_expires(self, host: Any) -> None:
        host.boot()
        host.found()
        host.operator = lambda _host: None
        host.until(Stage.CLEARED)
        host.turns(1)
        waiting = host.book.ledger.open_candidate
        assert waiting.stage is Stage.CLEARED
        assert any("waits for approval" in b.what for b in host.turn.blocked)
        host.clock.advance(4000.0)
        host.turns(1)
        assert host.stages()[waiting.id] == "EXPIRED"

    def test_a_sick_newcomer_is_rolled_back(self, host: Any) -> None:
        host.newcomer = {"errors": 40}
        host.boot()
        host.until(Stage.PROBATION, generation=2)
        host.turns(1)
        assert host.stage_of(2) == Stage.ROLLED_BACK
        assert host.plane.deployment.stable.generation == 1
        assert host.plane.deployment.newcomer is None

    def test_a_bundle_that_the_data_plane_refuses_is_abandoned(self, host: Any) -> None:
        host.boot()
        host.found()
        host.operator = lambda _host: None
        host.until(Stage.CLEARED)
        bundle = host.book.ledger.open_candidate.bundle
        host.plane.refuse.add(bundle)
        host.operators.approve(*host.signed())
        host.turns(6)
        assert "ABANDONED" in host.stages().values()
        assert host.kinds().count("stage.failed") == 3
        assert host.plane.deployment.stable.generation == 1

    def test_a_killed_search_is_charged_and_a_later_turn_tries_again(self, host: Any) -> None:
        host.boot()
        host.found()
        host.search_outcomes = ["killed by SIGKILL"]
        host.turns(4)
        ended = [e.body for e in host.book.journal.entries() if e.kind == "search.ended"][-1]
        assert (ended["outcome"], ended["reason"], ended["cpu_s"]) == ("failed", "killed by SIGKILL", 12.5)
        assert host.plane.deployment.stable.generation == 1
        host.turns(TURNS)
        assert host.book.ledger.live.generation == 2

    def test_a_panel_that_keeps_dying_abandons_the_candidate(self, host: Any) -> None:
        host.boot()
        host.found()
        host.panel_outcomes = ["killed by SIGKILL"] * 2
        host.turns(8)
        assert "ABANDONED" in host.stages().values()

    def test_a_result_whose_bytes_are_not_its_digest_is_refused(
        self, host: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        host.boot()
        host.found()
        run = host.run_worker

        def tampered(module: str, case: Any, folder: Any, *rest: Any) -> Any:
            worker = run(module, case, folder, *rest)
            if module == "search":
                (folder / "out" / "bundle.onnx").write_bytes(b"other bytes")
            return worker

        monkeypatch.setattr(workers, "start", tampered)
        host.turns(6)
        assert "ABANDONED" in host.stages().values()
        assert host.plane.deployment.stable.generation == 1


class TestApprovals:
    def waiting(self, host: Any) -> None:
        host.boot()
        host.operator = lambda _host: None
        host.until(Stage.CLEARED)

    def test_one_changed_byte_is_refused_and_journalled(self, host: Any) -> None:
        self.waiting(host)
        name, raw, signature = host.signed()
        changed = raw.replace(b"I looked at it", b"I looked at us")
        with pytest.raises(TamperError):
            host.operators.approve(name, changed, signature)
        assert host.kinds()[-1] == "approval.refused"
        host.turns(3)
        assert host.book.ledger.open_candidate.stage is Stage.CLEARED
        host.operators.approve(name, raw, signature)
        host.turns(1)
        assert host.book.ledger.open_candidate.stage is Stage.APPROVED

    def test_an_approval_of_another_digest_is_refused(self, host: Any) -> None:
        self.waiting(host)
        subject = host.operators.subject(host.book.ledger.open_candidate)
        other = subject.model_copy(update={"bundle": "sha256:" + "a" * 64})
        with pytest.raises(InstarError, match="bundle"):
            host.operators.approve(*host.signed(subject=other))

    def test_an_approval_is_not_taken_twice(self, host: Any) -> None:
        self.waiting(host)
        signed = host.signed()
        host.operators.approve(*signed)
        with pytest.raises(InstarError):
            host.operators.approve(*signed)


class TestOperators:
    def test_frozen_nothing_starts_and_thawed_it_goes_on(self, host: Any) -> None:
        host.boot()
        host.found()
        host.operators.freeze("ann", "a holiday is on")
        stages = host.stages()
        host.turns(10)
        assert host.stages() == stages
        host.operators.thaw("ann", "the holiday is over")
        host.turns(TURNS)
        assert host.book.ledger.live.generation == 2

    def test_a_rollback_is_a_new_generation_of_old_bytes(self, host: Any) -> None:
        host.boot()
        host.turns(TURNS)
        first = next(c for c in host.book.ledger.candidates.values() if c.generation == 1)
        host.drift = False
        host.operators.rollback("ann", "the new one reads badly", None)
        host.turns(6)
        assert host.book.ledger.live.generation == 3
        assert host.plane.deployment.stable.bundle == first.bundle
        assert host.stage_of(2) == Stage.RETIRED

    def test_a_rollback_during_probation_takes_the_newcomer_off(self, host: Any) -> None:
        host.newcomer = {"requests": 5, "labels": 0, "correct": 0}
        host.boot()
        host.turns(25)
        assert host.book.ledger.open_candidate.stage is Stage.PROBATION
        host.operators.rollback("ann", "it looks odd to me", None)
        assert host.plane.deployment.newcomer is None
        assert "ROLLED_BACK" in host.stages().values()

    def test_with_nothing_to_go_back_to_a_rollback_is_refused(self, host: Any) -> None:
        host.boot()
        host.found()
        host.drift = False
        with pytest.raises(PermanentError, match="there is none"):
            host.operators.rollback("ann", "just to see what is", 7)

    def test_without_the_data_plane_the_turn_goes_on_and_says_so(self, host: Any) -> None:
        host.boot()
        host.found()
        host.plane.up = False
        host.turns(3)
        assert host.turn.serving == "unreachable"
        assert any(b.what == "the data plane" for b in host.turn.blocked)
        host.plane.up = True
        host.turns(TURNS)
        assert host.book.ledger.live.generation == 2


class TestLaw:
    def test_an_unsigned_edit_is_refused_and_the_old_policy_stays(self, host: Any) -> None:
        host.boot()
        before = host.policy.digest
        text = (host.law / "policy.toml").read_text()
        host.write_policy(text.replace("min_accuracy = 0.85", "min_accuracy = 0.10"), signed=False)
        with pytest.raises(InstarError):
            host.policy.reload()
        assert host.policy.digest == before
        assert host.policy.problem is not None
        assert host.kinds()[-1] == "policy.refused"
        host.boot()
        assert host.policy.digest == before

    def test_a_signed_edit_that_misses_a_threshold_is_refused_by_clause_and_line(self, host: Any) -> None:
        host.boot()
        text = (host.law / "policy.toml").read_text()
        host.write_policy(text.replace("min_accuracy = 0.85", ""))
        with pytest.raises(InstarError, match=r"line \d+: .*floor\.min_accuracy \(MP-5\.5\): missing"):
            host.policy.reload()

    def test_a_signed_edit_is_in_force_after_a_reload_unless_a_candidate_is_under_way(
        self, host: Any
    ) -> None:
        host.boot()
        host.operator = lambda _host: None
        host.until(Stage.CLEARED)
        text = (host.law / "policy.toml").read_text()
        text = text.replace("version = 1", "version = 2")
        host.write_policy(text.replace("min_accuracy = 0.85", "min_accuracy = 0.86"))
        with pytest.raises(InstarError, match="no candidate under way"):
            host.policy.reload()
        host.operators.approve(*host.signed("decline"))
        host.turns(1)
        host.policy.reload()
        assert host.policy.policy.modification_protocol.evaluation.floor.min_accuracy == 0.86


def test_a_broken_journal_stops_every_act(host: Any) -> None:
    host.boot()
    host.turns(2)
    host.turn.journal_valid = False
    stages = host.stages()
    host.turns(10)
    assert host.stages() == stages
    assert host.turn.blocked[0].what == "every act is blocked"
