"""The front: deadlines, routing keys, a server that is full, and orders of the repository."""

import asyncio
import gzip
import json
import socket
import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest

from daemon.serving.table import Table
from tests.serving.wire import until

PATH = "/v2/models/meter-reader"


def message(**more) -> dict:
    tensor = {"name": "image", "datatype": "UINT8", "shape": [1, 28, 28], "data": [0] * 784}
    return {"inputs": [tensor], **more}


def count(plane, outcome) -> float:
    return plane.metrics()[f'instar_serve_requests_total{{model="meter-reader",outcome="{outcome}"}}']


def infer(plane, headers=None, **more) -> httpx.Response:
    return plane.http.post(f"{PATH}/infer", json=message(**more), headers=headers)


class Held:
    """A plane whose model is slow and waits: every run is in the pool and stands until ``let_go``."""

    def __init__(self, plane):
        self.plane, self._begun, self._go = plane, threading.Semaphore(0), threading.Event()
        keeper = plane.plane.keeper
        slot = keeper.table.stable
        session, held = slot.session, self

        class Session:
            def run(self, names, feeds):
                held._begun.release()
                assert held._go.wait(30)
                return session.run(names, feeds)

        pace = type(slot.pace)(row_s=1.0, batch_row_s=1.0, sizes=frozenset({1}))
        changes = {"session": Session(), "pace": pace}
        fields = {name: getattr(slot, name) for name in slot.__dataclass_fields__}
        keeper.table = Table(keeper.table.model, type(slot)(**fields | changes))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        # Also when a test fails: its clients would wait for ever.
        self.let_go()

    def begun(self):
        assert self._begun.acquire(timeout=30)

    def let_go(self):
        self._go.set()


@pytest.fixture
def held(served):
    return Held(served[0])


# -- time ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", [{"headers": {"Instar-Timeout-Ms": "1"}}, {"parameters": {"timeout": 1000}}])
def test_who_waits_longer_than_its_own_time_is_told_so(held, way):
    with ThreadPoolExecutor(2) as clients, held:
        first = clients.submit(infer, held.plane)
        held.begun()
        second = clients.submit(infer, held.plane, **way)
        # Until the second one waits; then more than its millisecond goes by before it could run.
        until(lambda: held.plane.plane.engine.open == 2)
        arrived = time.monotonic()
        until(lambda: time.monotonic() > arrived + 0.002)
        held.let_go()
        assert first.result(30).status_code == 200
        late = second.result(30)
    assert late.status_code == 504
    assert "expected an answer within 0.001 s" in late.json()["error"]
    assert count(held.plane, "timeout") == 1


def test_the_shorter_of_two_deadlines_holds_and_long_ones_hurt_nobody(shared):
    plane, _ = shared
    assert infer(plane, {"Instar-Timeout-Ms": "60000"}).status_code == 200
    assert infer(plane, parameters={"timeout": 0}).status_code == 200, "nothing is no deadline"
    assert infer(plane, parameters={"timeout": 10**400}).status_code == 200, "more than a float holds"


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "x", "", "1e3", "86400001", "1" * 400, "²"])
def test_a_deadline_that_is_none_is_refused(shared, text):
    plane, _ = shared
    answer = infer(plane, {"Instar-Timeout-Ms": text.encode()})
    assert answer.status_code == 400
    assert "expected Instar-Timeout-Ms from 1 to" in answer.json()["error"]


@pytest.mark.parametrize("timeout", [-1, 1.5, "5", True, None])
def test_a_timeout_parameter_that_is_none_is_refused(shared, timeout):
    plane, _ = shared
    assert infer(plane, parameters={"timeout": timeout}).status_code == 400


# -- as many as there is room for ---------------------------------------------------------------------------


def test_when_all_places_are_taken_one_is_told_to_come_later(forge, thread, kit):
    plane = thread(max_waiting=3)
    plane.admin.apply(kit.deployment(1, stable=(1, forge.tiny()))).raise_for_status()
    held = Held(plane)
    with ThreadPoolExecutor(4) as clients, held:
        first = [clients.submit(infer, plane)]
        held.begun()
        first += [clients.submit(infer, plane) for _ in range(2)]
        until(lambda: plane.plane.engine.open == 3)
        refused = infer(plane)
        # A question costs nothing, and is answered.
        assert plane.http.get("/v2/health/ready").status_code == 200
        held.let_go()
        assert [each.result(30).status_code for each in first] == [200] * 3
    assert refused.status_code == 429
    assert refused.headers["retry-after"] == "1"
    assert "expected at most 3 waiting requests" in refused.json()["error"]
    assert (count(plane, "shed"), count(plane, "ok")) == (1, 3)
    assert infer(plane).status_code == 200


