"""The engine: one run for a turn's requests, failures that stay alone, a loop that is free."""

import asyncio
import math
import threading
from dataclasses import replace

import numpy as np
import pytest

from daemon.serving.ask import Ask
from daemon.serving.engine import INLINE_S, Engine
from daemon.serving.metrics import ServeMetrics
from daemon.serving.pace import Pace
from daemon.serving.recorder import Recorder
from daemon.serving.refusals import Busy, Late, ModelFailed, NotFinite, NotReady, Unknown
from daemon.serving.sampler import Sampler
from daemon.serving.slot import build
from daemon.serving.spool import Layout
from daemon.serving.table import Table
from policies.clock import StandingClock
from policies.telemetry import OUTCOMES

MODEL = "meter-reader"
QUICK = Pace(row_s=1e-5, batch_row_s=1e-6, sizes=frozenset({1, 2, 3, 4}))
SLOW = Pace(row_s=1.0, batch_row_s=0.1, sizes=frozenset({1, 2, 3, 4}))


class Session:
    """Passes on to a real session; counts batches, fails on a poisoned row, and waits where it is told to."""

    def __init__(self, session):
        self.session, self.sizes, self.threads, self.spoil = session, [], [], None
        self.began, self.go_on = threading.Semaphore(0), threading.Event()
        self.go_on.set()

    def run(self, names, feeds):
        (x,) = feeds.values()
        self.sizes.append(len(x))
        self.threads.append(threading.current_thread())
        self.began.release()
        assert self.go_on.wait(30)
        if (x[:, 0, 0] == 99).any():
            raise RuntimeError("poisoned")
        logits, embedding = self.session.run(names, feeds)
        if self.spoil is not None:
            logits[x[:, 0, 0] == 7] = self.spoil
        return [logits, embedding]


class Sink:
    def __init__(self):
        self.blocks = []

    def append(self, layout: Layout, data: bytes):
        dtype = np.dtype([(name, code, shape) for name, code, shape in layout.fields])
        self.blocks.append((layout.kind, np.frombuffer(data, dtype)))


class Rig:
    def __init__(self, forge, max_batch=4, max_waiting=8):
        self.tiny = forge.tiny()
        slot = build(forge.state / "blobs", MODEL, 1, self.tiny.digest, 4)
        self.session = Session(slot.session)
        self.slot = replace(slot, session=self.session, pace=QUICK)
        self.table = Table(MODEL, self.slot)
        self.metrics, self.sink, self.clock = ServeMetrics(MODEL, "0"), Sink(), StandingClock()
        self.recorder = Recorder(self.sink, Sampler(1 << 20), self.clock)
        self.engine = Engine(
            lambda: self.table, self.recorder, self.metrics, self.clock, max_batch, max_waiting
        )

    def slows(self):
        """Let the slot be one that runs in the pool, and hold its first run."""
        self.table = Table(MODEL, replace(self.slot, pace=SLOW))
        self.session.go_on.clear()

    def ask(self, *asks):
        """Submit in the loop; a future for each, in which a refusal is a value."""
        futures = []
        for each in asks:
            future = asyncio.get_running_loop().create_future()
            futures.append(future)
            try:
                self.engine.submit(
                    each, self.clock.monotonic(), lambda _, said, future=future: future.set_result(said)
                )
            except Busy as busy:
                future.set_result(busy)
        return futures

    def answers(self, *asks):
        async def run():
            return await asyncio.wait_for(asyncio.gather(*self.ask(*asks)), 30)

        return asyncio.run(run())

    def records(self, kind="telemetry"):
        self.recorder.gather()
        return np.concatenate([block for each, block in self.sink.blocks if each == kind])

    def outcomes(self):
        return [OUTCOMES[code] for code in self.records()["outcome"]]

    def counted(self, outcome):
        name = f'instar_serve_requests_total{{model="{MODEL}",outcome="{outcome}"}}'
        (line,) = [each for each in self.metrics.text().decode().splitlines() if each.startswith(name)]
        return int(float(line.rpartition(" ")[2]))


