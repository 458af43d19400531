"""gRPC: messages that break the contract, and the same slots, answers and records as over REST."""

from itertools import pairwise

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc as stubs

from policies.telemetry import group_key, row_key
from tests.serving.calls import CODE, MODEL, changed, counts, message, refusal

INFER = "/inference.GRPCInferenceService/ModelInfer"


@pytest.fixture
def stub(both):
    with grpc.insecure_channel(both[0].grpc) as channel:
        yield stubs.GRPCInferenceServiceStub(channel)


# -- what breaks the contract -------------------------------------------------------------------------------

SHARED = {"shared_memory_region": pb.InferParameter(string_param="r")}
CLASSES = {"classification": pb.InferParameter(int64_param=3)}
LOGITS = pb.ModelInferRequest.InferRequestedOutputTensor(name="logits")
BAD = {
    "no input": changed(lambda m: m.ClearField("inputs")),
    "two inputs": changed(lambda m: m.inputs.append(m.inputs[0])),
    "other name": message(name="picture"),
    "other datatype": message(datatype="FP32"),
    "unknown datatype": message(datatype="COMPLEX"),
    "other shape": message(shape=[1, 27, 28]),
    "other rank": message(shape=[1, 784]),
    "no shape": message(shape=[]),
    "zero rows": message(np.zeros((0, 28, 28), np.uint8)),
    "negative rows": message(shape=[-1, 28, 28]),
    "too many rows": message(np.zeros((33, 28, 28), np.uint8)),
    "huge shape": message(shape=[2**62, 28, 28]),
    "overflowing shape": message(shape=[2**62, 2**62, 2**62]),
    "endless shape": message(shape=[1] * 10_000),
    "no contents": message(raw=False),
    "too few bytes": changed(lambda m: m.raw_input_contents.__setitem__(0, bytes(783))),
    "too many bytes": changed(lambda m: m.raw_input_contents.__setitem__(0, bytes(785))),
    "two raw contents": changed(lambda m: m.raw_input_contents.append(bytes(784))),
    "raw and typed": changed(lambda m: m.inputs[0].contents.uint_contents.extend([0] * 784)),
    "typed of another kind": message(raw=False, contents={"int_contents": [0] * 784}),
    "typed of two kinds": message(raw=False, contents={"uint_contents": [0] * 784, "int_contents": [0]}),
    "typed too few": message(raw=False, contents={"uint_contents": [0] * 783}),
    "typed too many": message(raw=False, contents={"uint_contents": [0] * 785}),
    "typed above range": message(raw=False, contents={"uint_contents": [256] + [0] * 783}),
    "shared memory": message(parameters=SHARED),
    "unknown output": changed(lambda m: m.outputs.add(name="softmax")),
    "output twice": changed(lambda m: m.outputs.extend([LOGITS, LOGITS])),
    "classification": changed(lambda m: m.outputs.add(name="logits", parameters=CLASSES)),
    "group no string": changed(lambda m: m.parameters["group"].MergeFrom(pb.InferParameter(int64_param=7))),
    "group too long": changed(
        lambda m: m.parameters["group"].MergeFrom(pb.InferParameter(string_param="g" * 257))
    ),
    "timeout no number": changed(
        lambda m: m.parameters["timeout"].MergeFrom(pb.InferParameter(string_param="1"))
    ),
    "timeout negative": changed(
        lambda m: m.parameters["timeout"].MergeFrom(pb.InferParameter(int64_param=-1))
    ),
    "timeout without value": changed(lambda m: m.parameters["timeout"].MergeFrom(pb.InferParameter())),
    "id too long": changed(lambda m: setattr(m, "id", "i" * 257)),
}  # fmt: skip


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_a_broken_contract_is_the_clients_error(both, stub, kit, bad):
    plane, _ = both
    before = counts(plane)
    code, text = refusal(stub.ModelInfer, bad)
    assert (code, "expected" in text) == (CODE.INVALID_ARGUMENT, True), text
    # Negative control: the base of the battery is good, so the change was the reason.
    stub.ModelInfer(message())
    assert [b - a for a, b in zip(before, counts(plane), strict=True)] == [1, 1, 0, 0, 0]
    plane.plane.spool.flush(last=True)
    block = np.concatenate(kit.read_spool(plane.settings.spool, "telemetry"))[-2:]
    assert block["outcome"].tolist() == [1, 0]
    assert block["generation"].tolist() == [0, 1]


