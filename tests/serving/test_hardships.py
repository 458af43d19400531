"""Hardships: clients that are slow, deaf, lying, many, half gone or hostile, and how it would be unhelped."""

import asyncio
import contextlib
import json
import os
import resource
import signal
import socket
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest

from daemon.serving.connection import Connection
from daemon.serving.slot import build
from tests.serving.wire import INFER, Wire, get, post, settled, statuses, until

PATH = "/v2/models/meter-reader"
LIVE = get(b"/v2/health/live")


# -- helpers ------------------------------------------------------------------------------------------------


def connect(server) -> socket.socket:
    """Connect to a plane in a thread or in a process."""
    host, _, port = server.base.removeprefix("http://").partition(":")
    return socket.create_connection((host, int(port)), timeout=60)


def whole(sock: socket.socket) -> bytes:
    """Read until the server closes, or resets."""
    came = b""
    try:
        while part := sock.recv(1 << 16):
            came += part
    except ConnectionResetError:
        return came
    return came


def some(sock: socket.socket, enough) -> bytes:
    """Read until it is enough."""
    came = b""
    while not enough(came):
        part = sock.recv(1 << 16)
        assert part, f"the server closed after {came!r}"
        came += part
    return came


def ask(name: str, value: int = 0) -> bytes:
    """Return a request to the model."""
    tensor = {"name": "image", "datatype": "UINT8", "shape": [1, 28, 28], "data": [value] * 784}
    return post(INFER, json.dumps({"id": name, "inputs": [tensor]}).encode())


def answers(server) -> bool:
    return httpx.get(server.base + "/v2/health/ready", timeout=60).status_code == 200


