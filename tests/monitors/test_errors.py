import numpy as np
import pytest

from monitors import errors
from monitors.awaiting import Awaiting
from monitors.errors import Errors, wilson
from policies.terms import Level


def feed(monitor, stream, rows, share=1.0):
    """Rows, and labels for a share of them, in turns of 50."""
    for _ in range(rows // 50):
        block = stream.rows(50)
        monitor.observe(block)
        labelled = block[: round(50 * share)]
        monitor.label(labelled["row_key"], stream.labels(labelled), stream.now)
    return monitor.assess(stream.now)


@pytest.fixture
def monitor(post, stream):
    fresh = Errors(post)
    assert feed(fresh, stream, 1000).level is Level.QUIET
    return fresh


def test_before_a_thousand_labels_it_knows_nothing(post, stream):
    signal = feed(Errors(post), stream, 950)
    assert (signal.level, signal.reason) == (Level.UNKNOWN, "collecting labels 950 of 1000")
    assert "loss_lower" not in signal.facts


def test_a_rise_of_errors_is_an_alarm_with_its_loss(monitor, stream):
    stream.wrong = 0.4
    began = stream.now
    signal = feed(monitor, stream, 600)
    assert signal.level is Level.ALARM
    assert signal.score is not None
    assert signal.score >= 1.0
    assert began < signal.since < began + 3.0
    # 0.95 became 0.60 (n=300, 99 %): the loss is at least 0.2 and at most the true 0.35.
    assert 0.2 < signal.facts["loss_lower"] < 0.35
    assert signal.facts["accuracy_low"] < 0.6 < signal.facts["accuracy_high"]
    assert signal.facts["reference_accuracy"] == pytest.approx(0.95, abs=0.02)


def test_no_rise_is_no_alarm(monitor, stream):
    for _ in range(40):
        assert feed(monitor, stream, 250).level in (Level.QUIET, Level.WARNING)
    assert feed(monitor, stream, 250).facts["loss_lower"] == 0.0


def test_fewer_errors_are_no_alarm(post, stream):
    stream.wrong = 0.4
    monitor = Errors(post)
    feed(monitor, stream, 1000)
    stream.wrong = 0.0
    for _ in range(20):
        assert feed(monitor, stream, 100).level is Level.QUIET


def test_a_detector_blind_to_direction_would_alarm_at_an_improvement(post, stream, monkeypatch):
    real = Errors._adwin_step
    monkeypatch.setattr(
        Errors, "_adwin_step", lambda self, error: real(self, error) or self._adwin.drift_detected
    )
    test = Errors(post)
    stream.wrong = 0.4
    feed(test, stream, 1000)
    stream.wrong = 0.0
    assert Level.ALARM in [feed(test, stream, 100).level for _ in range(20)]


def test_an_alarm_stays_while_accuracy_is_lost_and_ends_after_it_is_back(monitor, stream):
    stream.wrong = 0.4
    feed(monitor, stream, 600)
    assert all(feed(monitor, stream, 200).level is Level.ALARM for _ in range(20))
    stream.wrong = 0.05
    assert feed(monitor, stream, 700).level is Level.QUIET


def test_a_loss_that_adwin_missed_is_a_warning(post, stream, monkeypatch):
    monkeypatch.setattr(Errors, "_adwin_step", lambda self, error: False)
    blind = Errors(post)
    feed(blind, stream, 1000)
    stream.wrong = 0.4
    assert feed(blind, stream, 600).level is Level.WARNING


def test_labels_may_come_late_and_out_of_order(post, stream):
    monitor, early = Errors(post), []
    for _ in range(30):
        block = stream.rows(50)
        monitor.observe(block)
        early.append((block, stream.labels(block)))
    for block, labels in reversed(early):
        monitor.label(block["row_key"], labels, stream.now)
    signal = monitor.assess(stream.now)
    assert signal.facts["labels"] == 1500.0
    assert signal.facts["unknown_labels"] == 0.0


def test_labels_may_come_before_their_rows(post, stream):
    monitor = Errors(post)
    block = stream.rows(1200)
    monitor.label(block["row_key"], stream.labels(block), stream.now)
    assert monitor.assess(stream.now).facts["unknown_labels"] == 1200.0
    monitor.observe(block)
    signal = monitor.assess(stream.now)
    assert signal.facts["unknown_labels"] == 0.0
    assert signal.level is Level.QUIET


def test_a_label_counts_once(post, stream):
    monitor = Errors(post)
    block = stream.rows(10)
    monitor.observe(block)
    for _ in range(3):
        monitor.label(block["row_key"], stream.labels(block), stream.now)
    signal = monitor.assess(stream.now)
    assert (signal.facts["labels"], signal.facts["unknown_labels"]) == (10.0, 10.0)


def test_too_few_labels_are_a_warning_that_ends(monitor, stream):
    signal = feed(monitor, stream, 3000, share=0.2)
    assert signal.level is Level.WARNING
    assert "labels for 20 % of rows, expected 50 %" in signal.reason
    assert signal.facts["label_share"] == pytest.approx(0.2, abs=0.01)
    assert feed(monitor, stream, 3000).level is Level.QUIET


def test_no_labels_at_all_are_a_warning_too(monitor, stream):
    for _ in range(60):
        monitor.observe(stream.rows(50))
    assert monitor.assess(stream.now).level is Level.WARNING


def test_a_backlog_of_rows_before_its_labels_is_no_lack_of_labels(monitor, stream):
    blocks = [stream.rows(50) for _ in range(60)]
    monitor.observe(np.concatenate(blocks))
    for block in blocks:
        monitor.label(block["row_key"], stream.labels(block), stream.now)
    assert feed(monitor, stream, 50).level is Level.QUIET


def test_adwins_memory_is_bounded_and_a_restored_one_agrees(post, stream, monkeypatch):
    monkeypatch.setattr(errors, "_HISTORY", 400)
    original, heir = Errors(post), Errors(post)
    feed(original, stream, 1350)
    assert len(original.snapshot()["history"]) <= 400
    heir.restore(original.snapshot())
    for _ in range(30):
        block = stream.rows(50)
        labels = stream.labels(block)
        for monitor in (original, heir):
            monitor.observe(block)
            monitor.label(block["row_key"], labels, stream.now)
        assert original._adwin.width == heir._adwin.width
        assert original._adwin.estimation == heir._adwin.estimation


def test_the_join_is_bounded_on_both_sides():
    join = Awaiting(max_rows=3, max_labels=2)
    keys = np.array([bytes([i]) * 16 for i in range(1, 9)], dtype="V16")
    assert list(join.predict(keys[:5], np.arange(5))) == []
    # Rows 0 and 1 were the oldest and went; their labels wait in vain.
    assert list(join.label(keys[:5], np.arange(5))) == [(2, 2), (3, 3), (4, 4)]
    assert (join.waiting_labels, join.unknown_labels) == (2, 0)
    assert list(join.label(keys[5:8], np.arange(3))) == []
    assert (join.waiting_labels, join.unknown_labels) == (2, 3)


def test_wilson_refuses_nonsense():
    for right, total in ((-1, 5), (6, 5), (0, 0)):
        with pytest.raises(ValueError, match="expected 0 <= right <= total"):
            wilson(right, total, 0.9)