@pytest.fixture
def rig(forge):
    rig = Rig(forge)
    yield rig
    rig.session.go_on.set()
    rig.engine.close()


def ask(name, value=0, rows=1, version=None, **more):
    x = np.full((rows, 28, 28), value, np.uint8)
    return Ask(name, name, x, {"logits": False}, version, more.pop("key", name), **more)


# -- what nobody foresaw ------------------------------------------------------------------------------------


@pytest.mark.parametrize("pooled", [False, True])
def test_an_error_that_nobody_foresaw_is_told_to_all_who_wait_and_to_the_log(rig, pooled):
    if pooled:
        rig.table = Table(MODEL, replace(rig.slot, pace=SLOW))
    logged = []

    def broken(_names, _feeds):
        raise LookupError("nobody foresaw it")

    async def story():
        asyncio.get_running_loop().set_exception_handler(lambda _, told: logged.append(told["exception"]))
        run, rig.session.run = rig.session.run, broken
        failed = await asyncio.wait_for(asyncio.gather(*rig.ask(ask("a"), ask("b"))), 30)
        rig.session.run = run
        return [*failed, *await asyncio.wait_for(asyncio.gather(*rig.ask(ask("c"))), 30)]

    *failed, answered = asyncio.run(story())
    assert [(type(each), "LookupError" in str(each)) for each in failed] == [(ModelFailed, True)] * 2
    assert answered.generation == 1, "the next ones are answered"
    assert [type(each) for each in logged] == [LookupError]
    assert rig.counted("error") == 2
    assert rig.engine.open == 0


class Door:
    """Submits, and keeps all that each job was told; ``boom``: telling that one breaks off, too."""

    def __init__(self, rig):
        self.rig, self.told, self.logged = rig, {}, []
        asyncio.get_running_loop().set_exception_handler(lambda _, it: self.logged.append(it["exception"]))

    def submit(self, name, boom=False, **more):
        def done(_, said):
            self.told.setdefault(name, []).append(type(said).__name__)
            if boom:
                raise LookupError("nobody foresaw it")

        self.rig.engine.submit(ask(name, **more), self.rig.clock.monotonic(), done)

    async def all(self, count):
        while sum(map(len, self.told.values())) < count or self.rig.engine.open:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0)


def test_who_cannot_be_told_costs_the_others_nothing(rig):
    async def story():
        door = Door(rig)
        for name in "abcd":
            door.submit(name, boom=name == "b")
        await asyncio.wait_for(door.all(4), 30)
        return door

    door = asyncio.run(story())
    assert door.told == {name: ["Answer"] for name in "abcd"}
    assert [type(each.exceptions[0]) for each in door.logged] == [LookupError]
    assert (rig.counted("ok"), rig.counted("error"), len(rig.records())) == (4, 0, 4)


def test_who_cannot_be_told_that_it_is_late_does_not_take_the_waiting_along(rig):
    async def story():
        door = Door(rig)
        rig.slows()
        door.submit("first")
        await asyncio.to_thread(rig.session.began.acquire)
        door.submit("late", boom=True, timeout_s=1.0)
        for i in range(6):
            door.submit(f"j{i}")
        await asyncio.sleep(0)
        rig.clock.advance(5.0)
        rig.session.go_on.set()
        await asyncio.wait_for(door.all(8), 30)
        return door

    door = asyncio.run(story())
    # Those that were routed with it are told that it broke off; whoever came after them is answered.
    assert door.told["late"] == ["Late"]
    assert [door.told[f"j{i}"] for i in range(6)] == [["ModelFailed"]] * 3 + [["Answer"]] * 3
    assert len(door.logged) == 1
    assert (rig.counted("ok"), rig.counted("error"), rig.counted("timeout")) == (4, 3, 1)


