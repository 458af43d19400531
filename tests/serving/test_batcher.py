"""The batcher: one run for a turn's requests, one table a batch, and failures that stay alone."""

import asyncio
from dataclasses import replace

import numpy as np
import pytest

from daemon.serving.ask import Ask
from daemon.serving.batcher import Batcher
from daemon.serving.metrics import ServeMetrics
from daemon.serving.recorder import Recorder
from daemon.serving.refusals import Busy, ModelFailed, NotReady, Unknown
from daemon.serving.sampler import Sampler
from daemon.serving.slot import build
from daemon.serving.spool import Layout
from daemon.serving.table import Table
from policies.clock import StandingClock


class Session:
    """Passes on to a real session; counts batches, and fails on a poisoned row."""

    def __init__(self, session):
        self.session, self.sizes, self.nan = session, [], False

    def run(self, names, feeds):
        (x,) = feeds.values()
        self.sizes.append(len(x))
        if (x[:, 0, 0] == 99).any():
            raise RuntimeError("poisoned")
        logits, embedding = self.session.run(names, feeds)
        return [np.full_like(logits, np.nan) if self.nan else logits, embedding]


class Sink:
    def __init__(self):
        self.blocks = []

    def append(self, layout: Layout, data: bytes):
        dtype = np.dtype([(name, code, shape) for name, code, shape in layout.fields])
        self.blocks.append((layout.kind, np.frombuffer(data, dtype)))

    def telemetry(self):
        return [block for kind, block in self.blocks if kind == "telemetry"]

    def samples(self):
        return [block for kind, block in self.blocks if kind == "samples"]


@pytest.fixture
def rig(forge):
    tiny = forge.tiny()
    slot = build(forge.state / "blobs", "meter-reader", 1, tiny.digest, 4)
    session = Session(slot.session)
    rig = type("Rig", (), {})()
    rig.tiny, rig.session, rig.sink = tiny, session, Sink()
    rig.slot = replace(slot, session=session)
    rig.table = Table("meter-reader", rig.slot)
    rig.metrics = ServeMetrics("meter-reader", "0")
    recorder = Recorder(rig.sink, Sampler(1 << 20), StandingClock())
    rig.batcher = Batcher(
        lambda: rig.table, recorder, rig.metrics, StandingClock(), max_batch=4, max_waiting=8
    )
    return rig


def ask(name, value=0, rows=1, version=None):
    x = np.full((rows, 28, 28), value, np.uint8)
    return Ask(name, name, x, {"logits": False}, version)


def answers(rig, *asks):
    async def run():
        return await asyncio.gather(*(rig.batcher.answer(a, 0.0) for a in asks), return_exceptions=True)

    return asyncio.run(run())


def test_requests_of_one_turn_are_one_run(rig):
    came = answers(rig, *(ask(str(i), i) for i in range(3)))
    assert rig.session.sizes == [3]
    for i, answer in enumerate(came):
        wanted, _ = rig.tiny.expected(np.full((1, 28, 28), i, np.uint8))
        np.testing.assert_allclose(answer.logits, wanted, atol=1e-4)
    (block,) = rig.sink.telemetry()
    assert block["batch"].tolist() == [3, 3, 3]
    assert block["summary"][:, 0].tolist() == [0.0, 1.0, 2.0]


def test_batches_are_capped_and_requests_stay_whole(rig):
    answers(rig, ask("a", rows=3), ask("b", rows=2), ask("c", rows=2), ask("d"))
    assert rig.session.sizes == [3, 4, 1]


def test_a_poisoned_request_fails_alone(rig):
    good, bad, fine = answers(rig, ask("a"), ask("b", 99), ask("c"))
    assert isinstance(bad, ModelFailed)
    assert (good.generation, fine.generation) == (1, 1)
    outcomes = {bytes(r["row_key"]): int(r["outcome"]) for block in rig.sink.telemetry() for r in block}
    assert sorted(outcomes.values()) == [0, 0, 2]
    assert sum(len(block) for block in rig.sink.samples()) == 2


def test_an_answer_that_is_not_finite_is_an_error(rig):
    rig.session.nan = True
    (bad,) = answers(rig, ask("a"))
    assert isinstance(bad, ModelFailed)
    assert rig.sink.telemetry()[0]["outcome"].tolist() == [2]
    rig.session.nan = False
    (good,) = answers(rig, ask("a"))
    assert np.isfinite(good.logits).all()


def test_newcomer_and_stable_run_apart(rig):
    rig.table = Table("meter-reader", rig.slot, rig.slot.renumbered(2), 0.5)
    came = answers(rig, *(ask(f"r{i}") for i in range(8)))
    generations = {answer.generation for answer in came}
    assert generations == {1, 2}
    assert {answer.generation == (rig.table.route(f"r{i}").generation) for i, answer in enumerate(came)} == {
        True
    }


def test_a_table_that_changes_in_between_is_answered_honestly(rig):
    rig.table = Table("meter-reader")
    gone, pinned = answers(rig, ask("a"), ask("b", version="1"))
    assert isinstance(gone, NotReady)
    assert isinstance(pinned, Unknown)


def test_too_many_at_once_are_turned_away(rig):
    came = answers(rig, *(ask(str(i)) for i in range(10)))
    assert [isinstance(answer, Busy) for answer in came] == [False] * 8 + [True] * 2


def test_a_client_that_left_does_not_hurt_the_others(rig):
    async def run():
        gone = asyncio.ensure_future(rig.batcher.answer(ask("a"), 0.0))
        stays = asyncio.ensure_future(rig.batcher.answer(ask("b"), 0.0))
        await asyncio.sleep(0)
        gone.cancel()
        return (await asyncio.gather(gone, stays, return_exceptions=True))[1]

    assert asyncio.run(run()).generation == 1
