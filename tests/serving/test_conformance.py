"""NVIDIA's own client, over HTTP and gRPC, blocking and asyncio: every method that it has."""

import asyncio
import inspect
from functools import partial
from queue import Queue

import grpc
import numpy as np
import pytest
import tritonclient.grpc as rpc
import tritonclient.grpc.aio as rpc_aio
import tritonclient.http as http
import tritonclient.http.aio as http_aio
from google.protobuf.json_format import MessageToDict, ParseDict
from tritonclient.grpc import service_pb2 as pb
from tritonclient.utils import InferenceServerException

MODEL = "meter-reader"
OFFERED = {
    "is_server_live", "is_server_ready", "is_model_ready", "get_server_metadata", "get_model_metadata",
    "get_model_config", "get_model_repository_index", "load_model", "unload_model",
    "get_inference_statistics", "infer", "async_infer",
}  # fmt: skip
NOT_OFFERED = {
    "get_system_shared_memory_status": (),
    "register_system_shared_memory": ("r", "/k", 64),
    "unregister_system_shared_memory": (),
    "get_cuda_shared_memory_status": (),
    "register_cuda_shared_memory": ("r", b"aGFuZGxl", 0, 64),
    "unregister_cuda_shared_memory": (),
    "get_trace_settings": (),
    "update_trace_settings": (),
    "get_log_settings": (),
    "update_log_settings": ({"log_verbose_level": 1},),
}
STREAMS = {"start_stream", "stop_stream", "async_stream_infer", "stream_infer"}
THE_CLIENTS_OWN = {
    "close", "register_plugin", "unregister_plugin", "plugin", "generate_request_body", "parse_response_body",
}  # fmt: skip
FORMS = [
    (kind, binary_in, binary_out)
    for kind in ("http", "http.aio", "grpc", "grpc.aio")
    for binary_in in (True, False)
    for binary_out in (True, False, None)
    # gRPC has no JSON.
    if kind.startswith("http") or (binary_in and binary_out is not False)
]
MODULES = {"http": http, "http.aio": http_aio, "grpc": rpc, "grpc.aio": rpc_aio}


class Speaker:
    """One of the four clients, asked as if it blocked."""

    def __init__(self, kind: str, plane) -> None:
        self.kind, self.grpc, self.module = kind, kind.startswith("grpc"), MODULES[kind]
        self._runner = asyncio.Runner() if kind.endswith("aio") else None
        url = plane.grpc if self.grpc else f"127.0.0.1:{plane.port}"
        self.client = self.run(self._made(url)) if self._runner else self.module.InferenceServerClient(url)

    async def _made(self, url):
        return self.module.InferenceServerClient(url)

    def run(self, waited):
        return self._runner.run(waited) if self._runner else waited

    def ask(self, name: str, *given, **named):
        async def called():
            return await getattr(self.client, name)(*given, **named)

        return self.run(called()) if self._runner else getattr(self.client, name)(*given, **named)

    def told(self, name: str, kind, *given) -> dict:
        """Ask for something that has a message of its own; all dialects give the same dictionary."""
        if self.grpc:
            return MessageToDict(self.ask(name, *given))
        said = self.ask(name, *given)
        if kind is pb.ModelConfigResponse:
            said = {"config": said}
        if kind is pb.RepositoryIndexResponse:
            said = {"models": said}
        return MessageToDict(ParseDict(said, kind()))

    def tensor(self, x, **how):
        """Return an input; over gRPC there is no choice between JSON and binary."""
        given = self.module.InferInput("image", list(x.shape), "UINT8")
        given.set_data_from_numpy(x, **({} if self.grpc else how))
        return given

    def outputs(self, binary: bool, *names: str):
        return [
            self.module.InferRequestedOutput(name, **({} if self.grpc else {"binary_data": binary}))
            for name in names
        ]

    def infer(self, x, binary_in=True, **named):
        return self.ask("infer", MODEL, [self.tensor(x, binary_data=binary_in)], **named)

    def head(self, result) -> tuple[str, str, str]:
        """Return id, model and version of an answer."""
        said = result.get_response()
        if self.grpc:
            return said.id, said.model_name, said.model_version
        return said["id"], said["model_name"], said["model_version"]

    def refusal(self, name: str, *given, **named) -> tuple[str, str]:
        """Return status and text of a call that must be refused."""
        with pytest.raises(InferenceServerException) as caught:
            self.ask(name, *given, **named)
        return caught.value.status(), caught.value.message()

    def close(self) -> None:
        self.run(self.client.close())
        if self._runner:
            self._runner.close()


