"""The pace: what a run costs, and that no request shares a run that would change its answer."""

import numpy as np
import pytest

from daemon.serving import pace
from daemon.serving.pace import PAYS, TRIAL_S, measure, proven
from daemon.serving.slot import build

ROWS = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)
WEIGHTS = np.random.default_rng(1).normal(size=(5, 3)).astype(np.float32)


class Model:
    """Answers each row by itself; ``spoils`` says for which sizes one bit comes out otherwise."""

    def __init__(self, row_s=0.001, more_s=0.0001, spoils=lambda size: False, where="logits"):
        self.row_s, self.more_s, self.spoils, self.where = row_s, more_s, spoils, where
        self.now, self.sizes = 0.0, []

    def __call__(self, x):
        self.sizes.append(len(x))
        self.now += self.row_s + (len(x) - 1) * self.more_s
        logits = np.stack([row @ WEIGHTS for row in x])
        embedding = x.copy()
        if self.spoils(len(x)):
            spoilt = logits if self.where == "logits" else embedding
            spoilt[-1, -1] = np.nextafter(spoilt[-1, -1], np.float32(np.inf))
        return logits, embedding


@pytest.fixture
def time_of(monkeypatch):
    """Let a model's own count be the clock."""

    def follow(model):
        monkeypatch.setattr(pace.time, "perf_counter", lambda: model.now)
        return model

    return follow


def test_a_model_that_gains_and_keeps_its_bits_is_batched(time_of):
    model = time_of(Model())
    told = measure(model, ROWS, 8)
    assert told.sizes == frozenset(range(1, 9))
    assert told.batches
    assert told.row_s == pytest.approx(0.001)
    assert told.batch_row_s == pytest.approx(0.0017 / 8)


@pytest.mark.parametrize("where", ["logits", "embedding"])
def test_a_model_whose_batch_answers_differ_is_never_batched(time_of, where):
    model = time_of(Model(spoils=lambda size: size > 1, where=where))
    told = measure(model, ROWS, 8)
    assert told.sizes == frozenset({1})
    assert not told.batches


def test_only_the_sizes_that_keep_their_bits_are_used(time_of):
    model = time_of(Model(spoils=lambda size: size in (3, 8)))
    assert measure(model, ROWS, 8).sizes == frozenset({1, 2, 4, 5, 6, 7})


def test_minus_zero_is_not_zero():
    def run(x):
        answer = np.zeros((len(x), 1), np.float32)
        return (answer if len(x) == 1 else -answer), answer

    assert proven(run, ROWS[:2], [2]) == frozenset({1})


def test_a_model_that_does_not_gain_is_not_even_tried(time_of):
    model = time_of(Model(row_s=0.001, more_s=0.001 * PAYS))
    assert measure(model, ROWS, 8).sizes == frozenset({1})
    assert set(model.sizes) == {1, 8}


def test_where_trying_every_size_takes_long_powers_of_two_are_tried(time_of):
    model = time_of(Model(row_s=TRIAL_S, more_s=TRIAL_S / 100))
    assert measure(model, ROWS, 12).sizes == frozenset({1, 2, 4, 8})


def test_a_model_of_one_row_is_measured_alone(time_of):
    assert measure(time_of(Model()), ROWS, 1).sizes == frozenset({1})


def test_few_rows_are_tried_more_than_once(time_of):
    model = time_of(Model())
    assert measure(model, ROWS[:1], 4).sizes == frozenset({1, 2, 3, 4})
    assert max(model.sizes) == 4


def test_a_real_bundle_keeps_its_bits_in_the_sizes_that_it_names(forge, kit):
    slot = build(forge.state / "blobs", "meter-reader", 1, forge.tiny(width=32).digest, 16)
    x = kit.digits(16)
    alone = np.concatenate([slot.run(x[i : i + 1])[0] for i in range(16)])
    for size in slot.pace.sizes:
        assert slot.run(x[:size])[0].tobytes() == alone[:size].tobytes()
    assert slot.pace.row_s > 0.0


def test_a_mutant_that_skips_the_test_is_caught(time_of, monkeypatch):
    monkeypatch.setattr(pace, "proven", lambda run, x, tried: frozenset({1, *tried}))
    with pytest.raises(AssertionError):
        test_a_model_whose_batch_answers_differ_is_never_batched(time_of, "logits")
