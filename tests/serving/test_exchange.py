"""The gRPC door: calls that leave, wait, dawdle or come too late; its bounds, its opening and its end."""

import asyncio
import contextlib
import subprocess
import sys
import threading

import grpc
import httpx
import numpy as np
import pytest
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc as stubs

from daemon.serving.exchange import DESK, HANDS, MOST_AT_DESK, SCARCE_S, Exchange, Pool, Service
from policies.clock import StandingClock
from tests.serving.calls import CODE, MODEL, counts, message, refusal, until

MOST_WAITING = 64

# -- calls that leave, wait, or come too late ---------------------------------------------------------------


class Gate:
    """Holds every run of the model until it is opened."""

    def __init__(self, plane) -> None:
        self.entered, self.open = threading.Semaphore(0), threading.Event()
        self._engine = plane.plane.engine
        self._answer = self._engine.answer
        self._engine.answer = self._held

    def _held(self, ask, received):
        self.entered.release()
        assert self.open.wait(60)
        return self._answer(ask, received)

    def fill(self, stub, calls: int = HANDS):
        """Have so many calls run, and return them."""
        futures = [stub.ModelInfer.future(message()) for _ in range(calls)]
        for _ in futures:
            assert self.entered.acquire(timeout=30)
        return futures


@pytest.fixture
def held(forge, thread, kit):
    """A data plane whose runs wait: (plane, gate, stub)."""
    plane = thread(grpc="127.0.0.1:0", max_waiting=HANDS + 2)
    plane.admin.apply(kit.deployment(1, stable=(1, forge.tiny()))).raise_for_status()
    gate = Gate(plane)
    with grpc.insecure_channel(plane.grpc) as channel:
        yield plane, gate, stubs.GRPCInferenceServiceStub(channel)
        gate.open.set()


def test_a_cancelled_call_is_not_run(held):
    plane, gate, stub = held
    running = gate.fill(stub)
    queued = stub.ModelInfer.future(message())
    until(lambda: plane.plane.exchange.open == HANDS + 1)
    queued.cancel()
    kept = stub.ModelInfer.future(message())
    until(lambda: plane.plane.exchange.open == HANDS + 2)
    gate.open.set()
    assert all(each.result(timeout=30).model_version == "1" for each in [*running, kept])
    until(lambda: plane.plane.exchange.open == 0)
    # The gate saw those that ran and, as a control, the one that was queued and not cancelled.
    assert sum(gate.entered.acquire(blocking=False) for _ in range(5)) == 1
    assert counts(plane) == [HANDS + 1, 1, 0, 0, 0]


def test_a_call_whose_deadline_passes_in_the_queue_is_not_run(held):
    plane, gate, stub = held
    running = gate.fill(stub)
    late = stub.ModelInfer.future(message(), timeout=0.05)
    assert late.exception(timeout=30).code() is CODE.DEADLINE_EXCEEDED
    gate.open.set()
    assert all(each.result(timeout=30) for each in running)
    until(lambda: plane.plane.exchange.open == 0)
    assert counts(plane) == [HANDS, 0, 1, 0, 0]
    # Negative control: the same call with time enough is answered.
    assert stub.ModelInfer(message(), timeout=30).model_version == "1"


def test_the_parameter_timeout_is_kept_and_told(held, kit):
    plane, gate, stub = held
    running = gate.fill(stub)
    short, long = message(), message()
    short.parameters["timeout"].int64_param = 1
    long.parameters["timeout"].int64_param = 60_000_000
    calls = [stub.ModelInfer.future(each) for each in (short, long)]
    until(lambda: plane.plane.exchange.open == HANDS + 2)
    gate.open.set()
    error = calls[0].exception(timeout=30)
    assert (error.code(), "expected an answer within 1e-06 s" in error.details()) == (
        CODE.DEADLINE_EXCEEDED,
        True,
    )
    assert calls[1].result(timeout=30).model_version == "1"
    assert all(each.result(timeout=30) for each in running)
    plane.plane.spool.flush(last=True)
    block = np.concatenate(kit.read_spool(plane.settings.spool, "telemetry"))
    assert sorted(block["outcome"].tolist()) == [0] * (HANDS + 1) + [3]


