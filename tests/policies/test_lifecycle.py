"""The state machine, exhausted."""

import itertools

import pytest

from policies.errors import IllegalMove
from policies.lifecycle import MOVES, OPEN, Stage, move

MUST_PASS = (Stage.CLEARED, Stage.APPROVED, Stage.PROBATION)


def roads(start: Stage, to: Stage, moves: dict[Stage, frozenset[Stage]]) -> list[tuple[Stage, ...]]:
    """Return every road from ``start`` to ``to`` that visits no stage twice."""
    found: list[tuple[Stage, ...]] = []
    stack: list[tuple[Stage, ...]] = [(start,)]
    while stack:
        road = stack.pop()
        if road[-1] is to:
            found.append(road)
            continue
        stack += [(*road, step) for step in moves[road[-1]] if step not in road]
    return found


def unguarded(moves: dict[Stage, frozenset[Stage]]) -> list[tuple[Stage, ...]]:
    return [r for r in roads(Stage.PROPOSED, Stage.LIVE, moves) if not set(MUST_PASS) <= set(r)]


def test_every_road_to_live_passes_clearance_approval_and_probation() -> None:
    assert roads(Stage.PROPOSED, Stage.LIVE, MOVES)
    assert unguarded(MOVES) == []


@pytest.mark.parametrize(
    ("start", "to"),
    [
        (Stage.EXPORTED, Stage.APPROVED),
        (Stage.CLEARED, Stage.STAGED),
        (Stage.STAGED, Stage.LIVE),
        (Stage.PROPOSED, Stage.LIVE),
    ],
)
def test_a_short_cut_would_be_noticed(start: Stage, to: Stage) -> None:
    mutant = MOVES | {start: MOVES[start] | {to}}
    assert unguarded(mutant)


@pytest.mark.parametrize(("stage", "to"), list(itertools.product(Stage, Stage)))
def test_a_move_is_legal_exactly_when_the_table_has_it(stage: Stage, to: Stage) -> None:
    if to in MOVES[stage]:
        assert move(stage, to) is to
    else:
        with pytest.raises(IllegalMove, match=f"expected a move from {stage}"):
            move(stage, to)


def test_a_retired_generation_comes_back_only_through_probation() -> None:
    for road in roads(Stage.RETIRED, Stage.LIVE, MOVES):
        assert Stage.PROBATION in road


def test_every_stage_is_open_or_served_or_an_end() -> None:
    ends = {stage for stage in Stage if not MOVES[stage]}
    assert OPEN | {Stage.LIVE, Stage.RETIRED} | ends == set(Stage)
    assert not OPEN & ends


def test_before_traffic_a_candidate_can_always_end() -> None:
    for stage in OPEN - {Stage.PROBATION}:
        assert {Stage.REJECTED, Stage.EXPIRED, Stage.ABANDONED} <= MOVES[stage]
    assert Stage.ABANDONED not in MOVES[Stage.PROBATION]
