import numpy as np
import pytest

from monitors.latency import Latency, burn_rate
from policies.terms import Level


def rows(stream, n, slow_share, outcome="ok"):
    block = stream.rows(n, outcome=outcome).copy()
    block["latency_ms"] = 5.0
    block["latency_ms"][: round(n * slow_share)] = 40.0
    return block


@pytest.mark.parametrize(
    ("slow_share", "level"),
    [
        (0.0, Level.QUIET),
        (0.01, Level.QUIET),
        (0.02, Level.WARNING),
        (0.09, Level.WARNING),
        (0.1, Level.ALARM),
    ],
)
def test_the_level_follows_the_burn(post, stream, slow_share, level):
    monitor = Latency(post)
    monitor.observe(rows(stream, 1000, slow_share))
    signal = monitor.assess(stream.now)
    assert signal.level is level
    assert signal.facts["burn"] == pytest.approx(slow_share / 0.01)
    assert signal.score == pytest.approx(slow_share / 0.1)


def test_too_few_rows_are_unknown(post, stream):
    monitor = Latency(post)
    monitor.observe(rows(stream, 99, 1.0))
    assert monitor.assess(stream.now).reason == "collecting latencies 99 of 100"
    monitor.observe(rows(stream, 1, 1.0))
    assert monitor.assess(stream.now).level is Level.ALARM


def test_only_the_window_counts(post, stream):
    monitor = Latency(post)
    monitor.observe(rows(stream, 1000, 1.0))
    began = stream.now
    monitor.observe(rows(stream, 1000, 0.0))
    signal = monitor.assess(stream.now)
    assert (signal.level, signal.n) == (Level.QUIET, 1000)
    assert signal.since > began


def test_a_time_out_is_slow_whatever_it_took(post, stream):
    monitor = Latency(post)
    monitor.observe(rows(stream, 500, 0.0))
    monitor.observe(rows(stream, 100, 0.0, outcome="timeout"))
    assert monitor.assess(stream.now).level is Level.ALARM


def test_other_failures_say_nothing_of_speed(post, stream):
    monitor = Latency(post)
    monitor.observe(rows(stream, 500, 0.0))
    for outcome in ("error", "shed", "client_error"):
        monitor.observe(rows(stream, 500, 1.0, outcome=outcome))
    signal = monitor.assess(stream.now)
    assert (signal.level, signal.n) == (Level.QUIET, 500)


def test_percentiles_are_those_of_the_window(post, stream):
    monitor = Latency(post)
    block = stream.rows(1000).copy()
    block["latency_ms"] = np.arange(1000) / 100
    monitor.observe(block)
    facts = monitor.assess(stream.now).facts
    assert (facts["p50_ms"], facts["p99_ms"]) == pytest.approx((4.995, 9.8901))


@pytest.mark.parametrize(("total", "budget"), [(0, 0.1), (5, 0.0), (5, 1.0)])
def test_burn_rate_refuses_nonsense(total, budget):
    with pytest.raises(ValueError, match="expected total > 0"):
        burn_rate(0, total, budget)
