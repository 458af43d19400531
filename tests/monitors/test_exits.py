"""Rows that left the network early: they have an answer, and no embedding."""

import numpy as np
import pytest

from monitors.bootstrap import simulate
from monitors.channels import Channels
from monitors.cusum import Cusum
from monitors.drift import Drift
from monitors.errors import REFERENCE_LABELS, Errors
from monitors.tally import Tally
from policies.terms import Level

SHARE = 0.7


@pytest.fixture
def post(posts):
    """A post whose reference has enough rows that stay, in each of its halves."""
    return posts({"min_reference_rows": 3000})


def thinned(stream, n: int, share: float = SHARE, said: float = 0.0):
    """Return rows of which a share left early; ``said`` stands where they have no embedding."""
    block = stream.rows(n).copy()
    gone = stream.rng.random(n) < share
    block["exit"] = gone
    block["embedding"][gone] = said
    block.setflags(write=False)
    return block


def commissioned(post, stream, **how) -> Drift:
    monitor = Drift(post)
    monitor.observe(thinned(stream, post.monitoring.drift.min_reference_rows, **how))
    assert monitor.calibrated
    return monitor


def delay(monitor: Drift, stream, most: int, spoil=lambda block: block, **how) -> int:
    """Return the rows until an alarm, or ``most``."""
    for row in range(0, most, 10):
        monitor.observe(spoil(thinned(stream, 10, **how)))
        if monitor.assess(stream.now).level is Level.ALARM:
            return row
    return most


def unmarked(block):
    """Return the rows as a monitor would take them that knows of no exits: zeros are embeddings."""
    told = block.copy()
    told["exit"] = 0
    return told


# -- what a row that left says -------------------------------------------------------------------------------


def test_what_stands_in_place_of_an_embedding_is_never_read(post, streams):
    told = []
    for said in (0.0, 77.0):
        stream = streams(3)
        monitor = commissioned(post, stream, said=said)
        monitor.observe(thinned(stream, 400, said=said))
        told.append(monitor.assess(stream.now))
    assert told[0] == told[1]


def test_a_shift_of_the_rows_that_stay_is_found_as_such(post, streams):
    stream = streams(4)
    monitor = commissioned(post, stream)
    monitor.observe(thinned(stream, 300))
    stream.shift = 2.0
    assert delay(monitor, stream, 600) < 300
    assert monitor.assess(stream.now).reason.startswith("embedding.0 ")


def test_other_shares_of_rows_that_leave_are_told_by_name(post, streams):
    stream = streams(5)
    monitor = commissioned(post, stream)
    monitor.observe(thinned(stream, 300))
    assert delay(monitor, stream, 600, share=0.2) < 300
    assert monitor.assess(stream.now).reason.startswith("exit ")


def test_zeros_taken_for_embeddings_would_blame_the_embeddings(post, streams):
    stream = streams(5)
    mutant = Drift(post)
    mutant.observe(unmarked(thinned(stream, post.monitoring.drift.min_reference_rows)))
    mutant.observe(unmarked(thinned(stream, 300)))
    assert delay(mutant, stream, 600, unmarked, share=0.2) < 300
    assert mutant.assess(stream.now).reason.startswith("residual ")


def test_a_quiet_stream_with_exits_keeps_the_promise(post, streams):
    count = 0
    for seed in range(10, 15):
        stream = streams(seed)
        monitor, before = commissioned(post, stream), Level.QUIET
        for _ in range(80):
            monitor.observe(thinned(stream, 50))
            level = monitor.assess(stream.now).level
            count += level is Level.ALARM and before is not Level.ALARM
            before = level
    # One in 5000 rows is allowed, 20000 rows were seen: 4 are expected.
    assert count <= 12


def test_too_few_rows_that_stay_say_nothing_of_embeddings(stream):
    reference = thinned(stream, 1000, share=0.8)
    fitted = Channels.fit(reference)
    embedded = [name.startswith("embedding.") or name == "residual" for name in fitted.names]
    rows = fitted.standardise(thinned(stream, 500, share=0.5))
    assert np.isnan(rows[:, embedded]).all()
    assert np.isfinite(rows[:, ~np.array(embedded)]).all()
    enough = Channels.fit(thinned(stream, 2000)).standardise(thinned(stream, 500, share=0.5))
    assert 0.3 < np.isnan(enough[:, embedded]).mean() < 0.7


def test_a_restored_monitor_goes_on_with_silent_channels(post, streams):
    stream = streams(6)
    monitor = commissioned(post, stream, share=0.99)
    again = Drift(post)
    again.restore(monitor.snapshot())
    block = thinned(stream, 200, share=0.99)
    monitor.observe(block)
    again.observe(block)
    assert again.assess(stream.now) == monitor.assess(stream.now)


# -- labels --------------------------------------------------------------------------------------------------


def test_the_answers_of_rows_that_left_count_like_any_others(post, stream):
    errors, tally = Errors(post), Tally(0.0)
    block = thinned(stream, REFERENCE_LABELS + 200)
    for monitor in (errors, tally):
        monitor.observe(block)
    labels = stream.labels(block)
    errors.label(block["row_key"], labels, stream.now)
    tally.label(block["row_key"], labels)
    assert errors.assess(stream.now).level is not Level.UNKNOWN
    arm = tally.arm(3)
    assert (arm.requests, arm.labels, arm.errors) == (len(block), len(block), 0)


# -- the parts -----------------------------------------------------------------------------------------------


def test_a_silent_row_leaves_a_cusum_where_it_was():
    rng = np.random.default_rng(0)
    spoken = rng.normal(0.3, 1.0, (60, 2))
    silent = np.full((120, 2), np.nan)
    silent[::2] = spoken
    one, other = Cusum(2, height=50.0, allowance=0.25), Cusum(2, height=50.0, allowance=0.25)
    one.run(spoken)
    other.run(silent)
    assert (one.scores == other.scores).all()


@pytest.mark.parametrize("imprecise", [None, 2000])
def test_a_bootstrap_hears_a_channel_as_seldom_as_it_speaks(imprecise: int | None):
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(2000, 1))
    seldom = rows.copy()
    seldom[rng.random(2000) < 0.8] = np.nan

    def height(of: np.ndarray) -> float:
        maxima = simulate(of, 0.25, 20, 250, np.random.default_rng(2), imprecise)
        return float(np.quantile(maxima, 0.9))

    assert height(seldom) < height(rows)
    # Zeros in place of silence would wear the statistic down between two words.
    assert height(np.nan_to_num(seldom, nan=0.0)) < height(seldom)


def test_a_bootstrap_with_nothing_silent_is_the_same_to_the_bit():
    rows = np.random.default_rng(3).normal(size=(500, 2))
    mute = np.column_stack([rows, np.full(500, np.nan)])
    one = simulate(rows, 0.25, 20, 50, np.random.default_rng(4), 500)
    other = simulate(mute, 0.25, 20, 50, np.random.default_rng(4), 500)
    assert (one == other).all()