def test_too_many_are_turned_away_at_once_and_health_is_still_told(held):
    plane, gate, stub = held
    waiting = [*gate.fill(stub), *(stub.ModelInfer.future(message()) for _ in range(2))]
    until(lambda: plane.plane.exchange.open == HANDS + 2)
    with pytest.raises(grpc.RpcError) as caught:
        stub.ModelInfer(message(), timeout=30)
    assert caught.value.code() is CODE.RESOURCE_EXHAUSTED
    assert ("grpc-retry-pushback-ms", "1000") in [tuple(each) for each in caught.value.trailing_metadata()]
    assert counts(plane)[3] == 1
    assert stub.ServerLive(pb.ServerLiveRequest(), timeout=30).live
    assert plane.metrics()[f'instar_serve_in_flight_requests{{model="{MODEL}"}}'] == HANDS + 2
    gate.open.set()
    assert all(each.result(timeout=30) for each in waiting)
    until(lambda: plane.plane.exchange.open == 0)
    stub.ModelInfer(message())
    assert counts(plane) == [HANDS + 3, 0, 0, 1, 0]


def test_a_drain_answers_what_is_open_and_takes_nothing_new(held):
    plane, gate, stub = held
    running = gate.fill(stub, 2)
    stopper = threading.Thread(target=plane.stop)
    stopper.start()
    until(lambda: plane.plane.front.draining)

    def refused() -> bool:
        try:
            return not stub.ServerLive(pb.ServerLiveRequest(), timeout=30).live
        except grpc.RpcError as error:
            return error.code() is CODE.UNAVAILABLE

    until(refused)
    assert not any(each.done() for each in running)
    gate.open.set()
    assert [each.result(timeout=30).model_version for each in running] == ["1", "1"]
    stopper.join(30)
    assert not stopper.is_alive()


