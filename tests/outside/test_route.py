"""The routes of the TCP listener that take telemetry and tell of events, on the real application."""

import asyncio
import base64
import json
import socket
import threading
from typing import Any

import httpx
import numpy as np
import pytest
from starlette.applications import Starlette

from daemon.console import events as events_module
from daemon.console import telemetry as telemetry_module
from daemon.outside import intake as intake_module
from daemon.serving.recorder import summary
from policies.status import Status
from tests.simulator.instard import Instard

ROUTE = "/v1/telemetry/meter-reader"
SHED = {"id": "a", "generation": 0, "outcome": "shed", "latency_ms": 1.0}
RNG = np.random.default_rng(5)


def record(instard: Instard, name: str, *, with_input: bool = True) -> dict[str, Any]:
    x = RNG.integers(0, 256, (28, 28)).astype(np.uint8)
    logits, embedding = instard.tiny.expected(x[None])
    told = {
        "id": name,
        "generation": 1,
        "outcome": "ok",
        "latency_ms": 1.25,
        "logits": logits[0].tolist(),
        "embedding": embedding[0].tolist(),
    }
    if with_input:
        return told | {"input_b64": base64.b64encode(x.tobytes()).decode()}
    return told | {"summary": summary(x[None])[0].tolist()}


def post(instard: Instard, body: Any, key: str | None = "k1", **headers: str) -> httpx.Response:
    given = {"content-type": "application/json"} | ({} if key is None else {"idempotency-key": key})
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return httpx.post(instard.url + ROUTE, content=raw, headers=given | headers, timeout=30)


def test_telemetry_reaches_monitors_and_samples_and_labels_join_it(instard: Instard) -> None:
    records = [record(instard, f"r{i}", with_input=i % 2 == 0) for i in range(40)]
    answer = post(instard, {"records": records})
    assert (answer.status_code, answer.json()) == (200, {"accepted": 40, "repeated": False})
    assert post(instard, {"records": records}).json() == {"accepted": 40, "repeated": True}
    labels = [{"id": f"r{i}", "label": i % 10} for i in range(40)]
    said = httpx.post(instard.url + "/api/v1/tasks/meter-reader/labels", json={"labels": labels})
    assert said.json() == {"accepted": 40}
    before = instard.control.samples.counts(1.0)
    instard.turn()
    watch = instard.control.sensors.watch
    assert watch is not None
    assert (watch.generation, watch.reference_rows) == (1, 40)
    after = instard.control.samples.counts(1.0)
    gained = sum(
        getattr(after, role) - getattr(before, role) for role in ("train", "search", "gate", "reference")
    )
    assert gained == 20, "every input that came has its label"


def test_the_status_is_true_of_what_is_served(instard: Instard) -> None:
    instard.turn()
    status = Status.model_validate_json(httpx.get(instard.url + "/api/v1/status").content)
    assert (status.serving, status.generation, status.newcomer_share) == ("ok", 1, 0.0)


