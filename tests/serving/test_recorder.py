"""The recorder: every row once, in order, made of many at a time, by whatever thread comes."""

import threading
from dataclasses import replace

import numpy as np
import pytest

from daemon.serving import recorder as module
from daemon.serving.recorder import FEW_ROWS, MOST_KEPT_ROWS, Recorder, Silence, Told
from daemon.serving.sampler import Sampler
from daemon.serving.slot import build
from policies.clock import StandingClock
from policies.telemetry import OUTCOMES, group_key, row_key

MODEL = "meter-reader"


class Sink:
    def __init__(self):
        self.blocks = []

    def append(self, layout, data):
        dtype = np.dtype([(name, code, shape) for name, code, shape in layout.fields])
        self.blocks.append((layout, np.frombuffer(data, dtype)))

    def of(self, kind):
        return [block for layout, block in self.blocks if layout.kind == kind]

    def rows(self, kind="telemetry"):
        return np.concatenate(self.of(kind))


@pytest.fixture
def slot(forge):
    return build(forge.state / "blobs", MODEL, 1, forge.tiny(width=8).digest, 4)


def recorder(sink, sample_bytes=1 << 20):
    return Recorder(sink, Sampler(sample_bytes), StandingClock())


def told(name, rows=1, outcome="ok", latency_ms=1.5, group=None):
    return Told(name, group or name, rows, outcome, latency_ms)


def run(slot, kept, x, *tolds):
    logits, embedding = slot.run(x)
    kept.answered(slot, list(tolds), x, logits, embedding, None)
    return logits, embedding


def test_nothing_is_made_before_somebody_gathers(slot, kit):
    sink = Sink()
    kept = recorder(sink)
    x = kit.digits(3)
    logits, embedding = run(slot, kept, x, told("a", 2, group="g"), told("b"))
    assert sink.blocks == []
    kept.gather()
    (rows,) = sink.of("telemetry")
    assert [bytes(key) for key in rows["row_key"]] == [
        row_key("a", 0, 2),
        row_key("a", 1, 2),
        row_key("b", 0, 1),
    ]
    assert [bytes(key) for key in rows["group_key"]] == [group_key("g"), group_key("g"), group_key("b")]
    np.testing.assert_array_equal(rows["logits"], logits)
    np.testing.assert_array_equal(rows["embedding"], embedding)
    assert rows["batch"].tolist() == [3, 3, 3]
    np.testing.assert_array_equal(sink.rows("samples")["input"], x)
    kept.gather()
    assert len(sink.of("telemetry")) == 1, "what was gathered is gone"


def test_rows_of_which_no_record_can_be_made_are_counted(slot, kit, monkeypatch):
    class Lossy(Sink):
        lost = ()

        def drop(self, kind, rows):
            self.lost += ((kind, rows),)

    sink = Lossy()
    kept = recorder(sink)
    run(slot, kept, kit.digits(2), told("a", 2))
    kept.unanswered(slot, 0, told("b", 3, "error"), 0)
    run(slot, kept, kit.digits(1), told("c"))
    write = kept._write

    def broken(entries):
        return write(entries) if entries[0].x is not None else {}["planted"]

    monkeypatch.setattr(kept, "_write", broken)
    with pytest.raises(KeyError):
        kept.gather()
    assert (len(sink.rows()), sink.lost) == (2, (("telemetry", 4),))
    run(slot, kept, kit.digits(1), told("d"))
    kept.gather()
    assert len(sink.rows()) == 3, "what comes later is recorded"


def test_many_runs_become_one_block_in_order(slot, kit):
    sink = Sink()
    kept = recorder(sink)
    x = kit.digits(20)
    for n in range(20):
        run(slot, kept, x[n : n + 1], told(str(n), latency_ms=n))
    kept.gather()
    (rows,) = sink.of("telemetry")
    assert rows["latency_ms"].tolist() == list(range(20))
    np.testing.assert_array_equal(sink.rows("samples")["input"], x)