@pytest.mark.parametrize("pooled", [False, True])
def test_telemetry_that_breaks_off_costs_no_answer(rig, pooled):
    if pooled:
        rig.table = Table(MODEL, replace(rig.slot, pace=SLOW))

    def broken(*_):
        raise OSError("planted")

    rig.recorder.answered = rig.recorder.unanswered = broken

    async def story():
        door = Door(rig)
        for name in "abc":
            door.submit(name)
        await asyncio.wait_for(door.all(3), 30)
        return door

    door = asyncio.run(story())
    assert door.told == {name: ["Answer"] for name in "abc"}
    assert [type(each) for each in door.logged] == [OSError]
    assert (rig.counted("ok"), rig.counted("error")) == (3, 0)


def test_a_run_that_is_over_is_answered_when_the_next_one_breaks_off(rig):
    class Broken:
        def run(self, *_):
            raise LookupError("nobody foresaw it")

    async def story():
        stable, newcomer = rig.slot, replace(rig.slot.renumbered(2), session=Broken())
        rig.table = Table(MODEL, stable, newcomer, 0.5)
        keys = [f"r{i}" for i in range(8)]
        keys.sort(key=lambda key: rig.table.route(key).generation)
        door = Door(rig)
        for key in keys:
            door.submit(key)
        await asyncio.wait_for(door.all(8), 30)
        return door

    door = asyncio.run(story())
    mine = {name: "Answer" if rig.table.route(name).generation == 1 else "ModelFailed" for name in door.told}
    assert set(mine.values()) == {"Answer", "ModelFailed"}
    assert door.told == {name: [said] for name, said in mine.items()}


def test_after_the_pool_has_ended_everybody_is_told(rig):
    async def story():
        rig.table = Table(MODEL, replace(rig.slot, pace=SLOW))
        rig.engine.close()
        door = Door(rig)
        for i in range(6):
            door.submit(f"j{i}")
        await asyncio.wait_for(door.all(6), 30)
        return door

    door = asyncio.run(story())
    assert set(map(tuple, door.told.values())) == {("ModelFailed",)}
    assert [type(each) for each in door.logged] == [RuntimeError] * 2
    assert rig.counted("error") == 6


# -- batches ------------------------------------------------------------------------------------------------


def test_requests_of_one_turn_are_one_run(rig):
    came = rig.answers(*(ask(str(i), i) for i in range(3)))
    assert rig.session.sizes == [3]
    for i, answer in enumerate(came):
        wanted, _ = rig.tiny.expected(np.full((1, 28, 28), i, np.uint8))
        np.testing.assert_allclose(answer.logits, wanted, atol=1e-4)
    assert rig.records()["batch"].tolist() == [3, 3, 3]
    assert rig.records()["summary"][:, 0].tolist() == [0.0, 1.0, 2.0]


def test_batches_are_capped_and_requests_stay_whole(rig):
    rig.answers(ask("a", rows=3), ask("b", rows=2), ask("c", rows=2), ask("d"))
    assert rig.session.sizes == [3, 4, 1]


def test_only_sizes_that_were_tried_are_run_together(rig):
    rig.table = Table(MODEL, replace(rig.slot, pace=replace(QUICK, sizes=frozenset({1, 2, 4}))))
    rig.answers(ask("a"), ask("b"), ask("c"))
    rig.answers(ask("a", rows=2), ask("b"), ask("c", rows=2))
    assert rig.session.sizes == [2, 1, 2, 1, 2]
    rig.session.sizes.clear()
    rig.answers(ask("a", rows=3), ask("b"), ask("c"), ask("d", rows=3))
    assert rig.session.sizes == [3, 2, 3], "three rows alone are not bit-equal to three rows among four"
    rig.session.sizes.clear()
    rig.table = Table(MODEL, replace(rig.slot, pace=replace(QUICK, sizes=frozenset({1}))))
    rig.answers(ask("a"), ask("b"), ask("c", rows=3))
    assert rig.session.sizes == [1, 1, 3], "a model that does not batch is never given two requests"


