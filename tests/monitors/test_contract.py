"""One battery for every monitor in BUILTIN."""

import itertools

import numpy as np
import pytest

from monitors import BUILTIN
from monitors.contract import Labelled, Monitor, Post
from monitors.spool import Block
from policies.terms import Level

Turn = tuple[Block, np.ndarray]


def turns(stream) -> list[Turn]:
    """A whole life in short turns: reference, quiet, a drift that costs accuracy, and afterwards."""
    told = []
    for turn in range(40):
        stream.shift = 4.0 if 22 <= turn < 32 else 0.0
        stream.wrong = 0.5 if 22 <= turn < 32 else 0.05
        block = stream.rows(100)
        told.append((block, stream.labels(block)))
    return told


def live(monitor: Monitor, life: list[Turn]) -> list:
    signals = []
    for block, labels in life:
        monitor.observe(block)
        if isinstance(monitor, Labelled):
            monitor.label(block["row_key"], labels, float(block["at"][-1]))
        signals.append(monitor.assess(float(block["at"][-1])))
    return signals


def equal(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(one[k].tobytes() == other[k].tobytes() for k in one)


@pytest.fixture(params=sorted(BUILTIN))
def make(request):
    return BUILTIN[request.param]


@pytest.mark.parametrize("cut", [0, 5, 15, 25, 30, 38])
def test_a_restored_monitor_goes_on_as_the_original_would(make, post: Post, stream, cut):
    life = turns(stream)
    original = make(post)
    live(original, life[:cut])
    heir = make(post)
    heir.restore(original.snapshot())
    assert live(heir, life[cut:]) == live(original, life[cut:])
    assert equal(heir.snapshot(), original.snapshot())


@pytest.mark.parametrize("cut", [5, 15, 38])
def test_the_battery_would_notice_a_monitor_that_restores_nothing(make, post: Post, stream, cut):
    life = turns(stream)
    original, mutant = make(post), make(post)
    live(original, life[:cut])
    live(original, life[cut:])
    live(mutant, life[cut:])
    assert not equal(mutant.snapshot(), original.snapshot())


def test_snapshots_hold_no_objects(make, post: Post, stream):
    monitor = make(post)
    live(monitor, turns(stream))
    assert all(not array.dtype.hasobject for array in monitor.snapshot().values())


def test_equal_blocks_and_seeds_give_equal_signals(make, post: Post, streams):
    assert live(make(post), turns(streams(1))) == live(make(post), turns(streams(1)))


def test_the_cutting_into_blocks_changes_no_level(make, post: Post, streams):
    life = turns(streams(1))
    whole = make(post)
    for start in range(0, 40, 10):
        whole.observe(np.concatenate([block for block, _ in life[start : start + 10]]))
        if isinstance(whole, Labelled):
            for block, labels in life[start : start + 10]:
                whole.label(block["row_key"], labels, float(block["at"][-1]))
    one, other = whole.assess(2e9), live(make(post), life)[-1]
    assert one.level is other.level
    assert one.score == pytest.approx(other.score)


def test_blocks_are_not_changed(make, post: Post, stream):
    life = turns(stream)
    before = [block.tobytes() for block, _ in life]
    assert not life[0][0].flags.writeable
    live(make(post), life)
    assert [block.tobytes() for block, _ in life] == before


def test_assessing_changes_nothing(make, post: Post, stream):
    monitor = make(post)
    live(monitor, turns(stream)[:25])
    before = monitor.snapshot()
    assert monitor.assess(2e9) == monitor.assess(2e9)
    assert equal(before, monitor.snapshot())


def test_nothing_and_too_little_are_unknown(make, post: Post, stream):
    monitor = make(post)
    assert monitor.assess(2e9).level is Level.UNKNOWN
    monitor.observe(stream.rows(0))
    monitor.observe(stream.rows(60))
    signal = monitor.assess(2e9)
    assert (signal.level, signal.score, signal.since) == (Level.UNKNOWN, None, None)
    assert signal.monitor == monitor.name


def test_garbage_is_unknown(make, post: Post, stream):
    monitor = make(post)
    for _ in range(20):
        block = stream.rows(100).copy()
        for field in ("logits", "embedding", "summary", "latency_ms"):
            block[field] = np.nan
        live(monitor, [(block, stream.labels(block))])
    assert monitor.assess(2e9).level is Level.UNKNOWN


def test_a_life_is_quiet_then_alarming_only_where_it_should_be(make, post: Post, stream):
    levels = [signal.level for signal in live(make(post), turns(stream))]
    name = make.name
    assert Level.ALARM not in levels[:22]
    assert (Level.ALARM in levels[22:]) == (name != "latency")
    assert Level.QUIET in levels[11:22]


def test_since_is_the_past_and_stays_while_the_level_stays(make, post: Post, stream):
    signals = live(make(post), turns(stream))
    for before, after in itertools.pairwise(signals):
        if after.since is not None:
            assert after.since <= after.at
            if before.level is after.level and before.since is not None:
                assert after.since >= before.since