def test_a_client_that_left_is_not_run(held):
    with ThreadPoolExecutor(2) as clients, held:
        first = clients.submit(infer, held.plane)
        held.begun()
        body = json.dumps(message()).encode()
        head = f"POST {PATH}/infer HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
        with socket.create_connection(("127.0.0.1", held.plane.port)) as left:
            # A client that only closes its side may still read; one that resets is gone.
            left.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            left.sendall(head.encode() + body)
            until(lambda: held.plane.plane.engine.open == 2)
        until(lambda: held.plane.plane.reception.count == 1)
        held.let_go()
        assert first.result(30).status_code == 200
        assert infer(held.plane).status_code == 200
    assert (count(held.plane, "client_error"), count(held.plane, "ok")) == (1, 2)


# -- who answers --------------------------------------------------------------------------------------------


def test_a_routing_key_is_sticky_and_monotone_and_stronger_than_the_id(forge, thread, kit):
    plane = thread()
    one, two = forge.tiny(seed=1), forge.tiny(seed=2)
    before: set[int] = set()
    for revision, share in enumerate((0.2, 0.5, 0.9), start=1):
        wanted = kit.deployment(revision, stable=(1, one), newcomer=(2, two), share=share)
        plane.admin.apply(wanted).raise_for_status()
        moved = set()
        for key in range(20):
            versions = {
                infer(plane, {"Instar-Route": f"camera-{key}"}, id=f"r{n}").json()["model_version"]
                for n in range(2)
            }
            assert len(versions) == 1, "two ids of one camera, one generation"
            if versions == {"2"}:
                moved.add(key)
        assert before <= moved
        assert 0 < len(moved) < 20
        before = moved
    # Negative control: without the key, ids go both ways.
    by_id = {infer(plane, id=f"r{n}").json()["model_version"] for n in range(20)}
    assert by_id == {"1", "2"}


def test_a_routing_key_is_short(shared):
    plane, _ = shared
    assert infer(plane, {"Instar-Route": "k" * 256}).status_code == 200
    answer = infer(plane, {"Instar-Route": "k" * 257})
    assert answer.status_code == 400
    assert "expected key of at most 256 characters" in answer.json()["error"]


# -- the repository -----------------------------------------------------------------------------------------

LOAD, UNLOAD = (f"/v2/repository/models/meter-reader/{order}" for order in ("load", "unload"))


def test_clients_load_and_unload_where_they_may(forge, thread, kit):
    plane = thread(repository_control=True)
    assert plane.http.post(LOAD).status_code == 503, "there is no deployment yet"
    plane.admin.apply(kit.deployment(1, stable=(1, forge.tiny()))).raise_for_status()
    assert infer(plane).status_code == 200
    assert plane.http.post(UNLOAD).status_code == 200
    assert infer(plane).status_code == 503
    assert plane.http.get("/v2/health/ready").status_code == 503
    assert plane.http.get(f"{PATH}/ready").status_code == 503
    (entry,) = plane.http.post("/v2/repository/index").json()
    assert (entry["state"], entry["reason"]) == ("UNAVAILABLE", "unloaded by a client")
    assert plane.admin.observed()["problem"] == "unloaded by a client"
    assert plane.http.post(UNLOAD).status_code == 200, "twice is once"
    assert plane.http.post(LOAD).status_code == 200
    assert infer(plane).json()["model_version"] == "1"
    assert plane.http.post("/v2/repository/index", json={"ready": True}).json()[0]["state"] == "READY"


def test_a_load_that_waits_for_a_deployment_loads_what_that_one_brings(forge, thread, kit):
    plane = thread(repository_control=True)
    tiny = forge.tiny()
    plane.admin.apply(kit.deployment(1, stable=(1, tiny))).raise_for_status()
    keeper, wanted = plane.plane.keeper, kit.deployment(2, stable=(2, forge.tiny(seed=2)))

    async def both():
        applied = asyncio.create_task(keeper.apply(wanted.model_dump_json().encode()))
        await asyncio.sleep(0)
        assert keeper.observed().revision == 1, "it is under way"
        await asyncio.gather(applied, keeper.load())

    asyncio.run_coroutine_threadsafe(both(), plane.loop).result(30)
    assert infer(plane).json()["model_version"] == "2"


def test_an_unload_gives_the_memory_back(forge, thread, kit, monkeypatch):
    plane = thread(repository_control=True)
    plane.admin.apply(kit.deployment(1, stable=(1, forge.tiny()))).raise_for_status()
    given = []
    monkeypatch.setattr("daemon.serving.keeper.give_back", lambda: given.append(plane.plane.keeper.table))
    assert plane.http.post(UNLOAD).status_code == 200
    assert [table.slots() for table in given] == [[]], "after the slots were let go"


def test_a_deployment_ends_an_unload(forge, thread, kit):
    plane = thread(repository_control=True)
    tiny = forge.tiny()
    wanted = kit.deployment(1, stable=(1, tiny))
    plane.admin.apply(wanted)
    plane.http.post(UNLOAD)
    plane.admin.apply(wanted).raise_for_status()
    assert infer(plane).status_code == 200