def test_a_flood_is_turned_away_whole_and_leaves_nothing_behind(switch):
    made, channel = switch
    made.go_on.clear()
    running = [channel.unary_unary("/t/Run").future(b"x") for _ in range(MOST_WAITING)]
    until(lambda: made.exchange.open == MOST_WAITING)
    # Nobody at the desk has time for them either; and there are more of them than gRPC's own limit, but not
    # more on a connection than it may have streams.
    busy = Dawdlers(channel, "/t/Ask", DESK)
    until(lambda: len(made.pool("/t/Ask").reading) == DESK)
    with contextlib.ExitStack() as stack:
        own = [("grpc.use_local_subchannel_pool", 1)]
        others = [stack.enter_context(grpc.insecure_channel(made.address, own)) for _ in range(4)]
        flood = [
            other.unary_unary("/t/Run").future(b"y") for _ in range(MOST_AT_DESK // 2) for other in others
        ]
        errors = [each.exception(timeout=30) for each in flood]
    assert {(each.code(), each.details().startswith("expected at most")) for each in errors} == {
        (CODE.RESOURCE_EXHAUSTED, True)
    }
    assert len(made.lost) == 2 * MOST_AT_DESK
    assert made.pool("/t/Ask").open == DESK
    busy.send()
    made.go_on.set()
    assert [each.result(timeout=30) for each in [*busy.calls, *running]] == [b"late"] * DESK + [
        b"x"
    ] * MOST_WAITING
    until(lambda: made.exchange.open == 0 and made.pool("/t/Ask").open == 0)
    assert channel.unary_unary("/t/Run")(b"z", timeout=30) == b"z"


# -- clients that dawdle ------------------------------------------------------------------------------------


class Dawdlers:
    """Calls that are opened, and whose message does not come before ``send``; perhaps never."""

    def __init__(self, channel, method: str, calls: int) -> None:
        self._sent = threading.Event()
        self.calls = [channel.stream_unary(method).future(self._later()) for _ in range(calls)]

    def _later(self):
        assert self._sent.wait(60)
        yield b"late"

    def send(self) -> None:
        self._sent.set()


class Switch:
    """An exchange on a clock that stands, before a model that waits where it is told to."""

    def __init__(self) -> None:
        self.clock, self.lost, self.received = StandingClock(), [], []
        self.entered, self.go_on = threading.Semaphore(0), threading.Event()
        self.go_on.set()
        service = Service(
            {"/t/Run": self._run, "/t/Ask": lambda call: call.raw},
            "/t/Run",
            busy=self.lost.append,
            lost=self.lost.append,
        )
        limits = {"max_body": 1 << 16, "max_waiting": MOST_WAITING, "max_connections": 8}
        self.exchange = Exchange(service, self.clock, head_s=5, body_s=10, idle_s=60, **limits)
        self.address = self.exchange.start("127.0.0.1:0")

    def _run(self, call) -> bytes:
        self.received.append(call.received)
        self.entered.release()
        assert self.go_on.wait(60)
        return call.raw

    def pool(self, method: str):
        return self.exchange._hands if method == "/t/Run" else self.exchange._desk


@pytest.fixture
def switch():
    made = Switch()
    with grpc.insecure_channel(made.address) as channel:
        yield made, channel
        made.go_on.set()
    asyncio.run(made.exchange.drain(0.0))


def test_the_wait_for_a_thread_counts_and_the_wait_for_a_slow_client_does_not(switch):
    made, channel = switch
    slow = Dawdlers(channel, "/t/Run", 1)
    until(lambda: len(made.pool("/t/Run").reading) == 1)
    made.clock.advance(0.5)
    slow.send()
    assert slow.calls[0].result(timeout=30) == b"late"
    assert made.received == [0.5]
    made.go_on.clear()
    made.entered.acquire(timeout=30)
    running = [channel.unary_unary("/t/Run").future(b"x") for _ in range(HANDS)]
    for _ in running:
        assert made.entered.acquire(timeout=30)
    queued = channel.unary_unary("/t/Run").future(b"q")
    until(lambda: made.exchange.open == HANDS + 1)
    made.clock.advance(7.0)
    made.go_on.set()
    assert queued.result(timeout=30) == b"q"
    assert all(each.result(timeout=30) for each in running)
    assert made.received == [0.5] * (HANDS + 2)


@pytest.mark.parametrize("method", ["/t/Run", "/t/Ask"])
def test_a_message_that_does_not_come_costs_its_thread_for_a_bounded_time(switch, method):
    made, channel = switch
    pool = made.pool(method)
    slow = Dawdlers(channel, method, 1)
    until(lambda: len(pool.reading) == 1)
    made.clock.advance(SCARCE_S + 0.1)
    made.exchange.sweep()
    # Negative control: while threads are left, a client has all its time.
    assert not slow.calls[0].done()
    assert channel.unary_unary(method)(b"x", timeout=30) == b"x"
    made.clock.advance(10.0)
    assert slow.calls[0].exception(timeout=30).code() is CODE.CANCELLED
    until(lambda: not pool.reading)

    crowd = Dawdlers(channel, method, pool.threads)
    until(lambda: len(pool.reading) == pool.threads)
    waiting = channel.unary_unary(method).future(b"y", timeout=30)
    made.clock.advance(SCARCE_S / 2)
    made.exchange.sweep()
    assert not any(each.done() for each in crowd.calls)
    made.clock.advance(SCARCE_S)
    assert waiting.result(timeout=30) == b"y"
    assert [each.exception(timeout=30).code() for each in crowd.calls] == [CODE.CANCELLED] * pool.threads
    until(lambda: pool.open == 0)
    assert made.lost == (["client_error"] * (1 + pool.threads) if method == "/t/Run" else [])
    slow.send()
    crowd.send()


def test_a_pool_never_starves_while_half_of_it_is_free():
    pool = Pool(4, "t")
    pool.reading = {"a": 0.0}
    assert pool.dawdlers(SCARCE_S + 0.1, 10.0) == []
    pool.reading["b"] = 1.0
    assert pool.dawdlers(SCARCE_S + 0.1, 10.0) == ["a"]
    pool.shutdown()


# -- the process --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_the_process_opens_and_drains_its_grpc_door(forge, process, kit, tmp_path, kind):
    server = process("--grpc", "127.0.0.1:0" if kind == "tcp" else f"unix:{tmp_path}/g.sock")
    if kind == "unix":
        assert (tmp_path / "g.sock").stat().st_mode & 0o777 == 0o600
    else:
        assert not server.grpc.endswith(":0")
    server.admin.apply(kit.deployment(1, stable=(1, forge.tiny()))).raise_for_status()
    with grpc.insecure_channel(server.grpc) as channel:
        stub = stubs.GRPCInferenceServiceStub(channel)
        assert stub.ModelInfer(message(), timeout=30).model_version == "1"
        assert stub.ServerReady(pb.ServerReadyRequest(), timeout=30).ready
    assert server.end() == 0
    assert "drained" in "".join(server.log)
    block = np.concatenate(kit.read_spool(forge.state / "spool", "telemetry"))
    assert block["outcome"].tolist() == [0]


def test_without_the_setting_nothing_of_grpc_is_loaded(process):
    code = "import sys, daemon.serving.main; print(*sorted({m.split('.')[0] for m in sys.modules}))"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"grpc", "google", "tritonclient"} & set(loaded)
    assert process().grpc == ""


