"""The Open Inference Protocol, as httpx and NVIDIA's own client speak it."""

import gzip
import json
import zlib

import numpy as np
import pytest
import tritonclient.http as triton

from policies.telemetry import OUTCOMES, group_key, row_key

PATH = "/v2/models/meter-reader"


def test_health_and_metadata_before_and_after_the_first_model(forge, thread, kit):
    plane = thread()
    assert plane.http.get("/v2/health/live").status_code == 200
    assert plane.http.get("/v2/health/ready").status_code == 503
    assert plane.http.get(PATH).status_code == 503
    unready = plane.infer(kit.digits(1))
    assert unready.status_code == 503
    assert "retry-after" in unready.headers
    plane.admin.apply(kit.deployment(1, stable=(7, forge.tiny())))
    assert plane.http.get("/v2/health/ready").json() == {"ready": True}
    assert plane.http.get("/v2").json()["extensions"] == [
        "binary_tensor_data",
        "model_configuration",
        "model_repository",
        "statistics",
    ]
    about = plane.http.get(PATH).json()
    assert about["versions"] == ["7"]
    assert about["inputs"] == [{"name": "image", "datatype": "UINT8", "shape": [-1, 28, 28]}]
    assert [output["name"] for output in about["outputs"]] == ["logits", "embedding"]
    assert plane.http.get(f"{PATH}/versions/7").json() == about
    assert plane.http.get(f"{PATH}/versions/7/ready").status_code == 200
    assert plane.http.get(f"{PATH}/ready").json()["ready"] is True


def test_json_in_json_out_gives_the_models_numbers(shared, kit):
    plane, tiny = shared
    x = kit.digits(3)
    answer = plane.infer(x, name="abc").json()
    assert (answer["id"], answer["model_version"], answer["model_name"]) == ("abc", "1", "meter-reader")
    logits, embedding = tiny.expected(x)
    outputs = {o["name"]: np.array(o["data"]).reshape(o["shape"]) for o in answer["outputs"]}
    np.testing.assert_allclose(outputs["logits"], logits, atol=1e-4)
    np.testing.assert_allclose(outputs["embedding"], embedding, atol=1e-4)


def test_flat_and_nested_data_mean_the_same(shared, kit):
    plane, _ = shared
    x = kit.digits(1)
    flat = {"name": "image", "datatype": "UINT8", "shape": [1, 28, 28], "data": x.ravel().tolist()}
    came = plane.http.post(f"{PATH}/infer", json={"id": "a", "inputs": [flat]})
    assert came.json() == plane.infer(x, name="a").json()


def test_a_request_without_id_gets_one(shared, kit):
    plane, _ = shared
    first, second = (plane.infer(kit.digits(1)).json()["id"] for _ in range(2))
    assert first
    assert first != second


def test_only_the_asked_outputs_come(shared, kit):
    plane, _ = shared
    answer = plane.infer(kit.digits(1), outputs=[{"name": "logits"}]).json()
    assert [output["name"] for output in answer["outputs"]] == ["logits"]


@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False, None])
def test_tritonclient_infers_in_all_forms(shared, kit, binary_in, binary_out, compression):
    plane, tiny = shared
    x = kit.digits(2)
    client = triton.InferenceServerClient(f"127.0.0.1:{plane.port}")
    given = triton.InferInput("image", list(x.shape), "UINT8")
    given.set_data_from_numpy(x, binary_data=binary_in)
    names = ("logits", "embedding")
    outputs = None if binary_out is None else [triton.InferRequestedOutput(n, binary_out) for n in names]
    result = client.infer(
        "meter-reader",
        [given],
        outputs=outputs,
        request_id="t1",
        request_compression_algorithm=compression,
        response_compression_algorithm=compression,
    )
    logits, embedding = tiny.expected(x)
    np.testing.assert_allclose(result.as_numpy("logits"), logits, atol=1e-4)
    np.testing.assert_allclose(result.as_numpy("embedding"), embedding, atol=1e-4)
    assert result.get_response()["id"] == "t1"
    assert result.get_response()["model_version"] == "1"
    client.close()


def test_tritonclient_asks_for_health_and_metadata(shared):
    plane, _ = shared
    client = triton.InferenceServerClient(f"127.0.0.1:{plane.port}")
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("meter-reader")
    assert client.is_model_ready("meter-reader", "1")
    assert not client.is_model_ready("meter-reader", "2")
    assert client.get_model_metadata("meter-reader")["platform"] == "onnxruntime_onnx"
    assert client.get_server_metadata()["name"] == "instar"
    client.close()


def test_the_group_parameter_reaches_the_spool(shared, kit):
    plane, _ = shared
    plane.infer(kit.digits(1), name="r1", parameters={"group": "meter-17"})
    plane.infer(kit.digits(1), name="r2")
    plane.plane.spool.flush(last=True)
    block = np.concatenate(kit.read_spool(plane.settings.spool, "telemetry"))[-2:]
    assert [bytes(v) for v in block["group_key"]] == [group_key("meter-17"), group_key("r2")]
    assert [bytes(v) for v in block["row_key"]] == [row_key("r1", 0, 1), row_key("r2", 0, 1)]