NO_MESSAGE = {
    "no protobuf": b"\xff\xff\xff",
    "cut short": message().SerializeToString()[:-1],
    "a length that lies": b"\x0a\xff\xff\xff\xff\x0fm",
    "no utf-8": b"\x0a\x02\xff\xfe",
    "deep nesting": b"\x3b" * 5_000,
}


@pytest.mark.parametrize("raw", NO_MESSAGE.values(), ids=NO_MESSAGE)
def test_bytes_that_are_no_message_are_the_clients_error(both, raw):
    plane, _ = both
    with grpc.insecure_channel(plane.grpc) as channel:
        before = counts(plane)
        assert refusal(channel.unary_unary(INFER), raw)[0] is CODE.INVALID_ARGUMENT
        channel.unary_unary(INFER)(message().SerializeToString())
        assert [b - a for a, b in zip(before, counts(plane), strict=True)] == [1, 1, 0, 0, 0]


def test_a_call_without_a_message_is_the_clients_error(both):
    plane, _ = both
    with grpc.insecure_channel(plane.grpc) as channel:
        before = counts(plane)
        code, text = refusal(channel.stream_unary(INFER), iter(()))
        assert (code, text) == (CODE.INVALID_ARGUMENT, "expected one message, the call ended without")
        assert [b - a for a, b in zip(before, counts(plane), strict=True)] == [0, 1, 0, 0, 0]


def test_unknown_names(stub):
    other = message()
    other.model_name = "other"
    assert refusal(stub.ModelInfer, other)[0] is CODE.NOT_FOUND
    pinned = message()
    pinned.model_version = "9"
    assert refusal(stub.ModelInfer, pinned)[0] is CODE.NOT_FOUND
    pinned.model_version = "1"
    assert stub.ModelInfer(pinned).model_version == "1"
    assert refusal(stub.ModelStatistics, pb.ModelStatisticsRequest(version="1"))[0] is CODE.NOT_FOUND


def test_an_answer_that_cannot_be_written_is_an_error_and_the_client_may_go_on(both, stub, monkeypatch):
    def broken(*_):
        raise LookupError("nobody foresaw it")

    with monkeypatch.context() as patch:
        patch.setattr("daemon.serving.rpc.answer_of", broken)
        code, text = refusal(stub.ModelInfer, message())
    assert (code, "LookupError" in text) == (CODE.INTERNAL, True)
    assert stub.ModelInfer(message()).model_version == "1"


def test_an_order_that_breaks_off_is_answered(forge, thread, kit, monkeypatch):
    async def broken():
        raise LookupError("nobody foresaw it")

    plane = thread(grpc="127.0.0.1:0", repository_control=True)
    plane.admin.apply(kit.deployment(1, stable=(1, forge.tiny()))).raise_for_status()
    order = pb.RepositoryModelUnloadRequest(model_name=MODEL)
    with grpc.insecure_channel(plane.grpc) as channel:
        stub = stubs.GRPCInferenceServiceStub(channel)
        with monkeypatch.context() as patch:
            patch.setattr(plane.plane.keeper, "unload", broken)
            code, text = refusal(stub.RepositoryModelUnload, order)
        assert (code, "LookupError" in text) == (CODE.INTERNAL, True)
        stub.RepositoryModelUnload(order)


# -- the same slots as over REST ----------------------------------------------------------------------------