def test_an_inline_run_is_no_longer_than_others_may_wait(rig):
    pace = Pace(row_s=INLINE_S / 2, batch_row_s=INLINE_S / 3, sizes=frozenset({1, 2, 3, 4}))
    rig.table = Table(MODEL, replace(rig.slot, pace=pace))
    rig.answers(*(ask(str(i)) for i in range(4)))
    assert rig.session.sizes == [2, 2]


def test_newcomer_and_stable_run_apart(rig):
    rig.table = Table(MODEL, rig.slot, rig.slot.renumbered(2), 0.5)
    came = rig.answers(*(ask(f"r{i}") for i in range(8)))
    assert {answer.generation for answer in came} == {1, 2}
    for i, answer in enumerate(came):
        assert answer.generation == rig.table.route(f"r{i}").generation


def test_the_key_routes_and_not_the_id(rig):
    rig.table = Table(MODEL, rig.slot, rig.slot.renumbered(2), 0.5)
    came = rig.answers(*(ask(f"r{i}", key="camera-7") for i in range(8)))
    assert {answer.generation for answer in came} == {rig.table.route("camera-7").generation}


# -- failures -----------------------------------------------------------------------------------------------


def test_a_poisoned_request_fails_alone(rig):
    good, bad, fine = rig.answers(ask("a"), ask("b", 99), ask("c"))
    assert isinstance(bad, ModelFailed)
    assert (good.generation, fine.generation) == (1, 1)
    assert sorted(rig.outcomes()) == ["error", "ok", "ok"]
    assert len(rig.records("samples")) == 2
    assert rig.counted("error") == 1


@pytest.mark.parametrize("spoil", [np.nan, np.inf, -np.inf, [np.inf, -np.inf] * 5, [3e38] * 9 + [np.nan]])
def test_an_answer_that_is_not_finite_is_an_error_alone(rig, spoil):
    rig.session.spoil = spoil
    good, bad, fine = rig.answers(ask("a"), ask("b", 7), ask("c"))
    assert isinstance(bad, NotFinite)
    assert isinstance(bad, ModelFailed)
    assert np.isfinite(good.logits).all()
    assert np.isfinite(fine.logits).all()
    assert rig.outcomes() == ["ok", "not_finite", "ok"]
    assert (rig.counted("not_finite"), rig.counted("error"), rig.counted("ok")) == (1, 0, 2)


def test_large_finite_answers_are_answers(rig):
    rig.session.spoil = [3e38] * 10
    (came,) = rig.answers(ask("a", 7))
    assert (came.logits == np.float32(3e38)).all(), "their sum alone is infinite"


def test_a_table_that_changes_in_between_is_answered_honestly(rig):
    rig.table = Table(MODEL)
    gone, pinned = rig.answers(ask("a"), ask("b", version="1"))
    assert isinstance(gone, NotReady)
    assert isinstance(pinned, Unknown)


def test_too_many_at_once_are_turned_away(rig):
    came = rig.answers(*(ask(str(i)) for i in range(10)))
    assert [isinstance(answer, Busy) for answer in came] == [False] * 8 + [True] * 2


# -- time ---------------------------------------------------------------------------------------------------


def test_an_answer_that_would_be_late_is_not_computed(rig):
    async def run():
        futures = rig.ask(ask("a", timeout_s=0.5), ask("b", timeout_s=2.0), ask("c"))
        rig.clock.advance(1.0)
        return await asyncio.gather(*futures)

    late, good, patient = asyncio.run(run())
    assert isinstance(late, Late)
    assert (good.generation, patient.generation) == (1, 1)
    assert rig.session.sizes == [2]
    assert (rig.counted("timeout"), rig.counted("ok")) == (1, 2)
    assert sorted(rig.outcomes()) == ["ok", "ok", "timeout"]


