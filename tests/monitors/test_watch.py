import io

import numpy as np
import pytest

from monitors.tally import Tally
from monitors.watch import Watch
from policies.errors import PermanentError, PolicyError
from policies.terms import Arm, Level


@pytest.fixture
def watch(post):
    return Watch(post.task, post.monitoring, post.generation, post.seed)


def run(watch, stream, rows):
    for _ in range(rows // 100):
        block = stream.rows(100)
        watch.observe(block)
        watch.label(block["row_key"], stream.labels(block), stream.now)
    return {signal.monitor: signal for signal in watch.assess(stream.now)}


def test_all_monitors_speak_and_begin_unknown(watch, stream):
    signals = watch.assess(stream.now)
    assert [signal.monitor for signal in signals] == ["drift", "errors", "latency"]
    assert all(signal.level is Level.UNKNOWN for signal in signals)


def test_commissioning_is_visible(watch, stream):
    run(watch, stream, 900)
    assert (watch.calibrated, watch.reference_rows) == (False, 900)
    signals = run(watch, stream, 300)
    assert (watch.calibrated, watch.reference_rows) == (True, 1000)
    assert all(signal.level in (Level.QUIET, Level.WARNING) for signal in signals.values())


def test_drift_that_costs_accuracy_alarms_both(watch, stream):
    run(watch, stream, 1500)
    stream.shift, stream.wrong = 3.0, 0.4
    signals = run(watch, stream, 600)
    assert (signals["drift"].level, signals["errors"].level) == (Level.ALARM, Level.ALARM)
    assert signals["latency"].level is Level.QUIET


def test_drift_that_costs_nothing_alarms_one(watch, stream):
    run(watch, stream, 1500)
    stream.shift = 3.0
    signals = run(watch, stream, 600)
    assert (signals["drift"].level, signals["errors"].level) == (Level.ALARM, Level.QUIET)


def test_rows_of_other_generations_are_counted_and_not_watched(watch, stream):
    watch.observe(stream.rows(700, generation=2))
    watch.observe(stream.rows(700, generation=0))
    assert (watch.reference_rows, watch.other_rows) == (0, 1400)


def test_a_mixed_block_is_sorted_by_generation(watch, stream):
    block = stream.rows(100).copy()
    block["generation"][::2] = 4
    watch.observe(block)
    assert (watch.reference_rows, watch.other_rows) == (50, 50)


@pytest.mark.parametrize("cut", [0, 600, 1300, 2000])
def test_a_restored_watch_goes_on_as_the_original_would(watch, post, stream, streams, cut):
    run(watch, stream, cut)
    heir = Watch.restore(watch.snapshot(), post.task, post.monitoring)
    assert heir.snapshot() == watch.snapshot()
    assert heir.generation == watch.generation
    tails = []
    for one in (watch, heir):
        later = streams(9)
        run(one, later, 800)
        later.shift, later.wrong = 3.0, 0.5
        tails.append(run(one, later, 900))
    assert tails[0] == tails[1]
    assert heir.snapshot() == watch.snapshot()


def test_a_snapshot_belongs_to_its_clause_and_task(watch, post, posts):
    other = posts({"allowance": 0.5})
    with pytest.raises(PermanentError, match="begin a new watch"):
        Watch.restore(watch.snapshot(), post.task, other.monitoring)
    with pytest.raises(PermanentError, match="begin a new watch"):
        Watch.restore(watch.snapshot(), post.task.model_copy(update={"name": "tea"}), post.monitoring)
    with pytest.raises(PermanentError, match="begin a new watch"):
        Watch.restore(watch.snapshot(), post.task, post.monitoring, factories={})


def damaged(watch) -> list[bytes]:
    whole = watch.snapshot()
    other = io.BytesIO()
    np.savez(other, x=np.zeros(3))
    objects = io.BytesIO()
    np.savez(objects, head=np.array([{}], dtype=object))
    return [b"", b"nonsense", whole[:-200], other.getvalue(), objects.getvalue()]


@pytest.mark.parametrize("place", range(5))
def test_bytes_that_are_no_snapshot_are_refused(watch, post, place):
    with pytest.raises(PermanentError, match="expected a snapshot"):
        Watch.restore(damaged(watch)[place], post.task, post.monitoring)


def test_a_policy_that_cannot_be_supported_is_refused_at_once(posts):
    post = posts({"false_alarm_every": 1_000_000})
    with pytest.raises(PolicyError, match=r"MP-2\.1"):
        Watch(post.task, post.monitoring, 1, 1)


def test_labels_must_match_their_keys(watch, stream):
    with pytest.raises(ValueError, match="a label for each of 5 keys, got 4"):
        watch.label(stream.rows(5)["row_key"], np.zeros(4, np.int64), stream.now)


# -- the tally --------------------------------------------------------------------------------------------


def test_the_tally_counts_each_generation_since_its_moment(stream):
    early = stream.rows(50, generation=1)
    tally = Tally(stream.now + 0.001)
    tally.observe(early)
    for generation, wrong in ((1, 0.0), (2, 1.0)):
        stream.wrong = wrong
        block = stream.rows(100, generation=generation)
        tally.observe(block)
        tally.label(block["row_key"][:40], stream.labels(block)[:40])
    stable, newcomer = tally.arm(1), tally.arm(2)
    assert (stable.requests, stable.errors, stable.labels, stable.correct) == (100, 0, 40, 40)
    assert (newcomer.requests, newcomer.errors, newcomer.labels, newcomer.correct) == (100, 0, 40, 0)
    assert stable.p50_ms is not None
    assert 0.5 < stable.p50_ms < stable.p99_ms < 20.0


def test_the_tally_knows_whose_fault_it_was(stream):
    tally = Tally(0.0)
    for outcome in ("ok", "client_error", "error", "timeout", "shed"):
        tally.observe(stream.rows(10, outcome=outcome))
    broken = stream.rows(10).copy()
    broken["logits"][:4, 0] = np.nan
    tally.observe(broken)
    arm = tally.arm(3)
    assert (arm.requests, arm.errors, arm.not_finite) == (40, 24, 4)
    tally.observe(stream.rows(3, outcome="not_finite"))
    arm = tally.arm(3)
    assert (arm.requests, arm.errors, arm.not_finite) == (43, 27, 7)


def test_a_generation_without_rows_did_nothing():
    assert Tally(0.0).arm(5) == Arm(
        generation=5, requests=0, errors=0, not_finite=0, p50_ms=None, p99_ms=None, labels=0, correct=0
    )


def test_a_tally_of_another_generation_takes_no_label_of_ours(stream):
    tally = Tally(0.0)
    ours, theirs = stream.rows(10, generation=1), stream.rows(10, generation=2)
    tally.observe(np.concatenate([ours, theirs]))
    tally.label(ours["row_key"], stream.labels(ours))
    assert (tally.arm(1).labels, tally.arm(2).labels) == (10, 0)


def test_a_restored_tally_goes_on_where_it_stood(stream):
    tally = Tally(0.0)
    block, late = stream.rows(40), stream.rows(20, generation=2)
    tally.observe(block)
    tally.observe(late)
    tally.observe(stream.rows(5, outcome="error"))
    tally.observe(stream.rows(2, outcome="not_finite"))
    tally.label(block["row_key"][:30], stream.labels(block)[:30])
    again = Tally.restore({name: np.array(array) for name, array in tally.snapshot().items()})
    rest, others = stream.labels(block)[30:], stream.labels(late)
    for each in (tally, again):
        each.label(block["row_key"][30:], rest)
        each.label(late["row_key"], others)
    for generation in (1, 2, 3):
        assert again.arm(generation) == tally.arm(generation)
    assert again.arm(2).labels == 20
    assert sum(again.arm(g).errors for g in (1, 2, 3)) == 7