def test_refusals_and_generations_stay_in_their_order(slot, kit):
    sink = Sink()
    kept = recorder(sink)
    x = kit.digits(1)
    run(slot, kept, x, told("a"))
    kept.unanswered(slot, 0, told("b", outcome="shed"), 0)
    run(slot.renumbered(2), kept, x, told("c"))
    kept.unanswered(slot, 2, told("d", rows=2, outcome="error"), 2)
    run(slot, kept, x, told("e"))
    kept.gather()
    rows = sink.rows()
    assert [OUTCOMES[code] for code in rows["outcome"]] == ["ok", "shed", "ok", "error", "error", "ok"]
    assert rows["generation"].tolist() == [1, 0, 2, 2, 2, 1]
    assert not rows["logits"][[1, 3, 4]].any()
    assert rows["logits"][[0, 2, 5]].any(axis=1).all()
    assert len(sink.rows("samples")) == 3


def test_before_the_first_model_nothing_is_recorded():
    sink = Sink()
    kept = recorder(sink)
    kept.unanswered(None, 0, told("a", outcome="shed"), 0)
    kept.gather()
    assert sink.blocks == []


def test_what_is_kept_is_bounded_whatever_the_spools_thread_does(slot, kit):
    sink = Sink()
    kept = recorder(sink)
    x = kit.digits(4)
    for n in range(MOST_KEPT_ROWS // 4):
        assert sink.blocks == []
        run(slot, kept, x, told(str(n), 4))
    assert len(sink.rows()) == MOST_KEPT_ROWS
    for n in range(MOST_KEPT_ROWS):
        kept.unanswered(slot, 0, told(str(n), outcome="shed"), 0)
    assert len(sink.rows()) == 2 * MOST_KEPT_ROWS


def test_the_spools_thread_makes_a_few_records_at_a_time_and_all_of_them_in_order(slot, kit):
    sink = Sink()
    kept = recorder(sink)
    x = kit.digits(4)
    for n in range(25):
        run(slot, kept, x, told(str(n), 4, latency_ms=n))
    kept.gather_gently()
    assert [len(block) for block in sink.of("telemetry")] == [FEW_ROWS, FEW_ROWS, FEW_ROWS, 4]
    assert sink.rows()["latency_ms"][::4].tolist() == list(range(25))
    kept.gather_gently()
    assert len(sink.rows()) == 100, "what was gathered is gone"


def test_two_embeddings_are_two_layouts(forge, slot, kit):
    wide = build(forge.state / "blobs", MODEL, 2, forge.tiny(seed=2, width=16).digest, 4)
    sink = Sink()
    kept = recorder(sink)
    for each in (slot, wide, slot):
        run(each, kept, kit.digits(1), told("a"))
    kept.gather()
    assert [block["embedding"].shape[1] for block in sink.of("telemetry")] == [8, 16, 8]


def test_a_new_contract_after_an_unload_is_a_new_layout(forge, slot, kit):
    """Classes and embedding are the same; only the picture is smaller."""
    small = build(forge.state / "blobs", MODEL, 2, forge.tiny(seed=3, width=8, side=14).digest, 4)
    sink = Sink()
    kept = recorder(sink)
    run(slot, kept, kit.digits(1), told("a"))
    run(small, kept, kit.digits(1)[:, :14, :14].copy(), told("b"))
    kept.gather()
    assert [block["input"].shape for block in sink.of("samples")] == [(1, 28, 28), (1, 14, 14)]


def test_samples_stay_within_their_bytes(slot, kit):
    sink = Sink()
    size = np.dtype([("at", "<f8"), ("r", "V16"), ("g", "V8"), ("n", "<u4"), ("i", "u1", (28, 28))]).itemsize
    kept = recorder(sink, sample_bytes=3 * size)
    for n in range(10):
        run(slot, kept, kit.digits(1), told(str(n)))
    kept.gather()
    assert (len(sink.rows()), len(sink.rows("samples"))) == (10, 3)
    none = Sink()
    kept = recorder(none, sample_bytes=0)
    run(slot, kept, kit.digits(1), told("a"))
    kept.gather()
    assert none.of("samples") == []
    assert len(none.rows()) == 1


def test_rows_that_left_early_say_so(slot, kit):
    sink = Sink()
    kept = recorder(sink)
    x = kit.digits(2)
    logits, embedding = slot.run(x)
    kept.answered(slot, [told("a", 2)], x, logits, embedding, np.array([True, False]))
    kept.gather()
    assert sink.rows()["exit"].tolist() == [1, 0]


def threads_record(slot, kit, threads=4, runs=200):
    sink = Sink()
    kept = recorder(sink, sample_bytes=0)
    x = kit.digits(1)
    logits, embedding = slot.run(x)
    stop = threading.Event()

    def gather():
        while not stop.is_set():
            kept.gather()

    def record(number):
        for n in range(runs):
            kept.answered(slot, [told(f"{number}-{n}", latency_ms=n)], x, logits, embedding, None)

    gatherer = threading.Thread(target=gather)
    writers = [threading.Thread(target=record, args=(n,)) for n in range(threads)]
    for each in (gatherer, *writers):
        each.start()
    for each in writers:
        each.join()
    stop.set()
    gatherer.join()
    kept.gather()
    rows = sink.rows()
    keys = {bytes(key) for key in rows["row_key"]}
    assert len(rows) == len(keys) == threads * runs
    place = {bytes(key): n for n, key in enumerate(rows["row_key"])}
    for number in range(threads):
        places = [place[row_key(f"{number}-{n}", 0, 1)] for n in range(runs)]
        assert places == sorted(places), "records of one thread keep their order"


def test_several_threads_lose_and_double_nothing(slot, kit):
    threads_record(slot, kit)


def what_comes_while_it_gathers(slot, kit):
    sink = Sink()
    kept = recorder(sink, sample_bytes=0)
    append, late = sink.append, [told("b", outcome="shed")]

    def busy(layout, data):
        append(layout, data)
        if late:
            kept.unanswered(slot, 0, late.pop(), 0)

    sink.append = busy
    run(slot, kept, kit.digits(1), told("a"))
    kept.gather()
    kept.gather()
    return [OUTCOMES[code] for code in sink.rows()["outcome"]]


def test_what_comes_while_it_gathers_is_kept(slot, kit, monkeypatch):
    assert what_comes_while_it_gathers(slot, kit) == ["ok", "shed"]

    def hasty(self):
        for entry in list(self._kept):
            self._write([entry])
        self._kept, self._kept_rows = [], 0

    monkeypatch.setattr(Recorder, "gather", hasty)
    assert what_comes_while_it_gathers(slot, kit) == ["ok"], "a mutant that forgets it is seen"


def test_silence_says_nothing(slot, kit):
    silence = Silence()
    run(slot, silence, kit.digits(1), told("a"))
    silence.unanswered(slot, 0, told("b"), 0)
    silence.gather_gently()


def plainly(x: np.ndarray) -> np.ndarray:
    """Return the summary, one row after the other and in double precision."""
    axis = -2 if x.ndim == 4 and x.shape[-1] == 3 else -1
    told = []
    for row in x.astype(np.float64):
        steps = np.abs(np.diff(row, axis=axis)) if row.ndim and row.shape[axis] > 1 else np.zeros(1)
        told.append([row.mean(), row.std(), row.min(), row.max(), steps.mean()])
    return np.array(told)


SHAPES = [(3,), (3, 1), (3, 7), (3, 1, 5), (3, 5, 1), (3, 28, 28), (3, 9, 4, 3), (3, 4, 1, 3), (3, 2, 4, 4)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", [np.uint8, np.int32, np.float32, np.float64, np.bool_])
def test_a_summary_is_that_of_each_row(shape, kind):
    x = np.random.default_rng(4).integers(0, 250, shape).astype(kind)
    np.testing.assert_allclose(module.summary(x), plainly(x), rtol=1e-5, atol=1e-5)


def test_extremes_of_an_input_stay_finite():
    edge = np.array([[3.4e38, -3.4e38, 3.4e38]], np.float32)
    assert np.isfinite(module.summary(edge)).all()
    wide = module.summary(np.array([[1e308, -1e308, 1e308], [0.0, 1.0, 2.0]]))
    assert np.isfinite(wide).all()
    assert wide[1].tolist() == module.summary(np.array([[0, 1, 2]], np.uint8))[0].tolist()
    assert module.summary(np.array([[True, False]])).tolist()[0][:1] == [0.5]
    colour = np.zeros((1, 2, 2, 3), np.uint8)
    colour[..., 1] = 255
    assert module.summary(colour)[0, 4] == 0.0, "steps are along the width, not from colour to colour"


def test_a_slot_is_told_apart_by_bytes_and_generation(slot, kit):
    sink = Sink()
    kept = recorder(sink)
    run(slot, kept, kit.digits(1), told("a"))
    run(replace(slot, digest="sha256:" + "0" * 64), kept, kit.digits(1), told("b"))
    kept.gather()
    assert len(sink.of("telemetry")) == 2