def test_both_planes_answer_bit_for_bit_the_same(both, stub, kit):
    plane, tiny = both
    x = kit.digits(3)
    over_grpc = stub.ModelInfer(message(x))
    over_rest = plane.infer(x).json()
    assert [each.name for each in over_grpc.outputs] == [each["name"] for each in over_rest["outputs"]]
    for output, raw, rest in zip(
        over_grpc.outputs, over_grpc.raw_output_contents, over_rest["outputs"], strict=True
    ):
        assert (output.datatype, list(output.shape)) == (rest["datatype"], rest["shape"])
        assert raw == np.array(rest["data"], "<f4").tobytes()
    logits = np.frombuffer(over_grpc.raw_output_contents[0], "<f4").reshape(3, 10)
    np.testing.assert_allclose(logits, tiny.expected(x)[0], atol=1e-4)


def test_group_and_id_reach_the_spool(both, stub, kit):
    plane, _ = both
    named = message()
    named.id = "r1"
    named.parameters["group"].string_param = "meter-17"
    assert stub.ModelInfer(named).id == "r1"
    anonymous = stub.ModelInfer(message()).id
    plane.plane.spool.flush(last=True)
    block = np.concatenate(kit.read_spool(plane.settings.spool, "telemetry"))[-2:]
    assert [bytes(v) for v in block["group_key"]] == [group_key("meter-17"), group_key(anonymous)]
    assert [bytes(v) for v in block["row_key"]] == [row_key("r1", 0, 1), row_key(anonymous, 0, 1)]


def test_the_same_key_goes_to_the_same_generation_on_both_planes(forge, thread, kit):
    plane = thread(grpc="127.0.0.1:0")
    wanted = kit.deployment(1, stable=(1, forge.tiny(seed=1)), newcomer=(2, forge.tiny(seed=2)), share=0.5)
    plane.admin.apply(wanted).raise_for_status()
    x = kit.digits(1)
    with grpc.insecure_channel(plane.grpc) as channel:
        stub = stubs.GRPCInferenceServiceStub(channel)

        def over_grpc(key: str, name: str) -> str:
            asked = message(x)
            asked.id = name
            return stub.ModelInfer(asked, metadata=[("instar-route", key)] if key else []).model_version

        def over_rest(key: str, name: str) -> str:
            body = {"inputs": [{"name": "image", "datatype": "UINT8", "shape": [1, 28, 28],
                                "data": x.tolist()}], "id": name}  # fmt: skip
            headers = {"instar-route": key} if key else {}
            return plane.http.post(f"/v2/models/{MODEL}/infer", json=body, headers=headers).json()[
                "model_version"
            ]

        for keys in ([(f"k{n}", "same") for n in range(30)], [("", f"id{n}") for n in range(30)]):
            versions = [over_grpc(*each) for each in keys]
            assert versions == [over_rest(*each) for each in keys]
            # Negative control: the key decides, so thirty of them do not all go one way.
            assert set(versions) == {"1", "2"}


def test_statistics_count_both_planes_alike(forge, thread, kit):
    plane = thread(grpc="127.0.0.1:0")
    plane.admin.apply(kit.deployment(1, stable=(1, forge.tiny()))).raise_for_status()

    def numbers() -> list[int]:
        told = plane.http.get(f"/v2/models/{MODEL}/stats").json()["model_stats"][0]
        parts = told["inference_stats"]
        return [told["inference_count"], told["execution_count"]] + [
            parts[name]["count"] for name in ("success", "fail", "queue", "compute_infer")
        ]

    with grpc.insecure_channel(plane.grpc) as channel:
        stub = stubs.GRPCInferenceServiceStub(channel)
        told = [numbers()]
        plane.infer(kit.digits(3))
        told.append(numbers())
        stub.ModelInfer(message(kit.digits(3)))
        told.append(numbers())
        grown = [[b - a for a, b in zip(*pair, strict=True)] for pair in pairwise(told)]
        assert grown == [[3, 1, 1, 0, 1, 1]] * 2
        said = stub.ModelStatistics(pb.ModelStatisticsRequest(name=MODEL)).model_stats[0]
        assert [said.inference_count, said.execution_count] == told[-1][:2]
        assert said.inference_stats.success.ns > 0
