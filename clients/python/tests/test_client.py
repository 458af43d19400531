"""The client against the real application: what it sends arrives, once, and what it is told is true."""

import asyncio
import dataclasses
import threading
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest

from daemon.outside import intake as intake_module
from daemon.serving.recorder import summary
from instar_client import (
    AsyncClient,
    Client,
    NotReached,
    Record,
    Refused,
    Reporter,
    Retry,
    TooBusy,
    Unexpected,
    summarise,
    wire,
)
from instar_client import records as records_module
from instar_client.events import Event, Status
from tests.simulator.instard import Instard
from tests.simulator.site import free_port

TASK = "meter-reader"
Make = Callable[..., list[Record]]
QUICK = Retry(attempts=3, first_s=0.001, longest_s=0.002)


def rows(instard: Instard) -> int:
    """Run a turn; return how many rows the monitors have seen."""
    instard.turn()
    assert instard.control.sensors.watch is not None
    return int(instard.control.sensors.watch.reference_rows)


class Pauses:
    """What waits in the client's place: notes how long, and lets something happen meanwhile."""

    def __init__(self, meanwhile: Any = None) -> None:
        self.told: list[float] = []
        self._meanwhile = meanwhile

    def __call__(self, seconds: float) -> None:
        self.told.append(seconds)
        if self._meanwhile is not None:
            self._meanwhile()

    async def awaited(self, seconds: float) -> None:
        await asyncio.to_thread(self, seconds)


@pytest.fixture
def client(instard: Instard) -> Any:
    with Client(instard.url, TASK, retry=QUICK) as made:
        yield made