def test_who_waits_too_long_for_the_pool_is_late(rig):
    async def run():
        rig.slows()
        first = rig.ask(ask("a"))
        await asyncio.to_thread(rig.session.began.acquire)
        rest = rig.ask(ask("b", timeout_s=1.0), ask("c"))
        await asyncio.sleep(0)
        rig.clock.advance(2.0)
        rig.session.go_on.set()
        return await asyncio.wait_for(asyncio.gather(*first, *rest), 30)

    first, late, patient = asyncio.run(run())
    assert isinstance(late, Late)
    assert (first.generation, patient.generation) == (1, 1)
    assert rig.session.sizes == [1, 1]


# -- clients that left --------------------------------------------------------------------------------------


def test_a_client_that_left_is_not_run_and_does_not_hurt_the_others(rig):
    async def run():
        said = []
        gone = rig.engine.submit(ask("a"), 0.0, lambda _, answer: said.append(answer))
        (stays,) = rig.ask(ask("b"))
        gone.gone = True
        return await stays, said

    answer, said = asyncio.run(run())
    assert answer.generation == 1
    assert said == []
    assert rig.session.sizes == [1]
    assert (rig.counted("client_error"), rig.counted("ok")) == (1, 1)


def test_a_thousand_who_left_do_not_stop_the_pool(forge):
    rig = Rig(forge, max_batch=1, max_waiting=5000)

    async def run():
        rig.slows()
        first = rig.ask(ask("a"))
        await asyncio.to_thread(rig.session.began.acquire)
        jobs = [rig.engine.submit(ask("b"), 0.0, lambda *_: None) for _ in range(3000)]
        last = rig.ask(ask("c"))
        await asyncio.sleep(0)
        for job in jobs:
            job.gone = True
        rig.session.go_on.set()
        return await asyncio.wait_for(asyncio.gather(*first, *last), 30)

    came = asyncio.run(run())
    rig.engine.close()
    assert [answer.generation for answer in came] == [1, 1]
    assert rig.session.sizes == [1, 1]
    assert rig.counted("client_error") == 3000


# -- the pool -----------------------------------------------------------------------------------------------


def test_a_slow_slot_does_not_hold_the_loop(rig):
    """One generation takes a second a row, the other is quick: only its own clients wait for the slow one."""

    async def run():
        rig.table = Table(MODEL, rig.slot, replace(rig.slot.renumbered(2), pace=SLOW), 0.5)
        slow = next(f"r{i}" for i in range(99) if rig.table.route(f"r{i}") is rig.table.newcomer)
        quick = next(f"r{i}" for i in range(99) if rig.table.route(f"r{i}") is rig.table.stable)
        rig.session.go_on.clear()
        (waits,) = rig.ask(ask("a", key=slow))
        await asyncio.to_thread(rig.session.began.acquire)
        # The held session is the quick slot's too: let only the pool's thread wait.
        release, rig.session.go_on = rig.session.go_on, threading.Event()
        rig.session.go_on.set()
        answers = [await rig.ask(ask(str(i), key=quick))[0] for i in range(20)]
        assert not waits.done()
        release.set()
        return answers, await asyncio.wait_for(waits, 30)

    answers, last = asyncio.run(run())
    assert {answer.generation for answer in answers} == {1}
    assert last.generation == 2


def test_what_comes_while_the_pool_runs_is_its_next_batch_in_order(rig):
    async def run():
        rig.slows()
        first = rig.ask(ask("a", 1))
        await asyncio.to_thread(rig.session.began.acquire)
        rest = rig.ask(*(ask(str(i), i) for i in range(2, 7)))
        await asyncio.sleep(0)
        assert rig.engine.open == 6
        rig.session.go_on.set()
        return await asyncio.wait_for(asyncio.gather(*first, *rest), 30)

    came = asyncio.run(run())
    assert rig.session.sizes == [1, 4, 1]
    for value, answer in enumerate(came, start=1):
        wanted, _ = rig.tiny.expected(np.full((1, 28, 28), value, np.uint8))
        np.testing.assert_allclose(answer.logits, wanted, atol=1e-4)
    assert rig.engine.open == 0


