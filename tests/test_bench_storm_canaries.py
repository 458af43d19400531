"""The storm's canaries: a newcomer beside the stable generation is right, and out of its time it is not."""

import contextlib
from pathlib import Path

import pytest

from benchmarks.serving import models, storm
from benchmarks.serving.asks import Form
from benchmarks.serving.lookout import Lookout
from benchmarks.serving.storm import Log, Pilot, misplaced
from benchmarks.serving.witness import Case, Tally
from policies.wire import digest_bytes
from tests.test_bench_storm import answer, stub


@pytest.fixture(scope="module")
def case() -> Case:
    return Case.of([models.make_bundle("mlp", seed) for seed in range(2)], (0, 1))


def looked(case: Case, generations: list[int]) -> Tally:
    """Let a witness be answered by one generation after the other, on eight connections."""

    def said(_request: bytes, number: int) -> bytes:
        return answer(case, 0, generations[number % len(generations)], Form.BINARY)

    one = Case(case.images[:1], case.logits[:, :1])
    with (
        stub(said) as (host, port),
        contextlib.closing(Lookout(f"{host}:{port}", Form.BINARY, one)) as lookout,
    ):
        return lookout.run(120)


def test_two_generations_side_by_side_are_right_and_three_are_not(case: Case) -> None:
    assert (looked(case, [3, 3, 4]).right, looked(case, [3, 3, 4]).wrong) == (120, 0)
    tally = looked(case, [3, 3, 5])
    assert tally.wrong > 0
    assert tally.examples[0] == "generation 3 after 4"


def test_a_canary_that_answers_when_it_was_taken_away_is_misplaced() -> None:
    log = Log(
        ordered={1: 0.0, 2: 2.0, 3: 4.0},
        confirmed={1: 1.0, 3: 5.0},
        dismissed={2: 3.0},
    )
    seen = {1: 0.5, 2: 2.1, 3: 4.1}
    assert misplaced(Tally(last_asked={1: 4.9, 2: 2.9, 3: 9.0}, first_seen=seen), log) == []
    late = misplaced(Tally(last_asked={1: 5.1, 2: 3.1}, first_seen=seen), log)
    assert late == [
        "generation 1 answered what was asked after 3 was confirmed",
        "generation 2 answered what was asked after it was taken away",
    ]
    early = misplaced(Tally(first_seen={2: 1.9}), log)
    assert early == ["generation 2 answered before its order"]


def test_a_way_back_is_told_from_a_way_on(tmp_path: Path) -> None:
    digests = tuple(digest_bytes(bytes([number])) for number in range(4))
    with contextlib.closing(Pilot(tmp_path, tuple(digests[turn] for turn in storm.TURNS))) as desk:
        found = []
        for generation in range(1, 12):
            desk.previous, desk.stable, desk.generation = generation - 1, generation, generation
            found.append(desk.goes_back())
    # Of 0 1 0 2 3 2 2 1 3 0 3 1, in a ring: to 2 after 3 and to 3 after 0.
    assert [place + 2 for place, back in enumerate(found) if back] == [5, 10]
