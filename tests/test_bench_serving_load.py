"""What the serving benchmarks ask, and whom: right requests, checked answers, honest bursts."""

import contextlib
import importlib.util
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import grpc
import numpy as np
import onnx
import pytest
from tritonclient.grpc import service_pb2

from benchmarks.serving import environments, load, models, quiet, raw
from benchmarks.serving.asks import FRAME_BYTES, GRPC_METHOD, HEADER_LENGTH, Ask, Form, ask, check, logits_of
from benchmarks.serving.course import grpc_answer
from benchmarks.serving.load import Burst, Door
from policies.errors import PermanentError

DOOR = Door("127.0.0.1:1", os.getpid())
JSON_HEADERS = {"Content-Type": "application/json"}
H2LOAD = """finished in 3.00s, 1000.50 req/s, 435.56KB/s
requests: 3002 total, 3002 started, 3002 done, 3002 succeeded, {failed} failed, 0 errored, 0 timeout
status codes: {good} 2xx, 0 3xx, 0 4xx, 0 5xx
traffic: 871.13KB (892037) total, 12.76KB (13062) headers (space savings 96.21%), 319.88KB ({data}) data
"""


# -- models and requests ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "count"), [("mlp", 535_818), ("conv", 289_226)])
def test_the_models_are_the_same_by_seed_and_of_the_size_that_is_told(name: str, count: int) -> None:
    made = models.make_bundle(name)
    assert made == models.make_bundle(name)
    assert made != models.make_bundle(name, seed=1)
    assert models.params(onnx.load_from_string(made)) == count


@pytest.mark.parametrize("name", list(models.GRAPHS))
def test_the_models_tell_images_apart(name: str) -> None:
    made = models.make_bundle(name)
    one, other = (models.answer(made, models.digit(seed)) for seed in (1, 2))
    assert one.shape == (1, models.CLASSES)
    assert np.abs(one - other).max() > 1e-3


def test_a_json_request_says_the_very_numbers_of_the_image() -> None:
    asked = ask(Form.JSON, "mlp", models.digit(1))
    message = json.loads(asked.body)
    came = np.array(message["inputs"][0]["data"], np.float32).reshape(message["inputs"][0]["shape"])
    assert np.array_equal(came, models.digit(1))
    assert message["outputs"] == [{"name": "logits"}]
    assert 5_300 < len(asked.body) < 5_700


def test_a_binary_request_has_the_image_behind_its_header() -> None:
    asked = ask(Form.BINARY, "mlp", models.digit(1))
    head = int(asked.headers[HEADER_LENGTH])
    assert json.loads(asked.body[:head])["inputs"][0]["parameters"] == {"binary_data_size": 3136}
    assert asked.body[head:] == models.digit(1).tobytes()


def test_a_grpc_request_is_a_message_of_the_published_proto() -> None:
    asked = ask(Form.GRPC, "conv", models.digit(1))
    flag, length, raw_message = (
        asked.body[0],
        int.from_bytes(asked.body[1:5], "big"),
        asked.body[FRAME_BYTES:],
    )
    assert (flag, length, asked.path) == (0, len(raw_message), GRPC_METHOD)
    message = service_pb2.ModelInferRequest.FromString(raw_message)
    (tensor,), (output,) = message.inputs, message.outputs
    assert (message.model_name, output.name) == ("conv", "logits")
    assert (tensor.name, tensor.datatype, list(tensor.shape)) == ("image", "FP32", [1, 1, 28, 28])
    assert list(message.raw_input_contents) == [models.digit(1).tobytes()]


@contextlib.contextmanager
def grpc_server(answer: service_pb2.ModelInferResponse | None) -> Iterator[Door]:
    """Answer every call so; refuse it if None."""

    def read(_request: bytes, context: grpc.ServicerContext) -> bytes:
        if answer is None:
            context.abort(grpc.StatusCode.NOT_FOUND, "no such model")
            raise AssertionError
        return bytes(answer.SerializeToString())

    server = grpc.server(ThreadPoolExecutor(1))
    method = {GRPC_METHOD.rpartition("/")[2]: grpc.unary_unary_rpc_method_handler(read)}
    service = GRPC_METHOD.split("/")[1]
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, method),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield Door(f"127.0.0.1:{port}", os.getpid())
    finally:
        server.stop(None).wait()


