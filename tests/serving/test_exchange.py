"""The gRPC door before real clients: calls that leave, wait or come too late; its opening and its end."""

import contextlib
import subprocess
import sys
import threading
import time

import grpc
import httpx
import numpy as np
import pytest
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc as stubs

from daemon.serving import engine
from tests.serving.calls import CODE, MODEL, counts, message, refusal, until

MOST_WAITING = 10

# -- calls that leave, wait, or come too late ---------------------------------------------------------------


class Hold:
    """Holds every run of the model until it is opened; all runs are made in the engine's thread."""

    def __init__(self, plane) -> None:
        self.entered, self.open = threading.Semaphore(0), threading.Event()
        self.engine = plane.plane.engine
        self._compute, self.engine._compute = self.engine._compute, self._held

    def _held(self, *given):
        self.entered.release()
        assert self.open.wait(60)
        return self._compute(*given)

    def fill(self, stub, calls: int = 1):
        """Have one call run and the others wait for it; return them."""
        futures = [stub.ModelInfer.future(message())]
        assert self.entered.acquire(timeout=30)
        futures += [stub.ModelInfer.future(message()) for _ in range(calls - 1)]
        self.waits(calls)
        return futures

    def waits(self, calls: int) -> None:
        until(lambda: self.engine.open == calls)


@pytest.fixture
def held(forge, thread, kit, monkeypatch):
    """A data plane whose runs wait: (plane, hold, stub)."""
    plane = thread(grpc="127.0.0.1:0", max_waiting=MOST_WAITING)
    plane.admin.apply(kit.deployment(1, stable=(1, forge.tiny()))).raise_for_status()
    monkeypatch.setattr(engine, "INLINE_S", -1.0)
    hold = Hold(plane)
    with grpc.insecure_channel(plane.grpc) as channel:
        yield plane, hold, stubs.GRPCInferenceServiceStub(channel)
        hold.open.set()


def test_a_cancelled_call_is_not_run(held):
    plane, hold, stub = held
    running = hold.fill(stub)
    queued, kept = stub.ModelInfer.future(message()), stub.ModelInfer.future(message())
    hold.waits(3)
    (line,) = plane.plane.exchange._open
    queued.cancel()
    until(lambda: len(line._calls) == 2)
    hold.open.set()
    assert all(each.result(timeout=30).model_version == "1" for each in [*running, kept])
    hold.waits(0)
    assert counts(plane) == [2, 1, 0, 0, 0]


def test_a_call_whose_deadline_passes_in_the_queue_is_not_run(held):
    plane, hold, stub = held
    running = hold.fill(stub)
    began = time.monotonic()
    late = stub.ModelInfer.future(message(), timeout=0.1)
    assert late.exception(timeout=30).code() is CODE.DEADLINE_EXCEEDED
    until(lambda: time.monotonic() > began + 0.2)
    hold.open.set()
    assert all(each.result(timeout=30) for each in running)
    hold.waits(0)
    assert counts(plane) == [1, 0, 1, 0, 0]
    # Negative control: the same call with time enough is answered.
    assert stub.ModelInfer(message(), timeout=30).model_version == "1"


def test_the_parameter_timeout_is_kept_and_told(held, kit):
    plane, hold, stub = held
    running = hold.fill(stub)
    short, long = message(), message()
    short.parameters["timeout"].int64_param = 1
    long.parameters["timeout"].int64_param = 60_000_000
    calls = [stub.ModelInfer.future(each) for each in (short, long)]
    hold.waits(2)
    hold.open.set()
    error = calls[0].exception(timeout=30)
    assert (error.code(), "expected an answer within 1e-06 s" in error.details()) == (
        CODE.DEADLINE_EXCEEDED,
        True,
    )
    assert calls[1].result(timeout=30).model_version == "1"
    assert all(each.result(timeout=30) for each in running)
    plane.plane.spool.flush(last=True)
    block = np.concatenate(kit.read_spool(plane.settings.spool, "telemetry"))
    assert sorted(block["outcome"].tolist()) == [0] * 2 + [3]