@pytest.mark.parametrize(
    ("body", "key", "headers", "code", "words"),
    [
        ({"records": []}, "k", {}, 422, "records"),
        (b"{", "k", {}, 422, "expected"),
        ({"records": [{"id": "a"}]}, "k", {}, 422, "records[0]"),
        ({"records": [SHED | {"generation": 7}]}, "k", {}, 422, "records[0].generation"),
        ({"records": []}, None, {}, 400, "Idempotency-Key"),
        ({"records": []}, "k" * 200, {}, 400, "Idempotency-Key"),
        ({"records": []}, "k", {"content-type": "text/plain"}, 415, "application/json"),
        ({"records": []}, "k", {"origin": "http://elsewhere"}, 403, "web page"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_refused_with_a_sentence_that_names_it(
    instard: Instard, body: Any, key: str | None, headers: dict[str, str], code: int, words: str
) -> None:
    answer = post(instard, body, key, **headers)
    assert answer.status_code == code
    assert words in answer.json()["error"]


def test_another_task_is_not_found(instard: Instard) -> None:
    answer = httpx.post(
        instard.url + "/v1/telemetry/other",
        json={"records": [record(instard, "a")]},
        headers={"idempotency-key": "k"},
    )
    assert answer.status_code == 404


def test_a_body_beyond_the_bound_is_not_read(instard: Instard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telemetry_module, "MAX_BODY_BYTES", 1000)
    assert post(instard, b" " * 2000).status_code == 413


def test_when_the_turns_do_not_keep_up_the_client_is_told_when_to_come_again(
    instard: Instard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake_module, "MOST_UNREAD_BYTES", 400)
    codes = [
        post(instard, {"records": [record(instard, f"{n}", with_input=False)]}, f"k{n}") for n in range(3)
    ]
    assert [answer.status_code for answer in codes] == [200, 200, 429]
    assert codes[2].headers["retry-after"] == "1"
    instard.turn()
    again = post(instard, {"records": [record(instard, "2", with_input=False)]}, "k2")
    assert again.status_code == 200


def test_a_refused_batch_leaves_no_row(instard: Instard) -> None:
    good, bad = record(instard, "a"), record(instard, "b") | {"logits": [1.0]}
    answer = post(instard, {"records": [good, bad]})
    assert answer.status_code == 422
    assert "records[1].logits" in answer.json()["error"]
    instard.turn()
    assert instard.control.sensors.watch is not None
    assert instard.control.sensors.watch.reference_rows == 0


def test_beside_instar_serve_which_writes_the_spool_itself_nothing_is_taken() -> None:
    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(Starlette(routes=[telemetry_module.telemetry(None)]))
        async with httpx.AsyncClient(transport=transport, base_url="http://instard") as client:
            return await client.post(ROUTE, json={"records": [SHED]}, headers={"idempotency-key": "k"})

    answer = asyncio.run(ask())
    assert answer.status_code == 409
    assert "instar-serve writes the telemetry itself" in answer.json()["error"]


def test_more_batches_at_once_than_the_bound_are_told_to_come_again(
    instard: Instard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(telemetry_module, "MOST_AT_ONCE", 0)
    answer = post(instard, {"records": [SHED]})
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")


def test_a_body_that_never_ends_gives_its_place_back(
    instard: Instard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(telemetry_module, "BODY_S", 0.05)
    address = httpx.URL(instard.url)
    head = f"POST {ROUTE} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nidempotency-key: k\r\n"
    with socket.create_connection((address.host, address.port), timeout=20) as slow:
        slow.sendall(f"{head}content-length: 1000\r\n\r\n{{".encode())
        assert slow.recv(1000).startswith(b"HTTP/1.1 408")


class TestEvents:
    def test_the_journal_is_followed_from_any_place(self, instard: Instard) -> None:
        everything = httpx.get(instard.url + "/v1/events?after=0&wait_s=0").json()
        assert [entry["seq"] for entry in everything] == list(range(1, len(everything) + 1))
        last = everything[-1]["seq"]
        assert httpx.get(instard.url + f"/v1/events?after={last}&wait_s=0").json() == []
        assert len(httpx.get(instard.url + "/v1/events?after=0&limit=3").json()) == 3

    def test_who_waits_is_woken_by_the_next_entry(self, instard: Instard) -> None:
        last = instard.control.book.ledger.entries
        got: list[Any] = []
        listening = threading.Event()
        bell = instard.bell
        assert bell is not None
        listen = bell.listen

        def noted() -> Any:
            listening.set()
            return listen()

        bell.listen = noted  # type: ignore[method-assign]

        def follow() -> None:
            got.extend(httpx.get(instard.url + f"/v1/events?after={last}&wait_s=50", timeout=60).json())

        waiter = threading.Thread(target=follow)
        waiter.start()
        assert listening.wait(20)
        instard.control.book.write("page", what="a test", why="it waits")
        waiter.join(timeout=20)
        assert [entry["kind"] for entry in got] == ["page"]

    @pytest.mark.parametrize(
        "query", ["after=-1", "after=x", "limit=0", "limit=1001", "wait_s=61", "after=1e3"]
    )
    def test_a_wrong_question_is_refused(self, instard: Instard, query: str) -> None:
        answer = httpx.get(instard.url + f"/v1/events?{query}")
        assert answer.status_code == 400
        assert "whole numbers" in answer.json()["error"]

    def test_more_waiters_than_the_bound_are_told_to_come_again(
        self, instard: Instard, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(events_module, "MOST_WAITING", 0)
        answer = httpx.get(instard.url + "/v1/events?after=0")
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")