SHARED = {"shared_memory_region": "r"}


def with_parameters(parameters) -> dict:
    return message(inputs=[{**message()["inputs"][0], "parameters": parameters}])


def message(**changes) -> dict:
    tensor = {"name": "image", "datatype": "UINT8", "shape": [1, 28, 28], "data": [0] * 784}
    top = {key: changes.pop(key) for key in ("id", "parameters", "outputs", "inputs") if key in changes}
    return {"inputs": [{**tensor, **changes}], **top}


BAD_JSON = {
    "not json": b"{",
    "not an object": b"[]",
    "empty": b"",
    "not utf-8": b'{"inputs":[{"name":"\xff"}]}',
    "lone surrogate": b'{"id":"\\ud800","inputs":[]}',
    "too deep": b'{"x":' + b"[" * 50_000 + b"]" * 50_000 + b"}",
    "too deep data": json.dumps(message(data=0))
    .replace('"data": 0', '"data": ' + "[" * 900 + "]" * 900)
    .encode(),
    "NaN literal": json.dumps(message(data=[float("nan")] * 784)).encode(),
}
BAD_FIELDS = {
    "no input": message(inputs=[]),
    "two inputs": message(inputs=message()["inputs"] * 2),
    "other name": message(name="picture"),
    "other datatype": message(datatype="FP32"),
    "unknown datatype": message(datatype="COMPLEX"),
    "other shape": message(shape=[1, 27, 28]),
    "other rank": message(shape=[1, 784]),
    "zero rows": message(shape=[0, 28, 28], data=[]),
    "negative rows": message(shape=[-1, 28, 28]),
    "too many rows": message(shape=[33, 28, 28], data=[0] * 784 * 33),
    "huge shape": message(shape=[2**62, 28, 28]),
    "too little data": message(data=[0] * 783),
    "too much data": message(data=[0] * 785),
    "ragged": message(data=[[[0] * 28] * 27 + [[0] * 27]]),
    "wrong nesting": message(data=[[0] * 28] * 28),
    "above range": message(data=[256] + [0] * 783),
    "below range": message(data=[-1] + [0] * 783),
    "far above range": message(data=[10**30] + [0] * 783),
    "fraction": message(data=[0.5] + [0] * 783),
    "booleans": message(data=[True] * 784),
    "strings": message(data=["0"] * 784),
    "null data": message(data=None),
    "object data": message(data={}),
    "unknown output": message(outputs=[{"name": "softmax"}]),
    "output twice": message(outputs=[{"name": "logits"}, {"name": "logits"}]),
    "classification": message(outputs=[{"name": "logits", "parameters": {"classification": 3}}]),
    "shared memory": with_parameters(SHARED),
    "binary flag no bool": message(parameters={"binary_data_output": "yes"}),
    "group no string": message(parameters={"group": 7}),
    "group too long": message(parameters={"group": "g" * 257}),
    "id too long": message(id="i" * 257),
    "id no string": message(id=5),
    "binary size without bytes": with_parameters({"binary_data_size": 784}),
}  # fmt: skip


@pytest.mark.parametrize("body", BAD_JSON.values(), ids=BAD_JSON)
def test_broken_json_is_the_clients_error(shared, kit, body):
    plane, _ = shared
    assert_refused(plane, lambda: plane.http.post(f"{PATH}/infer", content=body), kit)


@pytest.mark.parametrize("body", BAD_FIELDS.values(), ids=BAD_FIELDS)
def test_a_broken_contract_is_the_clients_error(shared, kit, body):
    plane, _ = shared
    assert_refused(plane, lambda: plane.http.post(f"{PATH}/infer", json=body), kit)


def counts(plane, *outcomes) -> list[float]:
    return [
        plane.metrics()[f'instar_serve_requests_total{{model="meter-reader",outcome="{each}"}}']
        for each in outcomes
    ]


def assert_refused(plane, send, kit):
    before = counts(plane, "client_error", "error", "ok")
    answer = send()
    assert answer.status_code == 400, answer.text
    assert "expected" in answer.json()["error"]
    # Negative control: the battery's base message is a good one, so the changed field was the reason.
    assert plane.http.post(f"{PATH}/infer", json=message()).status_code == 200
    after = counts(plane, "client_error", "error", "ok")
    assert [b - a for a, b in zip(before, after, strict=True)] == [1, 0, 1]
    plane.plane.spool.flush(last=True)
    block = np.concatenate(kit.read_spool(plane.settings.spool, "telemetry"))[-2:]
    assert block["outcome"].tolist() == [1, 0]
    assert block["generation"].tolist() == [0, 1]
    assert not block["logits"][0].any()


def binary(size, tail, length=None):
    head = message()
    del head["inputs"][0]["data"]
    head["inputs"][0]["parameters"] = {"binary_data_size": size}
    text = json.dumps(head).encode()
    return text + tail, {"Inference-Header-Content-Length": str(len(text)) if length is None else length}


