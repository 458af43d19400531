"""What a search is handed beside its rows: precisions, earlier regimes, what serving takes."""

from typing import Any

import pytest

from daemon.control import answers
from daemon.control.ledger import Ledger
from daemon.store.journal import Entry
from policies.errors import TamperError
from policies.lifecycle import Stage
from policies.terms import (
    Artefact,
    Brief,
    Evidence,
    Finding,
    Genome,
    Heirloom,
    Level,
    Precision,
    SearchResult,
    Signal,
    Trigger,
    TriggerKind,
)
from policies.wire import digest_bytes
from policies.world import Candidate, Kind

GENES = (1, 2, 3, 4)


def trigger(
    kind: TriggerKind = TriggerKind.DATA, monitor: str = "drift", facts: dict[str, float] | None = None
) -> Trigger:
    told = Signal(monitor=monitor, level=Level.ALARM, since=5.0, at=9.0, n=900, reason="r", facts=facts or {})
    return Trigger(
        id=f"{kind}-g1-9",
        kind=kind,
        at=9.0,
        clause="MP-3.1",
        reason="seen",
        signals=(told,),
        policy=digest_bytes(b"policy"),
        generation=1,
    )


def asked(host: Any, why: Trigger | None = None) -> Brief:
    """Return the brief that control would write now."""
    folder = host.state / "jobs" / "search-99"
    folder.mkdir(exist_ok=True)
    found: Brief = host.jobs._briefs.brief("search-99", why or trigger(), 1, folder)
    return found


def go_live(host: Any, generation: int, genes: tuple[int, ...] = (), **body: Any) -> str:
    """Write into the journal that a candidate of this generation went live, and its predecessor retired."""
    name, genes = f"c{generation}-abc", genes or (generation, *GENES[1:])
    state = host.blobs.put(body.pop("state", f"state {generation}").encode())
    record = Candidate(
        id=name,
        kind=Kind.ADAPTATION,
        stage=Stage.PROPOSED,
        since=host.clock.now(),
        trigger=trigger(),
        genome=Genome(space=body.pop("space", "image"), genes=genes),
        base_generation=generation - 1,
    )
    host.book.write(
        "candidate.moved",
        candidate=name,
        **{"from": None, "to": "PROPOSED"},
        reason="found",
        record=record.model_dump(mode="json"),
        state=state,
        archive=digest_bytes(b"archive"),
        search=f"search-{generation}",
        **({"accuracy": 0.9} | body),
    )
    before = host.book.ledger.live_candidate
    move(host, name, Stage.EXPORTED, bundle=digest_bytes(name.encode()))
    for stage in (Stage.CLEARED, Stage.APPROVED):
        move(host, name, stage)
    serve(host, name, generation)
    if before is not None:
        move(host, before.id, Stage.RETIRED)
    return name


def move(host: Any, name: str, to: Stage, **changes: Any) -> None:
    host.book.move(host.book.ledger.candidates[name], to, "as told", **changes)


def serve(host: Any, name: str, generation: int) -> None:
    move(host, name, Stage.STAGED, generation=generation)
    move(host, name, Stage.PROBATION)
    move(host, name, Stage.LIVE)


def generations(brief: Brief) -> list[int]:
    return [one.generation for one in brief.library]


class TestPrecisions:
    def test_int8_is_searched_where_the_policy_names_both_quantising_operators(self, host: Any) -> None:
        host.boot()
        assert asked(host).precisions == (Precision.FP32, Precision.INT8)

    @pytest.mark.parametrize("missing", ["QuantizeLinear", "DequantizeLinear"])
    def test_with_one_of_them_alone_it_is_not(self, host: Any, missing: str) -> None:
        text = (host.law / "policy.toml").read_text()
        assert f'"{missing}"' in text
        host.write_policy(text.replace(f'"{missing}", ', ""))
        host.boot()
        assert asked(host).precisions == (Precision.FP32,)


class TestLibrary:
    def test_it_holds_what_was_live_the_latest_first_and_not_what_is(self, host: Any) -> None:
        host.boot()
        for generation in (1, 2, 3):
            go_live(host, generation, accuracy=0.9 + generation / 100)
        state = digest_bytes(b"state 2")
        assert asked(host).library[0] == Heirloom(
            generation=2,
            genome=Genome(space="image", genes=(2, 2, 3, 4)),
            state=Artefact(path=str(host.blobs.path(state)), digest=state),
            accuracy=0.92,
        )
        assert generations(asked(host)) == [2, 1]

    @pytest.mark.parametrize("kind", [TriggerKind.LATENCY, TriggerKind.FOUNDING])
    def test_only_a_search_after_a_change_of_the_data_gets_it(self, host: Any, kind: TriggerKind) -> None:
        host.boot()
        go_live(host, 1)
        go_live(host, 2)
        assert asked(host, trigger(kind)).library == ()
        assert generations(asked(host, trigger(TriggerKind.DATA))) == [1]

    def test_it_holds_six_at_most_the_latest(self, host: Any) -> None:
        host.boot()
        for generation in range(1, 10):
            go_live(host, generation)
        assert generations(asked(host)) == [8, 7, 6, 5, 4, 3]

    @pytest.mark.parametrize(
        "otherwise",
        [{"accuracy": None}, {"genes": (1, 2, 3)}, {"space": "window"}],
        ids=["no label told how good it was", "another length", "another space"],
    )
    def test_what_a_search_would_refuse_or_cannot_compare_is_passed_over(
        self, host: Any, otherwise: dict[str, Any]
    ) -> None:
        host.boot()
        go_live(host, 1)
        go_live(host, 2, **otherwise)
        go_live(host, 3)
        assert generations(asked(host)) == [1]

    def test_a_state_that_is_gone_is_passed_over(self, host: Any) -> None:
        host.boot()
        for generation in (1, 2, 3):
            go_live(host, generation)
        host.blobs.path(digest_bytes(b"state 2")).unlink()
        assert generations(asked(host)) == [1]

    def test_states_stay_when_the_folders_of_their_jobs_are_forgotten(self, host: Any) -> None:
        host.boot()
        go_live(host, 1)
        go_live(host, 2)
        for number in range(40):
            (host.state / "jobs" / f"search-{number}").mkdir(exist_ok=True)
        assert host.jobs.prune() == 16
        assert generations(asked(host)) == [1]

    def test_a_regime_that_came_back_under_a_new_name_is_tried_once(self, host: Any) -> None:
        host.boot()
        go_live(host, 1, GENES, state="summer")
        go_live(host, 2, GENES, state="winter")
        go_live(host, 3, GENES, state="summer")
        assert generations(asked(host)) == [2]
        go_live(host, 4, GENES, state="autumn")
        assert generations(asked(host)) == [3, 2]

    def test_after_a_rollback_the_one_that_is_live_again_is_no_heirloom_and_the_other_is(
        self, host: Any
    ) -> None:
        host.boot()
        first = go_live(host, 1)
        second = go_live(host, 2)
        serve(host, first, 3)
        move(host, second, Stage.RETIRED)
        assert generations(asked(host)) == [2]
        go_live(host, 4)
        assert generations(asked(host)) == [3, 2]

    def test_a_candidate_that_never_was_live_is_no_heirloom(self, host: Any) -> None:
        host.boot()
        host.found()
        host.findings = {"incumbent": Finding.FAIL}
        host.turns(10)
        assert "REJECTED" in host.stages().values()
        assert asked(host).library == ()