def reset(sock: socket.socket) -> None:
    """Leave without a word."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def resident_bytes(pid: int) -> int:
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(fields["VmRSS"].split()[0]) << 10


def open_connections(server) -> int:
    text = httpx.get(server.metrics_base + "/metrics", timeout=60).text
    (line,) = [each for each in text.splitlines() if each.startswith("instar_serve_open_connections{")]
    return int(float(line.rpartition(" ")[2]))


@pytest.fixture
def serving(forge, process, kit):
    """Start a real process with flags, and let it serve generation 1."""

    def start(*flags):
        server = process(*flags)
        server.admin.apply(kit.deployment(1, stable=(1, forge.tiny()))).raise_for_status()
        return server

    return start


# -- slow ---------------------------------------------------------------------------------------------------


async def lorises(wire: Wire) -> list:
    """Five hundred clients that send a byte of head or body every five seconds, for half a minute."""
    clients = [wire.connect() for _ in range(500)]
    for number, client in enumerate(clients):
        await wire.send(
            (post(INFER, bytes(100)) if number % 2 else get(INFER, b"x: " + b"y" * 100))[:-80], to=client
        )
    for _ in range(6):
        wire.passes(5.0)
        for client in clients:
            if not client.gone:
                client.protocol.data_received(b"y")
        await wire.send(LIVE)
    return clients


def test_slow_clients_are_refused_in_time_while_others_are_answered():
    async def story():
        wire = Wire(most=1000)
        clients = await lorises(wire)
        assert statuses(wire.transport.sent) == [200] * 6
        assert {tuple(statuses(each.sent)) for each in clients} == {(408,)}
        assert all(each.gone for each in clients)
        assert wire.reception.count == 1

    asyncio.run(story())


def test_slow_clients_stay_for_ever_where_nobody_looks_at_their_time(monkeypatch):
    """The negative control of the story above."""

    async def story():
        wire = Wire(most=1000)
        clients = await lorises(wire)
        assert not any(each.gone for each in clients)

    monkeypatch.setattr(Connection, "expire", lambda self: None)
    asyncio.run(story())


def test_a_real_server_refuses_slow_heads_and_bodies(serving):
    server = serving("--head-timeout-s", "0.2", "--body-timeout-s", "0.2", "--idle-timeout-s", "0.2")
    head, body, idle, quick = (connect(server) for _ in range(4))
    head.sendall(LIVE[:20])
    body.sendall(ask("a")[:-1])
    quick.sendall(LIVE)
    assert statuses(some(quick, lambda came: b"true}" in came)) == [200]
    for late in (head, body):
        assert statuses(whole(late)) == [408]
    for waits in (idle, quick):
        assert whole(waits) == b""
    for each in (head, body, idle, quick):
        each.close()
    until(lambda: open_connections(server) == 0)


# -- half closed, deaf, gone --------------------------------------------------------------------------------


def test_a_client_that_closed_its_side_is_answered(serving):
    server = serving()
    with connect(server) as sock:
        sock.sendall(ask("a") + LIVE + ask("b"))
        sock.shutdown(socket.SHUT_WR)
        came = whole(sock)
    assert statuses(came) == [200, 200, 200]
    assert came.index(b'"id":"a"') < came.index(b'"live"') < came.index(b'"id":"b"')
    with connect(server) as sock:
        sock.sendall(ask("a")[:-1])
        sock.shutdown(socket.SHUT_WR)
        assert whole(sock) == b"", "half a request is none"
    assert answers(server)


@contextlib.contextmanager
def deaf(plane):
    """A client that asks much and reads nothing; gives how many bytes wait for it."""

    def waiting() -> int:
        return max(
            (each._transport.get_write_buffer_size() for each in list(plane.plane.reception._open)), default=0
        )

    with ThreadPoolExecutor(1) as asking, socket.socket() as sock:
        # Before it connects: later the kernel has promised much more, and would read for the client.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect(("127.0.0.1", plane.port))
        asked = asking.submit(sock.sendall, get(f"{PATH}/config".encode()) * 50_000)
        try:
            yield waiting
        finally:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            reset(sock)
            asked.exception(30)


def test_a_client_that_never_reads_costs_a_bounded_buffer(served, monkeypatch):
    plane, _ = served
    with deaf(plane) as waiting:
        until(lambda: any(each._paused for each in list(plane.plane.reception._open)))
        for _ in range(20):
            assert answers(plane), "the others are served"
            assert waiting() < 128 << 10
    # Negative control: a connection that does not care lets the answers pile up.
    monkeypatch.setattr(Connection, "pause_writing", lambda self: None)
    monkeypatch.setattr(Connection, "resume_writing", lambda self: None)
    with deaf(plane) as waiting:
        until(lambda: waiting() > 1 << 20)


def test_connections_that_are_reset_anywhere_leave_nothing_behind(served):
    plane, _ = served
    raw = ask("gone")
    before = plane.plane.reception.count
    for cut in (0, 1, 20, 60, 90, 200, len(raw) - 1, len(raw)):
        for _ in range(5):
            sock = connect(plane)
            sock.sendall(raw[:cut])
            reset(sock)
    until(lambda: plane.plane.reception.count <= before)
    until(lambda: plane.plane.engine.open == 0)
    assert answers(plane)
    counted = plane.metrics()
    told = {
        outcome: counted[f'instar_serve_requests_total{{model="meter-reader",outcome="{outcome}"}}']
        for outcome in ("ok", "client_error", "error")
    }
    assert told["error"] == 0
    assert told["ok"] + told["client_error"] <= 40


# -- many ---------------------------------------------------------------------------------------------------


def idle_bytes(server, number: int, said: bytes) -> tuple[float, list[socket.socket]]:
    """Open connections that say something and then nothing; return what each costs the server."""
    before = resident_bytes(server.popen.pid)
    there = open_connections(server)
    socks = []
    for _ in range(number):
        socks.append(connect(server))
        if said:
            socks[-1].sendall(said)
    until(lambda: open_connections(server) >= there + number, 120)
    return (resident_bytes(server.popen.pid) - before) / number, socks


@pytest.mark.scenario
def test_ten_thousand_idle_connections_are_little(serving):
    number = 10_000
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < number + 1000:
        pytest.skip(f"expected a limit of {number + 1000} open files, got {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    socks: list[socket.socket] = []
    try:
        server = serving("--idle-timeout-s", "600", "--head-timeout-s", "300")
        each, socks = idle_bytes(server, number, b"")
        assert each < 4096, f"an idle connection costs {each:.0f} bytes"
        # The last one and the first one are served like any.
        for sock in (socks[0], socks[-1]):
            sock.sendall(ask("a"))
            assert statuses(some(sock, lambda came: came.endswith(b"]}]}"))) == [200]
        # Negative control: half a head of 15 KB is seen by the same scale.
        heavy, more = idle_bytes(server, 500, get(b"/a", b"x: " + b"y" * 15_000)[:-4])
        socks += more
        assert heavy > 8192, f"a half head costs {heavy:.0f} bytes"
    finally:
        for sock in socks:
            sock.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    until(lambda: open_connections(server) == 0, 120)
    assert answers(server)


def test_a_server_that_is_out_of_files_comes_back(serving):
    server = serving()
    resource.prlimit(server.popen.pid, resource.RLIMIT_NOFILE, (64, 64))
    socks = [connect(server) for _ in range(100)]
    refused = 0
    for sock in socks:
        sock.settimeout(1.0)
        try:
            sock.sendall(LIVE)
            refused += not sock.recv(1 << 16)
        except (ConnectionError, TimeoutError):
            refused += 1
        if refused == 3:
            break
    assert refused, "negative control: there were too many"
    for sock in socks:
        sock.close()

    def answered():
        try:
            return answers(server)
        except httpx.TransportError:
            return False

    # As soon as it has seen that they left.
    until(answered)


def test_one_connection_too_many_is_told_so(serving):
    server = serving("--max-connections", "5")
    socks = [connect(server) for _ in range(5)]
    for sock in socks:
        sock.sendall(LIVE)
        some(sock, lambda came: b"true}" in came)
    with connect(server) as sixth:
        came = whole(sixth)
    assert statuses(came) == [503]
    assert b"retry-after: 1" in came
    for sock in socks:
        sock.sendall(LIVE)
        some(sock, lambda came: b"true}" in came)
        sock.close()


def test_hundreds_of_requests_in_one_packet_are_answered_in_order(serving):
    server = serving()
    with connect(server) as sock:
        sock.sendall(b"".join(ask(f"r{n:04}", n % 256) for n in range(200)) + LIVE * 3000)
        came = some(sock, lambda came: came.count(b"HTTP/1.1 200 OK") == 3200)
    ids = [came.index(f'"id":"r{n:04}"'.encode()) for n in range(200)]
    assert ids == sorted(ids)
    assert came.count(b'{"live":true}') == 3000


# -- lying --------------------------------------------------------------------------------------------------

TWO = b"GET /smuggled HTTP/1.1\r\nhost: x\r\n\r\n"


def raw(*lines: bytes, body: bytes = b"", method: bytes = b"POST") -> bytes:
    return b"\r\n".join([method + b" /a HTTP/1.1", b"host: x", *lines]) + b"\r\n\r\n" + body


SMUGGLED = {
    "length and chunks": raw(b"content-length: 5", b"transfer-encoding: chunked", body=b"0\r\n\r\n" + TWO),
    "chunks and length": raw(b"transfer-encoding: chunked", b"content-length: 5", body=b"0\r\n\r\n" + TWO),
    "two lengths": raw(b"content-length: 0", b"content-length: 40", body=TWO),
    "two equal lengths": raw(b"content-length: 0", b"content-length: 0", body=TWO),
    "a list of lengths": raw(b"content-length: 0, 40", body=TWO),
    "a signed length": raw(b"content-length: +0", body=TWO),
    "a hexadecimal length": raw(b"content-length: 0x0", body=TWO),
    "a folded header": raw(b"x: a", b" transfer-encoding: chunked", b"content-length: 0", body=TWO),
    "a bare line feed": raw(b"content-length: 0\nx: y", body=TWO),
    "a bare carriage return": raw(b"content-length: 0\rx: y", body=TWO),
    "a space before the colon": raw(b"content-length : 0", body=TWO),
    "an unknown coding": raw(b"transfer-encoding: xchunked", body=b"0\r\n\r\n" + TWO),
    "chunked twice": raw(
        b"transfer-encoding: chunked", b"transfer-encoding: identity", body=b"0\r\n\r\n" + TWO
    ),
    "chunked not last": raw(b"transfer-encoding: chunked, gzip", body=b"0\r\n\r\n" + TWO),
    "a chunk with a sign": raw(b"transfer-encoding: chunked", body=b"-0\r\n\r\n" + TWO),
    "a chunk that is too long": raw(b"transfer-encoding: chunked", body=b"f" * 17 + b"\r\n" + TWO),
    "a chunk that ends in a line feed": raw(b"transfer-encoding: chunked", body=b"1\na\n0\n\n" + TWO),
    "a zero byte": raw(b"x: \x00", b"content-length: 0", body=TWO),
    "a body under an upgrade": raw(b"connection: upgrade", b"upgrade: h2c", b"content-length: 36", body=TWO),
}


@pytest.mark.parametrize("sent", SMUGGLED.values(), ids=SMUGGLED)
@pytest.mark.parametrize("step", [1, 1 << 20], ids=["bytes", "at once"])
def test_no_request_is_smuggled_inside_another(sent, step):
    async def story():
        wire = Wire()
        await wire.send(*(sent[start : start + step] for start in range(0, len(sent), step)))
        await settled()
        assert b"/smuggled" not in [each.target for each in wire.desk.asked]
        assert statuses(wire.transport.sent)[-1:] == [400]
        assert wire.transport.eof

    asyncio.run(story())


def test_an_honest_second_request_is_seen():
    """The negative control of the attacks above."""

    async def story():
        wire = Wire()
        await wire.send(raw(b"content-length: 0", body=TWO))
        assert [each.target for each in wire.desk.asked] == [b"/a", b"/smuggled"]

    asyncio.run(story())


def test_a_body_that_is_shorter_than_announced_is_waited_for_and_a_longer_one_is_the_next_request(serving):
    server = serving("--body-timeout-s", "0.2")
    short, long = ask("a")[:-10], ask("b") + b"x" * 10 + b"\r\n\r\n"
    with connect(server) as sock:
        sock.sendall(short)
        assert statuses(whole(sock)) == [408]
    with connect(server) as sock:
        sock.sendall(long)
        assert statuses(whole(sock)) == [200, 400]
    with connect(server) as sock:
        sock.sendall(ask("c"))
        assert statuses(some(sock, lambda came: came.endswith(b"]}]}"))) == [200]


def floods(server, raw_: bytes, most: int) -> tuple[list[int], int]:
    """Send up to ``most`` bytes of something; return the statuses, and how much the server took."""
    sent = 0
    with connect(server) as sock:
        try:
            while sent < most:
                sock.sendall(raw_)
                sent += len(raw_)
        except ConnectionError:
            pass
        return statuses(whole(sock)), sent


def test_floods_of_head_are_refused_and_cost_nothing(serving):
    server = serving("--head-timeout-s", "5", "--body-timeout-s", "5")
    before = resident_bytes(server.popen.pid)
    for start in (b"GET /" + b"a" * 100, b"GET / HTTP/1.1\r\nx: ", b"GET / HTTP/1.1\r\n"):
        with connect(server) as sock:
            sock.sendall(start)
            try:
                for n in range(2000):
                    sock.sendall(b"x" * 5000 if start[-1:] != b"\n" else b"x%d: y\r\n" % n)
            except ConnectionError:
                pass
            assert statuses(whole(sock)) in ([431], [])
    trailer = b"POST /a HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n0\r\nx: "
    with connect(server) as sock:
        sock.sendall(trailer)
        try:
            for _ in range(2000):
                sock.sendall(b"x" * 50_000)
        except ConnectionError:
            pass
        assert statuses(whole(sock)) in ([413], [])
    assert resident_bytes(server.popen.pid) - before < 16 << 20
    assert answers(server)


# -- odd but honest -----------------------------------------------------------------------------------------


def test_old_and_careful_clients_are_served(serving):
    server = serving()
    with connect(server) as sock:
        sock.sendall(b"GET /v2/health/live HTTP/1.0\r\n\r\n")
        came = whole(sock)
    assert statuses(came) == [200]
    assert b"connection: close" in came
    head, _, body = ask("a").partition(b"\r\n\r\n")
    with connect(server) as sock:
        sock.sendall(head + b"\r\nexpect: 100-continue\r\n\r\n")
        assert statuses(some(sock, lambda came: came.endswith(b"\r\n\r\n"))) == [100]
        sock.sendall(body)
        assert statuses(some(sock, lambda came: came.endswith(b"]}]}"))) == [200]
        sock.sendall(b"HEAD /v2/health/live HTTP/1.1\r\nhost: x\r\n\r\n" + LIVE)
        came = some(sock, lambda came: came.endswith(b"true}"))
        assert statuses(came) == [200, 200]
        assert came.count(b"true}") == 1
        sock.sendall(get(b"/v2/health/live", b"connection: upgrade", b"upgrade: websocket"))
        assert statuses(some(sock, lambda came: came.endswith(b"true}"))) == [200]


# -- the end ------------------------------------------------------------------------------------------------


def test_a_server_that_ends_answers_who_has_come_and_leaves_who_is_idle(serving):
    server = serving()
    idle, fresh, half = (connect(server) for _ in range(3))
    idle.sendall(LIVE)
    some(idle, lambda came: b"true}" in came)
    half.sendall(ask("half")[:-5])
    until(lambda: open_connections(server) == 3)
    server.popen.send_signal(signal.SIGTERM)
    assert whole(idle) == b"", "the idle one is left at once"
    fresh.sendall(ask("fresh"))
    half.sendall(ask("half")[-5:])
    for sock in (fresh, half):
        came = whole(sock)
        assert statuses(came) == [200]
        assert b"connection: close" in came
    for sock in (idle, fresh, half):
        sock.close()
    assert server.end() == 0
    with pytest.raises(ConnectionError):
        connect(server)


# -- numbers ------------------------------------------------------------------------------------------------


def binary(array: np.ndarray, datatype: str, shape=None) -> bytes:
    head = {
        "name": "image",
        "datatype": datatype,
        "shape": list(shape or array.shape),
        "parameters": {"binary_data_size": array.nbytes},
    }
    text = json.dumps({"inputs": [head]}).encode()
    length = b"inference-header-content-length: %d" % len(text)
    return post(INFER, text + array.tobytes(), length)


def refusal(plane, request: bytes) -> tuple[int, bytes]:
    with connect(plane) as sock:
        sock.sendall(request)
        came = some(sock, lambda came: came.endswith(b"}"))
    return statuses(came)[0], came.rpartition(b"\r\n\r\n")[2]


def test_numbers_that_are_none_never_reach_the_model(forge, thread, kit):
    plane = thread()
    plane.admin.apply(kit.deployment(1, stable=(1, forge.tiny(datatype="FP32")))).raise_for_status()
    good = np.ones((1, 28, 28), "<f4")
    assert refusal(plane, binary(good, "FP32"))[0] == 200
    for bad in (np.nan, np.inf, -np.inf):
        spoilt = good.copy()
        spoilt[0, 27, 27] = bad
        status, text = refusal(plane, binary(spoilt, "FP32"))
        assert status == 400
        assert b"expected finite numbers" in text
    # Signalling and negative NaN, as bits.
    for bits in (0x7FA00000, 0xFFC00000, 0xFF800000):
        spoilt = good.copy()
        spoilt.view("<u4")[0, 0, 0] = bits
        assert refusal(plane, binary(spoilt, "FP32"))[0] == 400


def test_bytes_in_the_wrong_order_are_other_numbers_and_answered_as_such(forge, thread, kit):
    """Nothing in a tensor tells its byte order; the protocol's is little-endian, and nothing is guessed."""
    plane = thread()
    tiny = forge.tiny(datatype="FP32")
    plane.admin.apply(kit.deployment(1, stable=(1, tiny))).raise_for_status()
    slot = build(forge.state / "blobs", "meter-reader", 1, tiny.digest, 1)
    pixels = np.arange(784, dtype=">f4").reshape(1, 28, 28)
    status, text = refusal(plane, binary(pixels, "FP32"))
    assert status == 200
    logits = np.array(json.loads(text)["outputs"][0]["data"], np.float32)
    read = pixels.view("<f4")
    np.testing.assert_allclose(logits, slot.run(np.ascontiguousarray(read))[0][0], rtol=1e-6)
    assert not np.allclose(logits, slot.run(pixels.astype("<f4"))[0][0])
    # What becomes no number that way is refused.
    swapped = np.full((1, 28, 28), np.uint32(0x0000C07F), "<u4").view("<f4").byteswap()
    assert not np.isfinite(swapped).any()
    assert refusal(plane, binary(swapped, "FP32"))[0] == 400


SHAPES = [
    [0, 28, 28], [1, 0, 28], [1, 28, 28, 0], [-1, 28, 28], [1, 28, -28], [784], [], [1] * 5000,
    [2**31, 28, 28], [2**63 - 1, 28, 28], [2**63, 28, 28], [2**64 + 1, 28, 28], [10**300, 1, 1],
    [2**32, 2**32, 1], [1, 28, 2**62],
]  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES, ids=[str(shape)[:24] for shape in SHAPES])
def test_no_shape_makes_the_server_allocate(shared, shape):
    plane, _ = shared
    before = resident_bytes(os.getpid())
    status, text = refusal(plane, binary(np.zeros(784, np.uint8), "UINT8", shape or [-0]))
    assert status == 400
    assert b"expected" in text
    assert resident_bytes(os.getpid()) - before < 64 << 20
    assert refusal(plane, binary(np.zeros((1, 28, 28), np.uint8), "UINT8"))[0] == 200