def test_what_waits_for_the_pool_is_answered_by_the_table_of_its_run(rig):
    async def run():
        rig.slows()
        first = rig.ask(ask("a"))
        await asyncio.to_thread(rig.session.began.acquire)
        rest = rig.ask(ask("b"))
        await asyncio.sleep(0)
        rig.table = Table(MODEL, replace(rig.slot.renumbered(2), pace=SLOW))
        rig.session.go_on.set()
        return await asyncio.wait_for(asyncio.gather(*first, *rest), 30)

    assert [answer.generation for answer in asyncio.run(run())] == [1, 2]


def test_a_poisoned_batch_in_the_pool_fails_alone(rig):
    async def run():
        rig.table = Table(MODEL, replace(rig.slot, pace=SLOW))
        return await asyncio.wait_for(asyncio.gather(*rig.ask(ask("a"), ask("b", 99), ask("c"))), 30)

    good, bad, fine = asyncio.run(run())
    assert isinstance(bad, ModelFailed)
    assert (good.generation, fine.generation) == (1, 1)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_error_that_nobody_foresaw_does_not_stop_the_pool(rig):
    async def run():
        told = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
        rig.table = Table(MODEL, replace(rig.slot, pace=SLOW, session=None))
        rig.ask(ask("a"))
        while not told:
            await asyncio.sleep(0.001)
        rig.table = Table(MODEL, replace(rig.slot, pace=SLOW))
        return told, await asyncio.wait_for(rig.ask(ask("b"))[0], 30)

    told, answer = asyncio.run(run())
    assert isinstance(told[0]["exception"], AttributeError)
    assert answer.generation == 1


def test_a_run_that_does_not_end_does_not_hold_the_end(rig):
    """Telemetry is still to be written after the engine is closed."""

    async def run():
        rig.slows()
        (waits,) = rig.ask(ask("a"))
        await asyncio.to_thread(rig.session.began.acquire)
        rig.engine.close()
        assert not waits.done(), "it came back while the run stands"
        rig.session.go_on.set()
        return await asyncio.wait_for(waits, 30)

    assert asyncio.run(run()).generation == 1


# -- mutants ------------------------------------------------------------------------------------------------


def test_a_mutant_that_stops_telling_at_the_first_break_is_caught(rig, monkeypatch):
    def frail(told):
        for job, said in told:
            job.tell(said)

    monkeypatch.setattr("daemon.serving.engine._tell", frail)
    with pytest.raises(AssertionError):
        test_who_cannot_be_told_costs_the_others_nothing(rig)


def test_a_mutant_that_records_before_it_tells_is_caught(rig, monkeypatch):
    def hasty(self, model, slot, ran):
        said = self._said(model, slot, ran)
        self._count(slot, ran, said)
        for job, (answer, _) in zip(ran.jobs, said, strict=True):
            job.tell(answer)

    monkeypatch.setattr(Engine, "_finish", hasty)
    with pytest.raises(AssertionError):
        test_telemetry_that_breaks_off_costs_no_answer(rig, pooled=False)


def test_a_mutant_that_batches_what_it_may_not_is_caught(rig, monkeypatch):
    monkeypatch.setattr(Engine, "_parts", lambda self, slot, jobs: [jobs])
    with pytest.raises(AssertionError):
        test_only_sizes_that_were_tried_are_run_together(rig)


def threads_of_a_slow_run(rig):
    rig.table = Table(MODEL, replace(rig.slot, pace=SLOW))
    rig.answers(ask("a"))
    return rig.session.threads


def test_a_slow_run_is_in_the_pools_thread_and_a_quick_one_in_the_loops(rig, monkeypatch):
    rig.answers(ask("a"))
    assert rig.session.threads == [threading.main_thread()]
    assert threads_of_a_slow_run(rig)[-1].name.startswith("model")
    monkeypatch.setattr("daemon.serving.engine.INLINE_S", math.inf)
    assert threads_of_a_slow_run(rig)[-1] is threading.main_thread(), "a mutant without the pool is seen"