class TestTelemetry:
    def test_what_is_reported_reaches_the_monitors_once(
        self, instard: Instard, client: Client, records: Make
    ) -> None:
        told = [
            *records(30),
            Record.failed("late", 1, 900.0, "timeout"),
            Record.failed("shed", 0, 0.1, "shed"),
        ]
        assert client.report(told) == 32
        assert client.report(told) == 32, "the same records are the same batches"
        assert rows(instard) == 30

    def test_many_records_go_in_batches_that_instard_takes(
        self, instard: Instard, client: Client, records: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(records_module, "MOST_RECORDS", 7)
        assert client.report(records(40)) == 40
        assert rows(instard) == 40

    def test_told_to_wait_it_waits_as_long_as_it_was_told_and_sends_again(
        self, instard: Instard, records: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(intake_module, "MOST_UNREAD_BYTES", 1000)
        pauses = Pauses(meanwhile=instard.turn)
        with Client(instard.url, TASK, sleep=pauses) as client:
            assert sum(client.report(records(1, number)) for number in range(4)) == 4
        assert len(pauses.told) == 1
        assert pauses.told[0] >= 1.0
        assert rows(instard) == 4

    def test_turned_away_too_often_it_says_so_and_nothing_is_doubled(
        self, instard: Instard, client: Client, records: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        told = records(2)
        with monkeypatch.context() as patch:
            patch.setattr(intake_module, "MOST_UNREAD_BYTES", 1)
            with pytest.raises(TooBusy, match="turned away 3 times, last with 429"):
                client.report(told)
        assert client.report(told) == 2
        assert rows(instard) == 2

    def test_a_lost_answer_is_asked_for_again_and_the_batch_is_there_once(
        self, instard: Instard, records: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        request, lost = httpx.Client.request, []

        def losing(self: httpx.Client, *args: Any, **named: Any) -> httpx.Response:
            answer = request(self, *args, **named)
            if not lost:
                lost.append(answer)
                raise httpx.ReadError("the connection broke after the request")
            return answer

        monkeypatch.setattr(httpx.Client, "request", losing)
        with Client(instard.url, TASK, retry=QUICK) as client:
            assert client.report(records(3)) == 3
        assert rows(instard) == 3

    def test_a_key_a_time_would_double_what_was_lost(
        self, instard: Instard, client: Client, records: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The mutant gives every sending a key of its own."""
        keys, telemetry = iter(range(1000)), wire.telemetry

        def fresh(task: str, some: Any) -> Any:
            for ask in telemetry(task, some):
                yield dataclasses.replace(ask, headers={**ask.headers, "idempotency-key": f"k{next(keys)}"})

        told = records(3)
        monkeypatch.setattr(wire, "telemetry", fresh)
        client.report(told)
        client.report(told)
        assert rows(instard) == 6

    def test_a_refusal_names_the_record_and_the_field(self, client: Client, records: Make) -> None:
        wrong = Record.answered("x", 1, 1.0, [1.0], [2.0], summary=[0.0] * 5)
        with pytest.raises(Refused, match=r"records\[2\]\.logits") as refused:
            client.report([*records(2), wrong])
        assert refused.value.status == 422

    def test_a_number_that_is_none_is_refused_before_it_is_sent(self, client: Client) -> None:
        with pytest.raises(ValueError, match="JSON compliant"):
            client.report([Record.failed("x", 1, float("nan"), "error")])

    @pytest.mark.parametrize("told", [{}, {"input": b"", "summary": [0.0] * 5}])
    def test_an_answered_row_without_its_input_or_summary_is_not_made(self, told: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match="either input or summary"):
            Record.answered("x", 1, 1.0, [1.0], [1.0], **told)


@pytest.mark.parametrize("shape", [(7,), (1,), (28, 28), (3, 40), (6, 5, 3), (3, 6, 5), (2, 1)])
def test_the_summary_is_what_instar_serve_would_have_written(shape: tuple[int, ...]) -> None:
    x = np.random.default_rng(4).normal(size=(1, *shape)).astype(np.float32)
    ours = summarise(x.ravel().astype(float).tolist(), shape)
    assert np.allclose(ours, summary(x)[0], rtol=1e-6, atol=1e-6)


class TestTheRest:
    def test_labels_are_taken_by_index_and_by_name(self, instard: Instard, client: Client) -> None:
        assert client.label({"r1": 7, "r2": "3"}) == 2
        with pytest.raises(Refused, match="expected a label among") as refused:
            client.label({"r1": "none such"})
        assert refused.value.status == 422

    def test_the_status_is_the_task_s(self, instard: Instard, client: Client) -> None:
        instard.turn()
        status = client.status()
        assert (status.task, status.model, status.generation, status.serving) == (TASK, TASK, 1, "ok")
        assert status.all["journal_entries"] == instard.control.book.ledger.entries

    def test_events_come_in_order_and_following_goes_on_where_it_was(
        self, instard: Instard, client: Client
    ) -> None:
        past = client.events()
        assert [event.seq for event in past] == list(range(1, len(past) + 1))
        follower = client.follow(past[-1].seq)
        threading.Timer(0.0, lambda: instard.control.book.write("page", what="one", why="a test")).start()
        first = next(follower)
        assert (first.seq, first.kind, first.body["what"]) == (past[-1].seq + 1, "page", "one")
        instard.control.book.write("page", what="two", why="a test")
        assert next(follower).body["what"] == "two"

    def test_nobody_there_is_said_after_all_attempts(self) -> None:
        pauses = Pauses()
        with (
            Client(f"http://127.0.0.1:{free_port()}", TASK, retry=QUICK, sleep=pauses) as client,
            pytest.raises(NotReached),
        ):
            client.status()
        assert len(pauses.told) == 2

    @pytest.mark.parametrize("plain", [None, [], {}, {"seq": "x"}, 5])
    def test_an_answer_that_is_something_else_is_unexpected(self, plain: Any) -> None:
        for read in (Event.read, Status.read):
            with pytest.raises(Unexpected):
                read(plain)

    @pytest.mark.parametrize("wrong", [{"attempts": 0}, {"first_s": 0.0}, {"first_s": 40.0}])
    def test_a_retry_that_never_tries_or_never_waits_is_not_made(self, wrong: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match="expected attempts"):
            Retry(**wrong)


class TestAsync:
    def test_it_does_what_the_other_does(
        self, instard: Instard, records: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(intake_module, "MOST_UNREAD_BYTES", 1000)
        pauses = Pauses(meanwhile=instard.turn)

        async def story() -> None:
            async with AsyncClient(instard.url, TASK, sleep=pauses.awaited) as client:
                for number in range(4):
                    assert await client.report(records(1, number)) == 1
                assert await client.label({"r1": 1}) == 1
                assert (await client.status()).generation == 1
                past = await client.events()
                instard.control.book.write("page", what="one", why="a test")
                follower = client.follow(past[-1].seq)
                assert (await anext(follower)).body["what"] == "one"
                await follower.aclose()  # type: ignore[attr-defined]

        asyncio.run(story())
        assert len(pauses.told) == 1
        assert rows(instard) == 4

    def test_nobody_there_is_said_after_all_attempts(self) -> None:
        async def story() -> None:
            async with AsyncClient(f"http://127.0.0.1:{free_port()}", TASK, retry=QUICK) as client:
                await client.status()

        with pytest.raises(NotReached):
            asyncio.run(story())


class TestReporter:
    def test_everything_that_was_added_is_there_after_close(
        self, instard: Instard, client: Client, records: Make
    ) -> None:
        with Reporter(client, batch=8, every_s=60.0) as reporter:
            assert all(reporter.add(record) for record in records(50))
        assert (reporter.sent, reporter.dropped, reporter.problem) == (50, 0, None)
        assert rows(instard) == 50

    def test_more_than_may_wait_is_dropped_and_counted(self, records: Make) -> None:
        url = f"http://127.0.0.1:{free_port()}"
        with Client(url, TASK, retry=QUICK) as client:
            with Reporter(client, batch=5, every_s=60.0, most=5) as reporter:
                assert sum(reporter.add(record) for record in records(30)) <= 10
            assert reporter.sent == 0
            assert reporter.dropped == 30
            assert reporter.problem is not None

    def test_what_could_not_be_sent_is_sent_again_once(
        self, instard: Instard, client: Client, records: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        tried = threading.Event()
        report = Client.report

        def flaky(self: Client, some: list[Record]) -> int:
            taken = report(self, some)
            if not tried.is_set():
                tried.set()
                raise NotReached("taken, and the answer was lost every time")
            return taken

        monkeypatch.setattr(Client, "report", flaky)
        told = records(12)
        with Reporter(client, batch=4, every_s=0.01) as reporter:
            for record in told[:3]:
                reporter.add(record)
            assert tried.wait(20)
            for record in told[3:]:
                reporter.add(record)
        assert (reporter.sent, reporter.dropped) == (12, 0)
        assert rows(instard) == 12

    def test_what_is_refused_is_counted_and_the_rest_goes_on(
        self, instard: Instard, client: Client, records: Make
    ) -> None:
        wrong = Record.answered("x", 1, 1.0, [1.0], [2.0], summary=[0.0] * 5)
        with Reporter(client, batch=1, every_s=60.0) as reporter:
            for record in [*records(2), wrong, *records(2, 2)]:
                reporter.add(record)
        assert (reporter.sent, reporter.dropped) == (4, 1)
        assert reporter.problem is not None
        assert "logits" in reporter.problem

    def test_what_json_cannot_say_is_counted_and_the_rest_goes_on(
        self, instard: Instard, client: Client, records: Make
    ) -> None:
        numbers = [np.float32(1.5), float("nan")]
        wrong = [dataclasses.replace(*records(1), latency_ms=number) for number in numbers]
        with Reporter(client, batch=1, every_s=60.0) as reporter:
            for record in [*wrong, *records(2, 2)]:
                reporter.add(record)
        assert (reporter.sent, reporter.dropped) == (2, 2)