@pytest.fixture(params=list(MODULES))
def speaker(request, both):
    made = Speaker(request.param, both[0])
    yield made
    made.close()


@pytest.mark.parametrize("kind", MODULES)
def test_every_method_of_the_client_is_tried_here(kind):
    """Negative control of the whole file: a method that a new release brings is not silently left out."""
    client = MODULES[kind].InferenceServerClient
    has = {name for name, _ in inspect.getmembers(client, callable) if not name.startswith("_")}
    assert has - OFFERED - set(NOT_OFFERED) - STREAMS == has & THE_CLIENTS_OWN
    assert has >= (OFFERED - {"async_infer"}) | set(NOT_OFFERED)


def test_health(speaker):
    assert speaker.ask("is_server_live")
    assert speaker.ask("is_server_ready")
    assert speaker.ask("is_model_ready", MODEL)
    assert speaker.ask("is_model_ready", MODEL, "1")
    assert not speaker.ask("is_model_ready", MODEL, "2")
    assert not speaker.ask("is_model_ready", "other")


def test_metadata_and_configuration(speaker):
    server = speaker.told("get_server_metadata", pb.ServerMetadataResponse)
    assert server["name"] == "instar"
    assert "statistics" in server["extensions"]
    for version in ("", "1"):
        model = speaker.told("get_model_metadata", pb.ModelMetadataResponse, MODEL, version)
        assert model["versions"] == ["1"]
        assert model["inputs"] == [{"name": "image", "datatype": "UINT8", "shape": ["-1", "28", "28"]}]
        assert [each["name"] for each in model["outputs"]] == ["logits", "embedding"]
        config = speaker.told("get_model_config", pb.ModelConfigResponse, MODEL, version)["config"]
        assert (config["name"], config["maxBatchSize"]) == (MODEL, 32)
        assert config["input"] == [{"name": "image", "dataType": "TYPE_UINT8", "dims": ["28", "28"]}]


def test_the_repository_and_statistics(speaker, kit):
    index = speaker.told("get_model_repository_index", pb.RepositoryIndexResponse)
    assert index == {"models": [{"name": MODEL, "version": "1", "state": "READY"}]}

    def successes() -> list[int]:
        told = [
            speaker.told("get_inference_statistics", pb.ModelStatisticsResponse, *which)["modelStats"]
            for which in ((), (MODEL,), (MODEL, "1"))
        ]
        assert all(len(each) == 1 for each in told)
        return [int(each[0]["inferenceStats"]["success"].get("count", 0)) for each in told]

    before = successes()
    speaker.infer(kit.digits(1))
    assert [after - was for was, after in zip(before, successes(), strict=True)] == [1, 1, 1]


def test_all_four_tell_the_same(both):
    plane, _ = both
    questions = [
        ("get_server_metadata", pb.ServerMetadataResponse),
        ("get_model_metadata", pb.ModelMetadataResponse, MODEL),
        ("get_model_config", pb.ModelConfigResponse, MODEL),
        ("get_model_repository_index", pb.RepositoryIndexResponse),
        ("get_inference_statistics", pb.ModelStatisticsResponse, MODEL),
    ]
    told = []
    for kind in MODULES:
        speaker = Speaker(kind, plane)
        told.append([speaker.told(*question) for question in questions])
        speaker.close()
    assert told[0] == told[1] == told[2] == told[3]
    assert all(told[0])


