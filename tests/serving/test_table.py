"""Routing: sticky, monotone, and in the asked share."""

from dataclasses import replace

import pytest

from daemon.serving.slot import Slot
from daemon.serving.table import Table

STABLE, NEWCOMER = (Slot(None, generation, "sha256:0", None, 4) for generation in (1, 2))
IDS = [f"request-{i}" for i in range(4000)]


def takers(table: Table) -> set[str]:
    return {id_ for id_ in IDS if table.route(id_) is table.newcomer}


@pytest.mark.parametrize("share", [0.0, 0.05, 0.29, 0.5, 1.0])
def test_the_newcomer_gets_its_share(share):
    table = Table("m", STABLE, NEWCOMER, share)
    # Five standard deviations of a binomial over 4000 ids.
    assert abs(len(takers(table)) / 4000 - share) <= 5 * (share * (1 - share) / 4000) ** 0.5


def test_no_request_moves_back_while_the_share_grows():
    table = Table("m", STABLE, NEWCOMER, 0.0)
    before: set[str] = set()
    for share in (0.01, 0.1, 0.3, 0.31, 0.9, 1.0):
        now = takers(replace(table, share=share))
        assert before <= now
        before = now
    # Negative control: with another salt for each share, requests do move back.
    other = takers(replace(table, newcomer=replace(NEWCOMER, generation=3), share=0.3))
    assert not takers(replace(table, share=0.1)) <= other


def test_nobody_answers_without_a_stable_slot():
    assert Table("m", None, NEWCOMER, 1.0).route("a") is None


def test_a_pinned_version_is_served_only_with_traffic():
    staged = Table("m", STABLE, NEWCOMER, 0.0, previous=replace(STABLE, generation=9))
    assert staged.version("1") is STABLE
    assert [staged.version(v) for v in ("2", "9", "01", "1 ", "")] == [None] * 5
    assert replace(staged, share=0.01).version("2") is NEWCOMER