BAD_BINARY = {
    "short tail": binary(784, bytes(783)),
    "long tail": binary(784, bytes(785)),
    "other size": binary(783, bytes(783)),
    "size no number": binary("784", bytes(784)),
    "size true": binary(True, bytes(784)),
    "size a float": binary(784.0, bytes(784)),
    "length beyond body": binary(784, bytes(784), "99999"),
    "length no number": binary(784, bytes(784), "x"),
    "length negative": binary(784, bytes(784), "-5"),
    "length zero": binary(784, bytes(784), "0"),
    "length too long": binary(784, bytes(784), "1" * 60),
}


@pytest.mark.parametrize("request_", BAD_BINARY.values(), ids=BAD_BINARY)
def test_broken_binary_framing_is_the_clients_error(shared, kit, request_):
    plane, _ = shared
    body, headers = request_
    assert_refused(plane, lambda: plane.http.post(f"{PATH}/infer", content=body, headers=headers), kit)


def test_data_and_binary_size_together_are_refused(shared):
    plane, _ = shared
    body = message()
    body["inputs"][0]["parameters"] = {"binary_data_size": 784}
    text = json.dumps(body).encode()
    headers = {"Inference-Header-Content-Length": str(len(text))}
    answer = plane.http.post(f"{PATH}/infer", content=text + bytes(784), headers=headers)
    assert answer.status_code == 400
    assert "got both" in answer.json()["error"]


BAD_ENCODING = {
    "broken gzip": (b"no gzip at all", "gzip", 400),
    "cut gzip": (gzip.compress(json.dumps(message()).encode())[:-4], "gzip", 400),
    "gzip and more": (gzip.compress(json.dumps(message()).encode()) + b"x", "gzip", 400),
    "unknown coding": (b"x", "br", 400),
    "bomb": (gzip.compress(bytes(50 << 20)), "gzip", 413),
    "deflate bomb": (zlib.compress(bytes(50 << 20)), "deflate", 413),
}


@pytest.mark.parametrize(("body", "coding", "status"), BAD_ENCODING.values(), ids=BAD_ENCODING)
def test_broken_compression_is_the_clients_error(shared, body, coding, status):
    plane, _ = shared
    answer = plane.http.post(f"{PATH}/infer", content=body, headers={"Content-Encoding": coding})
    assert answer.status_code == status, answer.text


def test_floats_must_be_finite_and_fit(forge, thread, kit):
    plane = thread()
    plane.admin.apply(kit.deployment(1, stable=(1, forge.tiny(datatype="FP32"))))

    def ask(value):
        body = message(datatype="FP32", data=[value] + [0] * 783)
        return plane.http.post(f"{PATH}/infer", json=body).status_code

    assert (ask(0.5), ask(7)) == (200, 200)
    assert (ask(1e300), ask(True), ask("1")) == (400, 400, 400)
    text = json.dumps(message(datatype="FP32", data=["X"] + [0] * 783))
    for literal in ("1e999", "NaN", "Infinity"):
        content = text.replace('"X"', literal).encode()
        assert plane.http.post(f"{PATH}/infer", content=content).status_code == 400
    for bad in (np.nan, np.inf):
        tail = np.array([bad] + [0] * 783, "<f4").tobytes()
        body, headers = binary(len(tail), tail)
        body = body.replace(b"UINT8", b"FP32")
        headers["Inference-Header-Content-Length"] = str(len(body) - len(tail))
        assert plane.http.post(f"{PATH}/infer", content=body, headers=headers).status_code == 400


def test_a_model_that_answers_no_number_is_an_error_once(forge, thread, kit):
    plane = thread()
    tiny = forge.tiny(datatype="FP32", spoil="nan")
    plane.admin.apply(kit.deployment(1, stable=(1, tiny))).raise_for_status()
    # Above 255 the planted square root leaves the real numbers.
    bad = plane.http.post(f"{PATH}/infer", json=message(datatype="FP32", data=[510.0] * 784))
    good = plane.http.post(f"{PATH}/infer", json=message(datatype="FP32", data=[255.0] * 784))
    assert (bad.status_code, good.status_code) == (500, 200)
    assert "expected finite outputs of generation 1" in bad.json()["error"]
    assert counts(plane, "ok", "not_finite", "error", "client_error") == [1, 1, 0, 0]
    plane.plane.spool.flush(last=True)
    block = np.concatenate(kit.read_spool(plane.settings.spool, "telemetry"))
    assert [OUTCOMES[code] for code in block["outcome"]] == ["not_finite", "ok"]
    assert block["generation"].tolist() == [1, 1]


def test_unknown_names_and_methods(shared):
    plane, _ = shared
    http = plane.http
    for path in ("/", "/v2/models/other", f"{PATH}/versions/9", "/v2/models", f"{PATH}/outputs"):
        assert http.get(path).status_code == 404, path
    assert http.post("/v2/models/other/infer", json=message()).status_code == 404
    assert http.post(f"{PATH}/versions/9/infer", json=message()).status_code == 404
    assert http.post(f"{PATH}/versions/1/infer", json=message()).status_code == 200
    assert http.get(f"{PATH}/infer").status_code == 405
    assert http.post(PATH).status_code == 405