class TestAccuracy:
    def test_the_loop_journals_how_good_a_winner_was_and_hands_it_to_the_search_after_the_next(
        self, host: Any
    ) -> None:
        host.accuracy = 0.875
        host.drifted = lambda generation: generation in (1, 2)
        host.boot()
        host.turns(60)
        assert host.book.ledger.live.generation == 3
        path = host.state / "jobs" / "search-3" / "brief.json"
        library = Brief.model_validate_json(path.read_bytes()).library
        assert [(one.generation, one.accuracy) for one in library] == [(1, 0.875)]

    def test_without_labels_nothing_is_journalled_and_nothing_inherited(self, host: Any) -> None:
        host.accuracy = None
        host.drifted = lambda generation: generation in (1, 2)
        host.boot()
        host.turns(60)
        assert host.book.ledger.live.generation == 3
        path = host.state / "jobs" / "search-3" / "brief.json"
        assert Brief.model_validate_json(path.read_bytes()).library == ()

    def test_entries_of_before_there_was_a_library_fold_and_inherit_nothing(self, host: Any) -> None:
        host.boot()
        go_live(host, 1)
        go_live(host, 2)
        told = [e for e in host.book.journal.entries() if e.kind == "candidate.moved"]
        old = [
            Entry(e.seq, e.at, e.kind, {k: v for k, v in e.body.items() if k != "accuracy"}, e.prev, e.digest)
            for e in told
        ]
        assert [left.accuracy for left in Ledger.fold(told).heritage.values()] == [0.9, 0.9]
        assert [left.accuracy for left in Ledger.fold(old).heritage.values()] == [None, None]

    @pytest.mark.parametrize(("said", "good"), [(0.0, True), (1.0, True), (-0.1, False), (1.5, False)])
    def test_what_is_no_share_is_refused_before_it_can_spoil_later_briefs(
        self, said: float, good: bool
    ) -> None:
        nothing = Artefact(path="x", digest=digest_bytes(b""))
        result = SearchResult(
            brief="search-1",
            seed=0,
            winner=Genome(space="image", genes=GENES),
            bundle=nothing,
            state=nothing,
            archive=nothing,
            evidence=(Evidence(name="accuracy_search", value=said, unit="share", n=1),),
            points=(),
            cpu_s=1.0,
            wall_s=1.0,
            architectures=1,
            versions={},
            phases_s={},
        )
        if good:
            assert answers.accuracy(result) == said
        else:
            with pytest.raises(TamperError, match=r"expected accuracy_search of search-1 in \[0, 1\]"):
                answers.accuracy(result)

    def test_a_search_that_says_so_is_closed_as_failed_and_the_incumbent_serves_on(self, host: Any) -> None:
        host.boot()
        host.found()
        host.accuracy = 1.5
        host.turns(4)
        last = [e.body for e in host.book.journal.entries() if e.kind == "search.ended"][-1]
        assert last["outcome"] == "failed"
        assert "in [0, 1], got 1.5" in last["reason"]
        assert host.book.ledger.live.generation == 1


class TestServed:
    def test_a_search_for_latency_is_told_the_median_that_the_monitor_saw(self, host: Any) -> None:
        host.boot()
        slow = trigger(TriggerKind.LATENCY, "latency", {"p50_ms": 3.5, "p99_ms": 40.0})
        assert asked(host, slow).served_p50_ms == 3.5

    @pytest.mark.parametrize(
        ("monitor", "facts"), [("drift", {"p50_ms": 3.5}), ("latency", {}), ("latency", {"p50_ms": 0.0})]
    )
    def test_what_the_monitor_did_not_see_stays_unknown(
        self, host: Any, monitor: str, facts: dict[str, float]
    ) -> None:
        host.boot()
        assert asked(host, trigger(TriggerKind.LATENCY, monitor, facts)).served_p50_ms is None

    def test_a_search_after_a_change_of_the_data_is_not_told(self, host: Any) -> None:
        host.boot()
        both = trigger(TriggerKind.DATA, "latency", {"p50_ms": 3.5})
        assert asked(host, both).served_p50_ms is None
