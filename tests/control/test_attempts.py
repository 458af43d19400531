"""A search from its start to its end: tried again where it was, charged once, and whether it was caged."""

import json
from pathlib import Path
from typing import Any

import pytest

from daemon.console.demo.narrative import _search_ended
from daemon.console.words import body
from daemon.control import workers
from daemon.control.ledger import Ledger
from daemon.control.workers import Allowance
from daemon.store.journal import Entry
from policies.clock import SystemClock


def entries(host: Any, kind: str) -> list[dict[str, Any]]:
    return [entry.body for entry in host.book.journal.entries() if entry.kind == kind]


def searching(host: Any) -> Path:
    """Run until an adaptation's search is at work; return its folder."""
    host.boot()
    host.found()
    host.search_outcomes = ["running"]
    while host.book.ledger.search is None:
        host.turns(1)
    return Path(host.state / "jobs" / host.book.ledger.search.id)


def keep(folder: Path, *, checkpoint_cpu_s: float | None, progress_cpu_s: float) -> None:
    """Leave what a search leaves that is killed."""
    (folder / "out" / "progress.json").write_text(json.dumps({"cpu_s": progress_cpu_s}))
    if checkpoint_cpu_s is not None:
        (folder / "out" / "checkpoint").mkdir(exist_ok=True)
        (folder / "out" / "checkpoint" / "checkpoint.json").write_text(
            json.dumps({"cpu_s": checkpoint_cpu_s})
        )


@pytest.fixture
def started(host: Any, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Path, bytes, bool]]:
    """Every search that is started: its folder, its brief, and whether a checkpoint lies there."""
    seen: list[tuple[Path, bytes, bool]] = []

    def start(module: str, case: Path, folder: Path, *rest: Any) -> Any:
        if module == "search":
            there = (folder / "out" / "checkpoint" / "checkpoint.json").is_file()
            seen.append((folder, case.read_bytes(), there))
        return host.run_worker(module, case, folder, *rest)

    monkeypatch.setattr(workers, "start", start)
    return seen


class TestCheckpoint:
    def test_a_lost_search_is_begun_again_in_its_folder_with_its_brief_and_finds_its_checkpoint(
        self, host: Any, started: list[tuple[Path, bytes, bool]]
    ) -> None:
        folder = searching(host)
        keep(folder, checkpoint_cpu_s=20.0, progress_cpu_s=25.0)
        host.boot()
        first, second = started[-2:]
        assert first[:2] == second[:2]
        assert (first[2], second[2]) == (False, True)
        assert [b["attempt"] for b in entries(host, "search.started")][-2:] == [1, 2]

    def test_a_new_search_after_a_failed_one_has_another_folder_and_no_checkpoint(
        self, host: Any, started: list[tuple[Path, bytes, bool]]
    ) -> None:
        folder = searching(host)
        keep(folder, checkpoint_cpu_s=20.0, progress_cpu_s=25.0)
        host.jobs.end_search("ordered", host.clock.now())
        host.turns(10)
        assert started[-1][0] != folder
        assert not started[-1][2]

    def test_a_start_takes_away_what_ended_the_last_attempt_and_nothing_else(self, tmp_path: Path) -> None:
        out, brief = tmp_path / "out", tmp_path / "brief.json"
        brief.write_text("{}")
        (out / "checkpoint").mkdir(parents=True)
        kept, stale = out / "checkpoint" / "checkpoint.json", out / "result.json"
        for path in (kept, stale):
            path.write_text("{}")
        limits = Allowance(cpu_s=60.0, memory_bytes=3_000_000_000, wall_s=120.0, threads=1)
        worker = workers.start("search", brief, tmp_path, "result.json", limits, SystemClock())
        worker.stop()
        assert kept.is_file()
        assert not stale.is_file()


