"""What goes wrong beside the loop: rollbacks at bad moments, garbage from workers, old laws, lost yeses."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from daemon.control import answers, workers
from daemon.control.book import Book
from daemon.control.sensors import Sensors
from daemon.store.journal import Journal
from policies.clock import StandingClock
from policies.errors import IllegalMove, InstarError, TamperError
from policies.lifecycle import OPEN, Stage
from policies.terms import Arm, Artefact
from tests.simulator.host import Hooks, Killed

TURNS = 40


def adapted(host: Any) -> None:
    """Run until the second generation is live and quiet."""
    host.boot()
    host.turns(60)
    assert host.book.ledger.live.generation == 2
    host.drift = False


def rolled_back(host: Any) -> None:
    live = host.book.ledger.live
    assert live.generation == 3
    assert host.plane.deployment.stable.generation == 3
    assert host.plane.deployment.newcomer is None
    assert live.bundle == host.plane.deployment.stable.bundle
    assert not [c for c in host.book.ledger.candidates.values() if c.stage in OPEN]


class TestRollback:
    def test_beside_a_running_search_it_wins_and_the_search_is_charged_and_ended(self, host: Any) -> None:
        host.search_outcomes = ["done", "done", "running"]
        host.drifted = lambda generation: generation in (1, 2)
        host.boot()
        for _ in range(80):
            host.turns(1)
            if host.book.ledger.search is not None and host.book.ledger.searches == 3:
                break
        assert host.book.ledger.live.generation == 2
        host.drifted = lambda _generation: False
        host.operators.rollback("ann", "it reads badly today", None)
        host.turns(TURNS)
        rolled_back(host)
        last = [e.body for e in host.book.journal.entries() if e.kind == "search.ended"][-1]
        assert (last["outcome"], last["cpu_s"]) == ("failed", 12.5)

    @pytest.mark.parametrize("stage", [Stage.CLEARED, Stage.PROBATION])
    def test_beside_an_open_candidate_that_one_gives_way(self, host: Any, stage: Stage) -> None:
        host.drifted = lambda generation: generation in (1, 2)
        host.boot()
        while host.book.ledger.live is None or host.book.ledger.live.generation < 2:
            host.turns(1)
        host.newcomer = {"requests": 5, "labels": 0, "correct": 0}
        if stage is Stage.CLEARED:
            host.operator = lambda _host: None
        host.until(stage)
        open_now = host.book.ledger.open_candidate.id
        host.newcomer = {}
        host.drifted = lambda _generation: False
        host.operators.rollback("ann", "it reads badly today", 1)
        host.turns(TURNS)
        assert host.stages()[open_now] in ("EXPIRED", "ROLLED_BACK")
        assert host.plane.deployment.stable.bundle == host.book.ledger.live.bundle
        assert host.book.ledger.swaps[-1].kind == "rollback"

    def test_frozen_it_goes_on(self, host: Any) -> None:
        adapted(host)
        host.operators.freeze("ann", "something is wrong")
        host.operators.rollback("ann", "it reads badly today", None)
        host.turns(TURNS)
        rolled_back(host)
        assert host.book.ledger.frozen is not None

    def test_with_the_data_plane_down_nothing_is_given_up(self, host: Any) -> None:
        adapted(host)
        host.plane.up = False
        before = host.stages()
        with pytest.raises(InstarError, match="expected instar-serve to answer"):
            host.operators.rollback("ann", "it reads badly today", None)
        assert host.stages() == before

    def test_killed_anywhere_it_is_done_whole_or_not_at_all(self, make_host: Callable[[], Any]) -> None:
        whole = make_host()
        adapted(whole)
        count = Hooks()
        whole.boot(count)
        start = len(count.places)
        whole.operators.rollback("ann", "it reads badly today", None)
        whole.turns(TURNS)
        rolled_back(whole)
        ends = set()
        for strike in range(start, len(count.places)):
            host = make_host()
            adapted(host)
            host.boot(Hooks(strike))
            with pytest.raises(Killed):
                order_and_run(host)
            host.boot()
            host.turns(TURNS)
            ends.add(host.book.ledger.live.generation)
            if host.book.ledger.live.generation == 3:
                rolled_back(host)
        assert ends <= {2, 3}
        assert 3 in ends


def order_and_run(host: Any) -> None:
    host.operators.rollback("ann", "it reads badly today", None)
    host.turns(TURNS)


class TestGarbage:
    @pytest.mark.parametrize("text", ["garbage", "[]", "{}", '{"reason": "too few rows"}'])
    def test_a_refusal_is_read_or_told_to_be_unreadable(self, tmp_path: Path, text: str) -> None:
        out = tmp_path / "out"
        out.mkdir()
        (out / "refusal.json").write_text(text)
        allowance = workers.Allowance(cpu_s=1, memory_bytes=1, wall_s=1, threads=1)
        worker = workers.Worker(tmp_path, out / "result.json", 0, allowance, 0.0, None)
        worker.poll(0.0)
        assert worker.ended in ("refused: too few rows", "refused, and its refusal.json is unreadable")

    @pytest.mark.parametrize(
        "text",
        [
            *("", "[]", '"x"', '{"cpu_s": NaN}', '{"cpu_s": -1}', '{"cpu_s": 3}'),
            pytest.param('{"cpu_s": 1' + "0" * 400 + "}", id="more than a float holds"),
        ],
    )
    def test_what_a_lost_worker_used_is_read_or_counts_for_nothing(self, tmp_path: Path, text: str) -> None:
        path = tmp_path / "progress.json"
        path.write_text(text)
        used = answers.used_cpu_s(path)
        assert used == (3.0 if text == '{"cpu_s": 3}' else 0.0)
        assert math.isfinite(used)

    def test_a_changed_result_is_not_taken_for_a_broken_journal(self, host: Any) -> None:
        host.boot()
        host.found()
        host.until(Stage.EXPORTED)
        number = host.book.ledger.searches
        (host.state / "jobs" / f"search-{number}" / "out" / "result.json").unlink()
        host.jobs._panel = None
        host.turns(3)
        assert host.turn.journal_valid
        assert "ABANDONED" in host.stages().values()

    @pytest.mark.parametrize("path", ["../bundle.onnx", "/dev/zero", "a\0b"])
    def test_a_path_that_leaves_the_folder_is_refused(self, tmp_path: Path, path: str) -> None:

        with pytest.raises(TamperError):
            answers.checked(tmp_path, Artefact(path=path, digest="sha256:" + "0" * 64))

    def test_a_winner_of_another_space_closes_the_search(
        self, host: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        host.boot()
        host.found()
        run = host.run_worker

        def other(module: str, case: Path, folder: Path, *rest: Any) -> Any:
            worker = run(module, case, folder, *rest)
            result = folder / "out" / "result.json"
            if module == "search":
                plain = json.loads(result.read_bytes())
                plain["winner"]["genes"] = [1]
                result.write_text(json.dumps(plain))
            return worker

        monkeypatch.setattr(workers, "start", other)
        host.turns(6)
        last = [e.body for e in host.book.journal.entries() if e.kind == "search.ended"][-1]
        assert last["outcome"] == "failed"
        assert "genome of the parent's space" in last["reason"]
        assert host.book.ledger.live.generation == 1

    @pytest.mark.parametrize("raw", [b"", b"PK\x03\x04torn", b"garbage"])
    def test_a_torn_snapshot_costs_a_new_commissioning_and_no_start(self, tmp_path: Path, raw: bytes) -> None:
        (tmp_path / "monitors.npz").write_bytes(raw)
        unused: Any = None
        sensors = Sensors(unused, unused, tmp_path, unused, tmp_path, 1)
        assert sensors.load(1) is False
        assert sensors.watch is None

    def test_a_journal_that_does_not_fold_is_tampered_with(self, tmp_path: Path) -> None:
        journal = Journal(tmp_path / "journal.db")
        journal.append("trigger", {"not": "a trigger"}, 1.0)
        with pytest.raises(TamperError, match="expected a journal that folds"):
            Book(journal, StandingClock())


class TestLawAndGate:
    def test_an_old_law_does_not_come_back_by_its_old_signature(self, host: Any) -> None:
        host.boot()
        old = (host.law / "policy.toml").read_text()
        host.write_policy(old.replace("version = 1", "version = 2"))
        host.policy.reload()
        host.write_policy(old)
        with pytest.raises(InstarError, match="expected a version above 2"):
            host.policy.reload()

    def test_a_restart_does_not_change_the_law_under_a_candidate(self, host: Any) -> None:
        host.boot()
        host.operator = lambda _host: None
        host.until(Stage.CLEARED)
        before = host.policy.digest
        text = (host.law / "policy.toml").read_text()
        host.write_policy(text.replace("version = 1", "version = 2"))
        host.boot()
        assert host.policy.digest == before
        assert "no candidate under way" in host.policy.problem

    def test_what_monitors_are_made_of_waits_for_a_start(self, host: Any) -> None:
        host.boot()
        text = (host.law / "policy.toml").read_text().replace("version = 1", "version = 2")
        host.write_policy(text.replace("warning_ratio = 0.6", "warning_ratio = 0.7"))
        with pytest.raises(InstarError, match="taken up at a start"):
            host.policy.reload()
        host.boot()
        assert host.policy.policy.version == 2

    def test_a_yes_that_expired_can_be_given_anew_and_is_not_staged(self, host: Any) -> None:
        host.boot()
        host.operator = lambda _host: None
        host.until(Stage.CLEARED)
        host.operators.freeze("ann", "a holiday is on")
        host.operators.approve(*host.signed())
        host.clock.advance(700.0)
        host.operators.approve(*host.signed())
        host.clock.advance(700.0)
        host.operators.thaw("ann", "the holiday is over")
        host.turns(1)
        assert host.book.ledger.open_candidate.stage is Stage.CLEARED

    def test_a_replay_after_the_decision_is_journalled(self, host: Any) -> None:
        host.boot()
        host.operator = lambda _host: None
        host.until(Stage.CLEARED)
        signed = host.signed()
        host.operators.approve(*signed)
        host.turns(1)
        with pytest.raises(InstarError, match="expected a candidate in stage CLEARED"):
            host.operators.approve(*signed)
        assert host.kinds()[-1] == "approval.refused"


class TestData:
    def test_a_sick_first_generation_is_served_and_a_person_called(self, host: Any) -> None:
        host.arm = lambda _generation: Arm(
            generation=1,
            requests=5000,
            errors=4000,
            not_finite=0,
            p50_ms=1.0,
            p99_ms=2.0,
            labels=0,
            correct=0,
        )
        host.boot()
        host.turns(20)
        assert host.plane.deployment.stable.generation == 1
        assert host.kinds().count("page") == 1

    def test_a_live_bundle_that_cannot_be_served_pages_once_and_does_not_flood_the_journal(
        self, host: Any
    ) -> None:
        adapted(host)
        host.plane.refuse.add(host.book.ledger.live.bundle)
        host.plane.deployment = host.plane.deployment.model_copy(update={"stable": None})
        before = len(host.kinds())
        host.turns(30)
        new = host.kinds()[before:]
        assert new.count("deploy.intent") == 1
        assert new.count("page") == 1

    def test_an_illegal_move_is_not_written(self, host: Any) -> None:
        adapted(host)
        before = len(host.kinds())
        with pytest.raises(IllegalMove):
            host.book.move(host.book.ledger.live_candidate, Stage.PROBATION, "a mistake")
        assert len(host.kinds()) == before