def test_too_many_are_turned_away_at_once_and_health_is_still_told(held):
    plane, hold, stub = held
    waiting = hold.fill(stub, MOST_WAITING)
    with pytest.raises(grpc.RpcError) as caught:
        stub.ModelInfer(message(), timeout=30)
    assert caught.value.code() is CODE.RESOURCE_EXHAUSTED
    assert ("grpc-retry-pushback-ms", "1000") in [tuple(each) for each in caught.value.trailing_metadata()]
    assert counts(plane)[3] == 1
    assert stub.ServerLive(pb.ServerLiveRequest(), timeout=30).live
    told = plane.metrics()
    assert told[f'instar_serve_in_flight_requests{{model="{MODEL}"}}'] == MOST_WAITING
    assert told[f'instar_serve_open_connections{{model="{MODEL}"}}'] >= 1
    hold.open.set()
    assert all(each.result(timeout=30) for each in waiting)
    hold.waits(0)
    stub.ModelInfer(message())
    assert counts(plane) == [MOST_WAITING + 1, 0, 0, 1, 0]


def test_a_flood_is_turned_away_whole_and_leaves_nothing_behind(held):
    plane, hold, stub = held
    waiting = hold.fill(stub, MOST_WAITING)
    own = [("grpc.use_local_subchannel_pool", 1)]
    with contextlib.ExitStack() as stack:
        others = [stack.enter_context(grpc.insecure_channel(plane.grpc, own)) for _ in range(4)]
        crowd = [stubs.GRPCInferenceServiceStub(other) for other in others]
        flood = [each.ModelInfer.future(message()) for _ in range(100) for each in crowd]
        errors = [each.exception(timeout=30) for each in flood]
        assert {(each.code(), each.details().startswith("expected at most")) for each in errors} == {
            (CODE.RESOURCE_EXHAUSTED, True)
        }
        assert stub.ServerLive(pb.ServerLiveRequest(), timeout=30).live
    hold.open.set()
    assert all(each.result(timeout=30) for each in waiting)
    hold.waits(0)
    until(lambda: plane.plane.exchange.count == 1)
    assert stub.ModelInfer(message(), timeout=30).model_version == "1"
    assert counts(plane) == [MOST_WAITING + 1, 0, 0, 400, 0]


def test_a_drain_answers_what_is_open_and_takes_nothing_new(held):
    plane, hold, stub = held
    running = hold.fill(stub, 2)
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
    hold.open.set()
    assert [each.result(timeout=30).model_version for each in running] == ["1", "1"]
    stopper.join(30)
    assert not stopper.is_alive()


def test_calls_of_one_turn_share_a_run_with_one_another_and_with_rest(held, kit):
    plane, hold, stub = held
    running = hold.fill(stub, 3)
    over_rest = []
    asked = threading.Thread(target=lambda: over_rest.append(plane.infer(kit.digits(1))))
    asked.start()
    hold.waits(4)
    hold.open.set()
    assert all(each.result(timeout=30) for each in running)
    asked.join(30)
    assert over_rest[0].status_code == 200
    # One ran alone and was waited for: the other three made one run.
    assert plane.metrics()[f'instar_serve_batch_size_count{{model="{MODEL}"}}'] == 2


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
    assert not {"grpc", "google", "tritonclient", "h2"} & set(loaded)
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


@pytest.mark.parametrize("missing", ["grpc", "tritonclient", "google.protobuf.message", "h2", "hpack"])
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
        assert (code, "after decompression" in text) == (CODE.RESOURCE_EXHAUSTED, True), text
        large.raw_input_contents[0] = bytes(65536)
        assert refusal(stub.ModelInfer, large)[0] is CODE.RESOURCE_EXHAUSTED
        stub.ModelInfer(message())
        assert peak_mb() - before < 30
    text = httpx.get(server.metrics_base + "/metrics").text
    assert 'outcome="client_error"} 2.0' in text
    assert server.end() == 0
