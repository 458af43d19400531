"""The requests that everybody is sent, and what a right answer to them is.

* One image, ``logits`` asked for: as JSON (about 5.5 kB), with binary tensors (about 3.3 kB), as gRPC with
  raw contents (about 3.2 kB).
* `logits_of` reads an answer; `check` holds it against what the runtime gives. Both refuse, in words.
* The gRPC message is written by hand: a load generator wants bytes, and these never change.

Source: Open Inference Protocol v2, its binary tensor data extension, and its proto (ModelInferRequest).
"""

import json
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from benchmarks.serving.models import CLASSES
from policies.errors import PermanentError

HEADER_LENGTH = "Inference-Header-Content-Length"
GRPC_METHOD = "/inference.GRPCInferenceService/ModelInfer"
# A flag and a length stand before each message (gRPC over HTTP/2).
FRAME_BYTES = 5
_ATOL, _RTOL = 1e-5, 1e-4


class Form(StrEnum):
    """How a request is written."""

    JSON = "JSON"
    BINARY = "binary"
    GRPC = "gRPC"


@dataclass(frozen=True)
class Ask:
    """A request: where it goes, its headers and its body."""

    path: str
    headers: dict[str, str]
    body: bytes


def ask(form: Form, model: str, x: NDArray[np.float32]) -> Ask:
    """Return the request for the logits of ``x`` (n, 1, 28, 28)."""
    return {Form.JSON: _json, Form.BINARY: _binary, Form.GRPC: _grpc}[form](model, x)


def _json(model: str, x: NDArray[np.float32]) -> Ask:
    # Four decimals, as they were drawn: the shortest text that is this float32 again.
    data = [round(float(value), 4) for value in x.ravel()]
    tensor = {"name": "image", "shape": list(x.shape), "datatype": "FP32", "data": data}
    body = {"inputs": [tensor], "outputs": [{"name": "logits"}]}
    return Ask(f"/v2/models/{model}/infer", {"Content-Type": "application/json"}, _compact(body))


def _binary(model: str, x: NDArray[np.float32]) -> Ask:
    raw = x.astype("<f4").tobytes()
    sized = {"binary_data_size": len(raw)}
    tensor = {"name": "image", "shape": list(x.shape), "datatype": "FP32", "parameters": sized}
    head = _compact(
        {"inputs": [tensor], "outputs": [{"name": "logits", "parameters": {"binary_data": True}}]}
    )
    headers = {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(len(head))}
    return Ask(f"/v2/models/{model}/infer", headers, head + raw)


def _grpc(model: str, x: NDArray[np.float32]) -> Ask:
    shape = b"".join(_varint(side) for side in x.shape)
    tensor = _field(1, b"image") + _field(2, b"FP32") + _field(3, shape)
    message = _field(1, model.encode()) + _field(5, tensor) + _field(6, _field(1, b"logits"))
    message += _field(7, x.astype("<f4").tobytes())
    body = b"\0" + len(message).to_bytes(4, "big") + message
    return Ask(GRPC_METHOD, {"content-type": "application/grpc", "te": "trailers"}, body)


def logits_of(body: bytes, header_length: str | None) -> NDArray[np.float32]:
    """Return the logits (n, 10) of an answer in JSON or with binary tensors.

    Args:
        body: The answer.
        header_length: Of its JSON part; None where it is JSON alone.

    Raises:
        PermanentError: It is no answer that has them.
    """
    head = body if header_length is None else body[: int(header_length)]
    try:
        outputs = json.loads(head)["outputs"]
        (output,) = [one for one in outputs if one["name"] == "logits"]
        if "data" in output:
            numbers = np.array(output["data"], np.float32)
        else:
            numbers = np.frombuffer(body, "<f4", offset=len(head))
        return numbers.reshape(-1, CLASSES)
    except (ValueError, KeyError, TypeError) as error:
        raise PermanentError(f"expected an answer with logits, got {body[:200]!r} ({error!r})") from error


def check(who: str, came: NDArray[np.float32], wanted: NDArray[np.float32]) -> None:
    """Hold an answer against the runtime's.

    Raises:
        PermanentError: It is another one.
    """
    if came.shape != wanted.shape or not np.allclose(came, wanted, rtol=_RTOL, atol=_ATOL):
        raise PermanentError(
            f"expected {who} to answer {wanted.ravel()[:3]}..., it answers {came.ravel()[:3]}...: mend its "
            "handler before it is measured"
        )


def _compact(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _varint(value: int) -> bytes:
    """Return a number as protobuf writes it.

    >>> _varint(300).hex()
    'ac02'
    """
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)


def _field(number: int, content: bytes) -> bytes:
    """Return a length-delimited field."""
    return _varint(number << 3 | 2) + _varint(len(content)) + content