def test_a_grpc_answer_is_read_from_either_place() -> None:
    wanted = np.arange(10, dtype="<f4").reshape(1, 10)
    inside, behind = service_pb2.ModelInferResponse(), service_pb2.ModelInferResponse()
    inside.outputs.add(name="logits").contents.fp32_contents.extend(wanted.ravel())
    behind.raw_output_contents.append(wanted.tobytes())
    for answer in (inside, behind):
        with grpc_server(answer) as door:
            came, frame_bytes = grpc_answer(door, ask(Form.GRPC, "mlp", models.digit(1)))
        assert np.array_equal(came, wanted)
        assert frame_bytes == FRAME_BYTES + answer.ByteSize()


@pytest.mark.parametrize(
    ("answer", "words"),
    [(None, "expected a gRPC answer"), (service_pb2.ModelInferResponse(), "got 0 numbers")],
    ids=["refused", "empty"],
)
def test_a_grpc_door_that_gives_no_logits_is_refused(
    answer: service_pb2.ModelInferResponse | None, words: str
) -> None:
    with grpc_server(answer) as door, pytest.raises(PermanentError, match=words):
        grpc_answer(door, ask(Form.GRPC, "mlp", models.digit(1)))


def test_the_handlers_shape_is_read_back_as_the_same_numbers() -> None:
    v2 = peer_module("v2.py")
    wanted = np.arange(10, dtype=np.float32).reshape(1, 10) / 3
    message = json.loads(ask(Form.JSON, "mlp", models.digit(3)).body)
    assert np.array_equal(v2.array(message), models.digit(3))
    assert np.array_equal(logits_of(json.dumps(v2.answer("mlp", wanted)).encode(), None), wanted)


def test_a_binary_answer_is_read_behind_its_header() -> None:
    wanted = np.arange(10, dtype="<f4")
    head = b'{"outputs":[{"name":"logits","parameters":{"binary_data_size":40}}]}'
    assert np.array_equal(logits_of(head + wanted.tobytes(), str(len(head)))[0], wanted)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b'{"error":"no"}',
        b'{"outputs":[{"name":"x"}]}',
        b'{"outputs":[{"name":"logits","data":[1]}]}',
    ],
)
def test_an_answer_without_logits_is_refused_in_words(body: bytes) -> None:
    with pytest.raises(PermanentError, match="expected an answer with logits"):
        logits_of(body, None)


def test_another_answer_than_the_runtimes_is_refused() -> None:
    right = np.ones((1, 10), np.float32)
    check("a peer", right + 1e-6, right)
    for wrong in (right + 1e-2, np.full_like(right, np.nan), np.ones((2, 10), np.float32)):
        with pytest.raises(PermanentError, match="expected a peer to answer"):
            check("a peer", wrong, right)


# -- bursts -----------------------------------------------------------------------------------------------


def stub(folder: Path, name: str, output: str) -> None:
    """Put a program on the path that prints and ends."""
    (folder / f"{name}.out").write_text(output)
    program = folder / name
    program.write_text(f"#!/bin/sh\ncat {folder / name}.out\n")
    program.chmod(0o755)


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return tmp_path


def wrk(**told: int) -> str:
    usual = {
        "requests": 300,
        "duration_us": 3_000_000,
        "refused": 0,
        "broken": 0,
        "p50_us": 500,
        "p99_us": 900,
    }
    return "Running 3s test\n" + json.dumps(usual | told) + "\n"


def test_a_burst_is_what_the_load_generator_counted(path: Path) -> None:
    stub(path, "wrk", wrk())
    burst = load.rest(DOOR, Ask("/", JSON_HEADERS, b""), path / "body", 1, 3)
    assert (burst.rate, burst.p50_ms, burst.p99_ms) == (100.0, 0.5, 0.9)