@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
@pytest.mark.parametrize(("speaker", "binary_in", "binary_out"), FORMS, indirect=["speaker"])
def test_inference_in_all_forms(speaker, both, kit, binary_in, binary_out, compression):
    x = kit.digits(3)
    how = {"compression_algorithm": compression} if speaker.grpc else {
        "request_compression_algorithm": compression, "response_compression_algorithm": compression
    }  # fmt: skip
    wanted = None if binary_out is None else speaker.outputs(binary_out, "embedding", "logits")
    result = speaker.infer(x, binary_in, outputs=wanted, request_id="r1", **how)
    logits, embedding = both[1].expected(x)
    np.testing.assert_allclose(result.as_numpy("logits"), logits, atol=1e-4)
    np.testing.assert_allclose(result.as_numpy("embedding"), embedding, atol=1e-4)
    assert speaker.head(result) == ("r1", MODEL, "1")
    # Negative control: the numbers follow the input.
    other = speaker.infer(255 - x, binary_in, outputs=wanted, **how)
    assert not np.allclose(other.as_numpy("logits"), logits, atol=1e-4)


def test_the_parameters_that_the_client_knows(speaker, both, kit):
    x = kit.digits(1)
    result = speaker.infer(
        x,
        model_version="1",
        outputs=speaker.outputs(True, "logits"),
        priority=1,
        timeout=30_000_000,
        headers={"instar-route": "k"},
        parameters={"group": "meter-17", "unknown": 1.5, "flag": True},
    )
    assert result.as_numpy("embedding") is None
    np.testing.assert_allclose(result.as_numpy("logits"), both[1].expected(x)[0], atol=1e-4)
    assert speaker.head(result)[0]


def _tell(told: Queue, result, error) -> None:
    told.put(result if error is None else error)


def test_several_at_once(both, kit):
    x = kit.digits(8)
    for kind in ("http", "grpc"):
        speaker, told = Speaker(kind, both[0]), Queue()
        asked = [([speaker.tensor(x[n : n + 1])], {"request_id": str(n)}) for n in range(8)]
        if speaker.grpc:
            tell = partial(_tell, told)
            for inputs, named in asked:
                speaker.client.async_infer(MODEL, inputs, tell, **named)
            came = [told.get(timeout=30) for _ in asked]
        else:
            waited = [speaker.client.async_infer(MODEL, inputs, **named) for inputs, named in asked]
            came = [each.get_result() for each in waited]
        for result in came:
            n = int(speaker.head(result)[0])
            logits = both[1].expected(x[n : n + 1])[0]
            np.testing.assert_allclose(result.as_numpy("logits"), logits, atol=1e-4)
        assert len(came) == 8
        speaker.close()


def test_errors_come_as_the_clients_exception_with_a_status(speaker, kit):
    bad, missing = ("StatusCode.INVALID_ARGUMENT", "StatusCode.NOT_FOUND") if speaker.grpc else ("400", "404")
    x = speaker.tensor(kit.digits(1))
    other = speaker.module.InferInput("picture", [1, 28, 28], "UINT8")
    other.set_data_from_numpy(kit.digits(1))
    small = speaker.module.InferInput("image", [1, 27, 28], "UINT8")
    small.set_data_from_numpy(kit.digits(1)[:, 1:])
    many = speaker.tensor(kit.digits(33))
    classes = speaker.module.InferRequestedOutput("logits", class_count=3)
    shared = speaker.module.InferInput("image", [1, 28, 28], "UINT8")
    shared.set_shared_memory("region", 784)
    cases = [
        (bad, "expected input 'image', got 'picture'", ([other],), {}),
        (bad, "got [1, 27, 28]", ([small],), {}),
        (bad, "expected 1 to 32 rows, got 33", ([many],), {}),
        (bad, "got 2 inputs", ([x, other],), {}),
        (bad, "an extension that is not offered", ([x],), {"outputs": [classes]}),
        (bad, "'softmax'", ([x],), {"outputs": speaker.outputs(True, "softmax")}),
        (bad, "shared memory region", ([shared],), {}),
        (missing, "expected a version among ['1'], got '9'", ([x],), {"model_version": "9"}),
    ]
    for status, reason, given, named in cases:
        came = speaker.refusal("infer", MODEL, *given, **named)
        assert came[0] == status, came
        assert reason in came[1], came
    assert speaker.refusal("infer", "other", [x])[0] == missing
    assert speaker.refusal("get_model_metadata", MODEL, "9")[0] == missing
    assert speaker.refusal("get_model_config", "other")[0] == missing
    assert speaker.refusal("get_inference_statistics", "other")[0] == missing
    # Negative control: the base of every case is a good request.
    speaker.ask("infer", MODEL, [x])


