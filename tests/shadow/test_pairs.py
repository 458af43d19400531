"""The two halves of the spool, joined: what becomes a row, and what never does."""

import numpy as np
import pytest

from daemon.shadow import pairs as room
from daemon.shadow.pairs import Pairs
from tests.shadow.conftest import Hand, answers


def read(hand: Hand, generation: int = 1, since: float = 0.0) -> list[room.Pair]:
    return Pairs(hand.folder, generation, since).read()


def test_a_row_has_its_input_and_what_its_client_was_told(hand: Hand) -> None:
    x = hand.rows(30, turned=1)
    found = read(hand)
    assert [pair.told for pair in found] == answers(x, 1).argmax(axis=1).tolist()
    assert np.array_equal(np.stack([pair.x for pair in found]), x)


def test_the_halves_may_come_in_any_order_and_a_row_is_given_once(hand: Hand) -> None:
    x = np.eye(4, dtype=np.float32)
    hand.told([1, 2], x[:2])
    reader = Pairs(hand.folder, 1, 0.0)
    assert reader.read() == []
    hand.inputs([2, 3], x[1:3])
    assert [pair.told for pair in reader.read()] == [1]
    hand.told([3, 3], x[[2, 2]])
    assert [pair.told for pair in reader.read()] == [2]
    assert reader.read() == []


@pytest.mark.parametrize(
    "facts",
    [{"at": 499.0}, {"generation": 2}],
    ids=["answered before the shadow began", "answered by another generation"],
)
def test_rows_of_another_time_or_generation_are_none(hand: Hand, facts: dict[str, float]) -> None:
    hand.rows(10, **facts)
    assert read(hand, since=500.0) == []
    assert len(read(hand, generation=int(facts.get("generation", 1)))) == 10


@pytest.mark.parametrize("outcome", ["error", "timeout", "not_finite", "shed", "client_error"])
def test_what_was_not_answered_is_nothing_to_agree_with(hand: Hand, outcome: str) -> None:
    x = np.eye(4, dtype=np.float32)
    hand.inputs([1, 2, 3, 4], x)
    hand.told([1, 2, 3, 4], x, outcome=outcome)
    assert read(hand) == []


def test_an_answer_that_is_not_finite_is_nothing_to_agree_with(hand: Hand) -> None:
    x = np.eye(4, dtype=np.float32)
    hand.inputs([1, 2], x[:2])
    hand.told([1, 2], np.array([[np.nan, 0, 0, 0], [0, 1, 0, 0]], np.float32))
    assert [pair.told for pair in read(hand)] == [1]


def test_it_begins_with_the_newest_segment(hand: Hand) -> None:
    hand.rows(10)
    hand.rows(7)
    assert len(read(hand)) == 7


def test_an_empty_or_missing_spool_has_no_rows(hand: Hand) -> None:
    assert read(hand) == []


@pytest.mark.parametrize("bound", ["MOST_WAITING", "MOST_WAITING_BYTES"])
def test_what_waits_is_bounded_and_the_oldest_is_forgotten(
    hand: Hand, monkeypatch: pytest.MonkeyPatch, bound: str
) -> None:
    monkeypatch.setattr(room, bound, 5 if bound == "MOST_WAITING" else 5 * 16)
    x = np.tile(np.eye(4, dtype=np.float32), (5, 1))
    hand.inputs(list(range(20)), x)
    reader = Pairs(hand.folder, 1, 0.0)
    assert reader.read() == []
    hand.told(list(range(20)), x)
    assert len(reader.read()) == 5
    assert len(read(hand)) == 20, "both halves at once: nothing waits"


def test_a_row_does_not_hold_the_block_that_it_came_in(hand: Hand) -> None:
    hand.rows(10)
    assert all(pair.x.base is None for pair in read(hand))
