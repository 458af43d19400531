import numpy as np
import pytest

from monitors import bootstrap, channels, cusum
from monitors.channels import Channels
from monitors.cusum import Cusum
from monitors.drift import Drift, check_support
from monitors.spool import record_dtype
from policies.errors import PolicyError
from policies.telemetry import telemetry_fields
from policies.terms import Level


def commissioned(post, stream) -> Drift:
    monitor = Drift(post)
    monitor.observe(stream.rows(post.monitoring.drift.min_reference_rows))
    assert monitor.calibrated
    return monitor


def alarms(post, stream, rows: int) -> int:
    """Count alarms in a quiet stream: how often the level becomes alarm."""
    monitor, count, before = commissioned(post, stream), 0, Level.QUIET
    for _ in range(rows // 50):
        monitor.observe(stream.rows(50))
        level = monitor.assess(stream.now).level
        count += level is Level.ALARM and before is not Level.ALARM
        before = level
    return count


def delay(monitor, stream) -> int:
    """Return the rows until an alarm; fails after 1000."""
    for row in range(1, 1001):
        monitor.observe(stream.rows(1))
        if monitor.assess(stream.now).level is Level.ALARM:
            return row
    raise AssertionError("expected an alarm within 1000 rows, got none")


# -- the reference ----------------------------------------------------------------------------------------


def test_it_says_how_far_the_reference_is(post, stream):
    monitor = Drift(post)
    monitor.observe(stream.rows(600))
    signal = monitor.assess(stream.now)
    assert (signal.level, signal.reason) == (Level.UNKNOWN, "collecting reference 600 of 1000")
    assert (signal.facts["reference_rows"], signal.facts["reference_needed"]) == (600.0, 1000.0)
    monitor.observe(stream.rows(400))
    assert monitor.assess(stream.now).reason == "the reference is full, no row came since"
    monitor.observe(stream.rows(1))
    signal = monitor.assess(stream.now)
    assert (signal.level, signal.n) == (Level.QUIET, 1)
    assert signal.facts["arl0"] >= 4999.0
    assert signal.facts["arl0"] >= signal.facts["arl0_held_out"] - 1e-6 > 0.0


def test_failed_and_broken_rows_join_no_reference(post, stream):
    monitor = Drift(post)
    monitor.observe(stream.rows(500, outcome="error"))
    broken = stream.rows(500).copy()
    broken["embedding"][:, 3] = np.inf
    monitor.observe(broken)
    assert monitor.reference_rows == 0
    assert monitor.assess(stream.now).facts["unusable_rows"] == 1000.0


def test_a_model_that_only_fails_is_unknown_not_quiet(post, stream):
    monitor = commissioned(post, stream)
    monitor.observe(stream.rows(500))
    assert monitor.assess(stream.now).level is Level.QUIET
    monitor.observe(stream.rows(150, outcome="timeout"))
    signal = monitor.assess(stream.now)
    assert signal.level is Level.UNKNOWN
    assert signal.reason == "150 of the latest 200 rows failed or are not finite"


def test_requests_that_were_wrong_themselves_do_not_blind_it(post, stream):
    monitor = commissioned(post, stream)
    monitor.observe(stream.rows(50))
    before = monitor.assess(stream.now).level
    monitor.observe(stream.rows(500, outcome="client_error"))
    assert monitor.assess(stream.now).level is before is not Level.UNKNOWN


@pytest.mark.parametrize(
    ("clause", "message"),
    [
        ({"false_alarm_every": 20_001}, r"MP-2.1: expected false_alarm_every <= 20000 .* got 20001"),
        ({"block_rows": 21}, r"MP-2.1: expected min_reference_rows >= 1050 .* got 1000"),
    ],
)
def test_a_promise_without_support_is_refused(posts, clause, message):
    with pytest.raises(PolicyError, match=message):
        Drift(posts(clause))


def test_a_promise_just_supported_is_accepted(posts):
    check_support(posts({"false_alarm_every": 20_000, "block_rows": 20}).monitoring.drift)


# -- detection --------------------------------------------------------------------------------------------


def test_a_shift_is_found_and_named(post, stream):
    monitor = commissioned(post, stream)
    monitor.observe(stream.rows(300))
    stream.shift = 2.0
    began = stream.now
    assert 10 < delay(monitor, stream) < 100
    signal = monitor.assess(stream.now)
    assert signal.score is not None
    assert signal.score >= 1.0
    assert signal.since is not None
    assert began < signal.since <= stream.now
    # The direction of largest variance is the one that was shifted.
    assert signal.reason.startswith("embedding.0 ")
    assert signal.facts["top_channel.embedding.0"] == pytest.approx(signal.score)


def test_since_is_the_very_row_even_when_the_block_is_long(post, streams):
    singly, at_once = streams(3), streams(3)
    monitors = [commissioned(post, stream) for stream in (singly, at_once)]
    singly.shift = at_once.shift = 2.0
    block = at_once.rows(500)
    monitors[1].observe(block)
    rows = next(i for i in range(1, 500) if _alarmed(monitors[0], block[i - 1 : i]))
    assert monitors[1].assess(2e9).since == block["at"][rows - 1]


def _alarmed(monitor, block) -> bool:
    monitor.observe(block)
    return monitor.assess(2e9).level is Level.ALARM


def rows_to_quiet(post, stream) -> int:
    monitor = commissioned(post, stream)
    stream.shift = 4.0
    monitor.observe(stream.rows(3000))
    assert monitor.assess(stream.now).level is Level.ALARM
    stream.shift = 0.0
    for turn in range(1, 60):
        monitor.observe(stream.rows(20))
        if monitor.assess(stream.now).level is Level.QUIET:
            return 20 * turn
    return 10_000


def test_an_alarm_ends_when_its_cause_ends_however_long_it_lasted(post, stream):
    assert rows_to_quiet(post, stream) < 400


def test_without_the_ceiling_an_alarm_would_outlive_its_cause(post, stream, monkeypatch):
    monkeypatch.setattr(cusum, "CEILING", 1e9)
    assert rows_to_quiet(post, stream) == 10_000


def test_an_alarm_does_not_flicker_between_threshold_and_warning(post, stream):
    monitor = commissioned(post, stream)
    stream.shift = 2.0
    delay(monitor, stream)
    stream.shift = 0.0
    scores = []
    while (signal := monitor.assess(stream.now)).level is Level.ALARM:
        scores.append(signal.score)
        monitor.observe(stream.rows(1))
    assert min(scores) < 1.0
    assert min(scores) >= 0.6 > signal.score


def lone_outlier(post, stream) -> Level:
    monitor = commissioned(post, stream)
    monitor.observe(stream.rows(100))
    block = stream.rows(1).copy()
    block["embedding"] *= 1e6
    block["summary"] = 1e9
    monitor.observe(block)
    return monitor.assess(stream.now).level


def test_one_broken_row_raises_no_alarm(post, stream):
    assert lone_outlier(post, stream) is not Level.ALARM


def test_without_clipping_one_broken_row_would(post, stream, monkeypatch):
    monkeypatch.setattr(channels, "CLIP", np.inf)
    assert lone_outlier(post, stream) is Level.ALARM


# -- false alarms: fixed seeds, bounds wide enough to be honest about 40 expected alarms --------------------

RUNS, ROWS = 20, 10_000  # at one alarm in 5000 rows: 40 expected


def test_quiet_streams_alarm_about_as_often_as_promised(post, streams):
    # Kept on average over references: most keep far more, a few unlucky ones less.
    assert 1 <= sum(alarms(post, streams(100 + run), ROWS) for run in range(RUNS)) <= 40


def test_a_threshold_a_third_too_low_would_alarm_far_more_often(post, streams, monkeypatch):
    # 10 expected of the right one.
    real = bootstrap.Tail.threshold
    monkeypatch.setattr(bootstrap.Tail, "threshold", lambda self, arl0: 0.6 * real(self, arl0))
    assert sum(alarms(post, streams(100 + run), ROWS) for run in range(RUNS // 4)) > 40


def test_correlated_rows_need_blocks(posts, streams):
    blocks, rows = posts({"block_rows": 20}), posts({"block_rows": 1})
    kept = sum(alarms(blocks, streams(200 + run, phi=0.6), 4000) for run in range(5))
    broken = sum(alarms(rows, streams(200 + run, phi=0.6), 4000) for run in range(5))
    # 4 expected when kept.
    assert kept <= 16
    assert broken >= 5 * max(kept, 4)


# -- the parts --------------------------------------------------------------------------------------------


def test_channels_are_standard_on_their_reference(stream):
    block = stream.rows(4000)
    fitted = Channels.fit(block)
    rows = fitted.standardise(block)
    assert rows.shape == (4000, len(fitted.names)) == (4000, 2 + 8 + 1 + 1 + 5 + 4)
    assert np.abs(rows.mean(axis=0)).max() < 0.02
    varied = np.array(fitted.names) != "exit"
    assert np.abs(rows.std(axis=0) - 1.0)[varied].max() < 0.05


def test_the_residual_sees_what_the_components_do_not(stream):
    fitted = Channels.fit(stream.rows(4000))
    block = stream.rows(500).copy()
    block["embedding"][:, -1] += 5.0
    means = dict(zip(fitted.names, fitted.standardise(block).mean(axis=0), strict=True))
    assert means["residual"] > 2.0
    assert max(abs(means[f"embedding.{i}"]) for i in range(8)) < 1.0


def test_a_channel_that_never_varied_shows_any_change(stream):
    block = stream.rows(1000).copy()
    block["summary"][:, 2] = 0.0
    fitted = Channels.fit(block)
    place = fitted.names.index("input.min")
    assert (fitted.standardise(block)[:, place] == 0.0).all()
    block["summary"][:, 2] = 1.0
    assert (fitted.standardise(block)[:, place] == channels.CLIP).all()


def test_a_small_embedding_has_fewer_components(stream):
    block = stream.rows(100)
    narrow = np.zeros(100, dtype=record_dtype(telemetry_fields(classes=4, embedding=2)))
    narrow["logits"] = block["logits"]
    assert len(Channels.fit(narrow).names) == 2 + 2 + 1 + 1 + 5 + 4


def test_cusum_agrees_with_the_textbook_recursion():
    rows = np.random.default_rng(0).normal(size=(200, 3))
    family = Cusum(3, height=1e9, allowance=0.25)
    family.run(rows)
    up = down = np.zeros(3)
    for row in rows:
        up = np.maximum(0.0, up + row - 0.25)
        down = np.maximum(0.0, down - row - 0.25)
    assert np.allclose(family.scores * 1e9, np.stack([up, down]))