def test_load_and_unload_are_for_instard_alone_here(speaker):
    forbidden = "StatusCode.PERMISSION_DENIED" if speaker.grpc else "403"
    for name in ("load_model", "unload_model"):
        status, text = speaker.refusal(name, MODEL)
        assert (status, "--repository-control" in text) == (forbidden, True)
    assert speaker.ask("is_model_ready", MODEL)


@pytest.mark.parametrize("kind", MODULES)
def test_load_and_unload_where_clients_may(kind, forge, thread, kit):
    plane = thread(grpc="127.0.0.1:0", repository_control=True)
    plane.admin.apply(kit.deployment(1, stable=(1, forge.tiny()))).raise_for_status()
    speaker = Speaker(kind, plane)
    speaker.ask("unload_model", MODEL)
    assert not speaker.ask("is_model_ready", MODEL)
    assert not speaker.ask("is_server_ready")
    status, _ = speaker.refusal("infer", MODEL, [speaker.tensor(kit.digits(1))])
    assert status == ("StatusCode.UNAVAILABLE" if speaker.grpc else "503")
    told = speaker.told("get_model_repository_index", pb.RepositoryIndexResponse)["models"]
    assert [(each["state"], each["reason"]) for each in told] == [("UNAVAILABLE", "unloaded by a client")]
    forbidden = "StatusCode.PERMISSION_DENIED" if speaker.grpc else "403"
    for brought in ({"config": "{}"}, {"config": "{}", "files": {"file:1/model.onnx": b"x"}}):
        status, text = speaker.refusal("load_model", MODEL, **brought)
        assert (status, "from the network" in text) == (forbidden, True)
    missing = "StatusCode.NOT_FOUND" if speaker.grpc else "404"
    assert speaker.refusal("load_model", "other")[0] == missing
    speaker.ask("load_model", MODEL)
    assert speaker.ask("is_model_ready", MODEL)
    speaker.infer(kit.digits(1))
    speaker.close()


@pytest.mark.parametrize("name", NOT_OFFERED)
def test_what_is_not_offered_is_a_clean_error(speaker, kit, name):
    status, text = speaker.refusal(name, *NOT_OFFERED[name])
    assert status in (("StatusCode.UNIMPLEMENTED",) if speaker.grpc else ("404", "405")), (status, text)
    speaker.infer(kit.digits(1))


def test_a_stream_is_a_clean_error(both, kit):
    plane, _ = both
    blocking, told = Speaker("grpc", plane), Queue()
    blocking.client.start_stream(partial(_tell, told))
    assert told.get(timeout=30).status() == "StatusCode.UNIMPLEMENTED"
    with pytest.raises(InferenceServerException):
        blocking.client.async_stream_infer(MODEL, [blocking.tensor(kit.digits(1))])
    blocking.client.stop_stream()
    blocking.close()
    waiting = Speaker("grpc.aio", plane)

    async def streamed():
        async def requests():
            yield {"model_name": MODEL, "inputs": [waiting.tensor(kit.digits(1))]}

        return [each async for each in waiting.client.stream_infer(requests())]

    # This client lets gRPC's own error through, and may notice the refusal only when it sends.
    with pytest.raises((grpc.RpcError, InferenceServerException), match=r"UNIMPLEMENTED|INTERNAL"):
        waiting.run(streamed())
    waiting.close()