def test_a_bundle_that_was_altered_is_not_loaded_again(forge, thread, kit):
    plane = thread(repository_control=True)
    tiny = forge.tiny()
    plane.admin.apply(kit.deployment(1, stable=(1, tiny)))
    plane.http.post(UNLOAD)
    forge.put(tiny.digest, tiny.raw[:-1])
    refused = plane.http.post(LOAD)
    assert refused.status_code == 503
    assert "the file was altered" in refused.json()["error"]
    assert infer(plane).status_code == 503
    forge.put(tiny.digest, tiny.raw)
    assert plane.http.post(LOAD).status_code == 200


def test_clients_load_and_unload_nothing_where_they_may_not(served):
    plane, _ = served
    for order in (LOAD, UNLOAD):
        refused = plane.http.post(order)
        assert refused.status_code == 403
        assert "--repository-control on" in refused.json()["error"]
    assert infer(plane).status_code == 200
    assert plane.http.post("/v2/repository/index").json()[0]["state"] == "READY"


@pytest.mark.parametrize("brought", [{"config": "{}"}, {"file:1/model.onnx": "AAAA"}])
def test_no_model_comes_from_the_network(forge, thread, kit, brought):
    plane = thread(repository_control=True)
    plane.admin.apply(kit.deployment(1, stable=(1, forge.tiny())))
    refused = plane.http.post(LOAD, json={"parameters": brought})
    assert refused.status_code == 403
    assert "expected no model and no configuration from the network" in refused.json()["error"]
    # Other parameters mean nothing, and harm nothing.
    assert plane.http.post(LOAD, json={"parameters": {"colour": "red"}}).status_code == 200


@pytest.mark.parametrize("body", [b"{", b"[]", b"null", b'{"ready": 1}', b'{"parameters": []}', b"\xff"])
def test_orders_that_are_none_are_refused(forge, thread, kit, body):
    plane = thread(repository_control=True)
    plane.admin.apply(kit.deployment(1, stable=(1, forge.tiny())))
    orders = ["/v2/repository/index"] if b"ready" in body else [LOAD, UNLOAD]
    for order in orders:
        assert plane.http.post(order, content=body).status_code == 400
    assert plane.http.post("/v2/repository/models/other/load").status_code == 404
    assert plane.http.get(LOAD).status_code == 405
    assert plane.http.get("/v2/repository/index").status_code == 405
    assert infer(plane).status_code == 200


# -- what nobody foresaw ------------------------------------------------------------------------------------


def broken(*_):
    raise LookupError("nobody foresaw it")


def test_an_answer_that_cannot_be_written_is_an_error_and_the_client_may_go_on(served, monkeypatch):
    plane, _ = served
    with monkeypatch.context() as patch:
        patch.setattr("daemon.serving.front.encode", broken)
        failed = infer(plane)
    assert (failed.status_code, failed.json()["error"]) == (
        500,
        "expected to answer, it broke off: LookupError; the server's log says where",
    )
    assert infer(plane).status_code == 200


def test_an_order_that_breaks_off_is_answered(forge, thread, kit, monkeypatch):
    plane = thread(repository_control=True)
    plane.admin.apply(kit.deployment(1, stable=(1, forge.tiny()))).raise_for_status()
    with monkeypatch.context() as patch:
        patch.setattr(plane.plane.keeper, "unload", broken)
        failed = plane.http.post(UNLOAD)
    assert failed.status_code == 500
    assert "LookupError" in failed.json()["error"]
    assert plane.http.post(UNLOAD).status_code == 200


# -- words of HTTP ------------------------------------------------------------------------------------------


def test_a_wrong_method_names_the_right_ones(shared):
    plane, _ = shared
    for path, method, allowed in (
        (f"{PATH}/infer", "GET", "POST"),
        (PATH, "POST", "GET, HEAD"),
        ("/v2/health/live", "DELETE", "GET, HEAD"),
    ):
        refused = plane.http.request(method, path)
        assert refused.status_code == 405
        assert refused.headers["allow"] == allowed


def test_head_is_get_without_a_body(shared):
    plane, _ = shared
    head, whole = plane.http.head(PATH), plane.http.get(PATH)
    assert head.status_code == 200
    assert head.content == b""
    assert head.headers["content-length"] == str(len(whole.content))


@pytest.mark.parametrize("target", ["http://a.b:1/v2/health/live", "HTTPS://x/v2/health/live?a=http://y/"])
def test_a_target_may_be_a_whole_address(shared, target):
    plane, _ = shared
    assert plane.http.request("GET", "/", extensions={"target": target.encode()}).json() == {"live": True}
    # Negative control: what is no address is no path either.
    other = plane.http.request("GET", "/", extensions={"target": b"x" + target.encode()})
    assert other.status_code in (400, 404)


def test_a_target_may_be_spelled_in_percents_and_have_a_query(shared):
    plane, _ = shared
    assert plane.http.get("/v2/models/meter%2Dreader?x=1").json()["name"] == "meter-reader"
    assert plane.http.post(f"{PATH}/infer?x=1", json=message()).status_code == 200
    raw = gzip.compress(json.dumps(message()).encode())
    answer = plane.http.post(f"{PATH}/infer?", content=raw, headers={"Content-Encoding": "gzip"})
    assert np.isfinite(answer.json()["outputs"][0]["data"]).all()