def refused_start(tmp_path, grpc_address: str, missing: str = "") -> tuple[int, str]:
    code = f"import sys; sys.modules.update({{m: None for m in {missing.split()!r}}}); "
    flags = ["--state", str(tmp_path / "other"), "--model", "m", "--listen", "127.0.0.1:0"]
    command = [sys.executable, "-c", code + "import daemon.serving.main as m; m.main()", *flags]
    done = subprocess.run(
        [*command, "--metrics", "127.0.0.1:0", "--grpc", grpc_address],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize("missing", ["grpc", "tritonclient", "google.protobuf.message"])
def test_a_part_that_is_not_installed_is_named(tmp_path, missing):
    status, text = refused_start(tmp_path, "127.0.0.1:0", missing)
    assert status == 78, text
    assert "pip install 'instar[grpc]'" in text


def test_a_taken_grpc_port_is_named(process, tmp_path):
    taken = process("--grpc", "127.0.0.1:0").grpc
    status, text = refused_start(tmp_path, taken)
    assert status == 78, text
    assert f"expected to listen on {taken}" in text
    # Negative control: nothing is missing, so it was the port.
    assert "instar[grpc]" not in text


def test_a_message_may_be_as_large_as_the_settings_say(forge, process, kit):
    server = process("--grpc", "127.0.0.1:0", "--max-body-bytes", "65536")
    server.admin.apply(kit.deployment(1, stable=(1, forge.tiny()))).raise_for_status()

    def peak_mb() -> float:
        status = (forge.state / f"/proc/{server.popen.pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) / 1024

    with grpc.insecure_channel(server.grpc) as channel:
        stub = stubs.GRPCInferenceServiceStub(channel)
        stub.ModelInfer(message(kit.digits(32)))
        before = peak_mb()
        large = message()
        large.raw_input_contents[0] = bytes(60 << 20)
        # A sixteenth of a megabyte on the wire: the bound holds after decompression too.
        code, text = refusal(stub.ModelInfer, large, compression=grpc.Compression.Gzip)
        assert (code, "ecompressed" in text) == (CODE.RESOURCE_EXHAUSTED, True), text
        large.raw_input_contents[0] = bytes(65536)
        assert refusal(stub.ModelInfer, large)[0] is CODE.RESOURCE_EXHAUSTED
        stub.ModelInfer(message())
        assert peak_mb() - before < 30
    text = httpx.get(server.metrics_base + "/metrics").text
    assert 'outcome="client_error"} 2.0' in text
    assert server.end() == 0