class TestCharge:
    @pytest.mark.parametrize(("checkpoint_cpu_s", "charged_cpu_s"), [(4.0, 13.5), (None, 17.5)])
    def test_what_a_checkpoint_carries_over_is_charged_once(
        self,
        host: Any,
        monkeypatch: pytest.MonkeyPatch,
        checkpoint_cpu_s: float | None,
        charged_cpu_s: float,
    ) -> None:
        def start(*job: Any) -> Any:
            worker = host.run_worker(*job)
            worker.cpu_s = 0.0  # what was measured is lost with control; its result says 12.5
            return worker

        folder = searching(host)
        keep(folder, checkpoint_cpu_s=checkpoint_cpu_s, progress_cpu_s=5.0)
        monkeypatch.setattr(workers, "start", start)
        host.boot()
        host.turns(1)
        assert entries(host, "search.ended")[-1]["cpu_s"] == charged_cpu_s

    @pytest.mark.parametrize(
        ("checkpoint_cpu_s", "total_cpu_s"),
        [(20.0, 30.0), (None, 50.0), (1e9, 25.0)],
        ids=["from its checkpoint", "from nothing", "a checkpoint that claims more than was charged"],
    )
    def test_a_second_attempt_is_charged_from_where_it_began(
        self, host: Any, checkpoint_cpu_s: float | None, total_cpu_s: float
    ) -> None:
        folder = searching(host)
        keep(folder, checkpoint_cpu_s=checkpoint_cpu_s, progress_cpu_s=25.0)
        host.search_outcomes = ["running"]
        host.boot()
        assert host.jobs._total_cpu_s(25.0) == total_cpu_s

    def test_a_third_attempt_does_not_charge_the_first_twice(self, host: Any) -> None:
        folder = searching(host)
        host.search_outcomes = ["running", "running"]
        keep(folder, checkpoint_cpu_s=20.0, progress_cpu_s=25.0)
        host.boot()
        keep(folder, checkpoint_cpu_s=30.0, progress_cpu_s=32.0)
        host.boot()
        told = [(b["charged_cpu_s"], b["resumed_cpu_s"]) for b in entries(host, "search.started")[-3:]]
        assert told == [(0.0, 0.0), (25.0, 20.0), (37.0, 30.0)]

    def test_entries_of_before_there_were_checkpoints_fold(self, host: Any) -> None:
        searching(host)
        told = list(host.book.journal.entries())
        old = [
            Entry(
                e.seq,
                e.at,
                e.kind,
                {k: v for k, v in e.body.items() if k != "resumed_cpu_s"},
                e.prev,
                e.digest,
            )
            for e in told
        ]
        assert Ledger.fold(old) == Ledger.fold(told)


class TestCaged:
    @pytest.mark.parametrize("caged", [True, False])
    def test_the_journal_says_whether_a_search_was_caged(self, host: Any, caged: bool) -> None:
        host.caged = caged
        host.boot()
        host.found()
        assert [b["caged"] for b in entries(host, "search.ended")] == [caged]

    def test_of_a_lost_worker_nobody_knows(self, host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        searching(host)
        for _ in range(3):
            host.search_outcomes = ["running"]
            host.boot()
        host.turns(1)
        last = entries(host, "search.ended")[-1]
        assert (last["reason"], last["caged"]) == ("its worker is lost", None)

    def test_a_failed_search_says_it_too_with_the_searchs_own_reason(self, host: Any) -> None:
        host.boot()
        host.found()
        reason = "refused: expected a search archive of format 2, got 1; found the task anew"
        host.search_outcomes = [reason]
        host.turns(4)
        last = entries(host, "search.ended")[-1]
        assert (last["outcome"], last["reason"], last["caged"]) == ("failed", reason, True)
        assert any(reason in blocked.why for blocked in host.turn.blocked)

    @pytest.mark.parametrize(
        ("caged", "shown"), [(True, "caged=true"), (False, "caged=false"), (None, "caged=–")]
    )
    def test_history_shows_it_and_the_demo_tells_of_a_search_without_one(
        self, caged: bool | None, shown: str
    ) -> None:
        told = {"id": "search-2", "outcome": "done", "cpu_s": 1.0, "wall_s": 2.0, "caged": caged}
        assert shown in body(told)
        assert ("without a cage" in str(_search_ended(told))) is (caged is False)