@pytest.mark.parametrize("told", [{"refused": 1}, {"broken": 1}, {"requests": 0}])
def test_a_burst_with_one_wrong_answer_is_no_measurement(path: Path, told: dict[str, int]) -> None:
    stub(path, "wrk", wrk(**told))
    with pytest.raises(PermanentError, match=r"expected 127\.0\.0\.1:1 to answer every request"):
        load.rest(DOOR, Ask("/", JSON_HEADERS, b""), path / "body", 1, 3)


def test_a_load_generator_that_says_nothing_is_refused(path: Path) -> None:
    stub(path, "wrk", "unable to connect\n")
    with pytest.raises(PermanentError, match="JSON object as wrk's last line, got 'unable to connect'"):
        load.rest(DOOR, Ask("/", JSON_HEADERS, b""), path / "body", 1, 3)


def test_a_missing_load_generator_is_named_with_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        PermanentError, match=r"wrk \(apt-get install wrk\), h2load \(apt-get install nghttp2-client\)"
    ):
        load.check_tools()
    for tool in load.TOOLS:
        stub(tmp_path, tool, "")
    load.check_tools()


def test_the_counts_of_a_grpc_burst_are_read() -> None:
    told = load.read_h2load(H2LOAD.format(failed=0, good=3002, data=3002 * 77))
    assert (told["rate"], told["done"], told["data_bytes"]) == (1000.5, 3002, 3002 * 77)
    load.check_h2load(told, 77, "a peer")
    with pytest.raises(
        PermanentError, match="expected rate, done, succeeded, failed, data_bytes from h2load"
    ):
        load.read_h2load("could not connect")


@pytest.mark.parametrize(
    "wrong",
    [{"failed": 1}, {"good": 3001}, {"data": 3002 * 77 // 2}, {"data": 0}],
    ids=["lost", "refused by HTTP", "half refused by gRPC", "all refused by gRPC"],
)
def test_a_grpc_refusal_is_seen_though_http_calls_it_a_success(wrong: dict[str, int]) -> None:
    told = load.read_h2load(H2LOAD.format(**{"failed": 0, "good": 3002, "data": 3002 * 77} | wrong))
    with pytest.raises(PermanentError, match="expected a peer to answer every request with 77 bytes"):
        load.check_h2load(told, 77, "a peer")


@dataclass(frozen=True)
class Try:
    others: float
    result: float


@pytest.mark.parametrize(
    ("tries", "kept", "made"),
    [([(0.1, 5.0), (0.0, 9.0)], 5.0, 1), ([(0.9, 9.0), (0.2, 1.0), (0.5, 7.0), (0.0, 8.0)], 1.0, 3)],
    ids=["a quiet one is enough", "the least disturbed of three"],
)
def test_the_kept_try_is_chosen_by_what_others_had(
    tries: list[tuple[float, float]], kept: float, made: int
) -> None:
    left = [Try(*one) for one in tries]
    assert quiet.calmest(lambda: left.pop(0)).result == kept
    assert len(tries) - len(left) == made


def test_what_others_had_leaves_out_the_server_and_the_load_generator(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    began = quiet.Watch(at=0.0, busy_s=100.0, ours_s=10.0)
    now = quiet.Watch(at=2.0, busy_s=104.0, ours_s=11.0)
    monkeypatch.setattr(quiet.Watch, "start", classmethod(lambda cls: now))
    assert began.others(server_s=1.0) == 1.0
    assert began.others(server_s=0.0) == 1.5
    assert began.others(server_s=9.0) == 0.0


def test_the_runtime_alone_is_measured_by_its_own_clock() -> None:
    told = raw.measure(models.make_bundle("mlp"), 0.0, 0.02)
    assert set(told) == {"rate", "p50_ms", "p99_ms", "cpu_us"}
    assert told["p50_ms"] <= told["p99_ms"]
    assert Burst(**told, others=0.0).rate > 0


def peer_module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location("peer_module", environments.SCRIPTS / name)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
