"""An ask: one inference request of the Open Inference Protocol, checked against the model's contract.

* JSON and binary tensors (``Inference-Header-Content-Length``), as the protocol's binary data extension says.
* Exactly the model's one input, by name, datatype and shape; 1 to ``max_rows`` rows; numbers in the
  datatype's range, finite, and spelled as the datatype wants (no ``true`` for a number, no 1.5 for UINT8).
* Outputs are ``logits`` and ``embedding``; none asked means both.
* Top-level parameters: ``group`` names the near-duplicate group, ``binary_data_output`` the default form.
* Whatever breaks a rule is ``Malformed`` with what was expected and what came; nothing is repaired.

Called by ``front.py`` with whole bodies. Source: Open Inference Protocol v2, REST and binary tensor data.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import UNSET, Meta, Struct, UnsetType
from numpy.typing import NDArray

from daemon.serving.refusals import Malformed
from daemon.serving.slot import NUMPY_TYPES
from policies.terms import Datatype, TensorSpec

OUTPUTS = ("logits", "embedding")
MOST_ID_CHARS = 256

Parameters = dict[str, str | int | float | bool | None]


class _Input(Struct):
    name: str
    shape: list[int]
    datatype: str
    parameters: Parameters = {}
    data: msgspec.Raw | UnsetType = UNSET


class _Output(Struct):
    name: str
    parameters: Parameters = {}


class _Message(Struct):
    inputs: list[_Input]
    id: str = ""
    parameters: Parameters = {}
    outputs: list[_Output] = []


_DECODER = msgspec.json.Decoder(_Message)


@dataclass(frozen=True, slots=True)
class Ask:
    """A checked request: ``x`` is ``(rows, ...)`` as the input says; ``outputs`` maps name to binary."""

    id: str
    group: str
    x: NDArray[Any]
    outputs: dict[str, bool]
    version: str | None


def parse(
    body: bytes,
    header_length: str | None,
    spec: TensorSpec,
    max_rows: int,
    new_id: Callable[[], str],
    version: str | None = None,
) -> Ask:
    """Return the request in ``body``.

    Args:
        body: The whole request body, decompressed.
        header_length: The ``Inference-Header-Content-Length`` header; None when all of the body is JSON.
        spec: The model's input contract.
        max_rows: Most rows of one request.
        new_id: Makes an id for a request without one.
        version: The version that the path pins.

    Raises:
        Malformed: The request breaks the protocol or the contract.
    """
    text, binary = _split(body, header_length)
    message = _decode(text)
    if len(message.inputs) != 1:
        raise Malformed(f"expected 1 input {spec.name!r}, got {len(message.inputs)} inputs")
    rows = _check_input(message.inputs[0], spec, max_rows)
    x = _tensor(message.inputs[0], binary, spec, (rows, *spec.shape[1:]))
    id_ = _bounded(message.id, "id") or new_id()
    group = message.parameters.get("group", "")
    if not isinstance(group, str):
        raise Malformed(f"expected parameter group as a string, got {group!r}")
    return Ask(id_, _bounded(group, "parameter group") or id_, x, _outputs(message), version)


def _split(body: bytes, header_length: str | None) -> tuple[bytes, bytes | None]:
    if header_length is None:
        return body, None
    if not (header_length.isascii() and header_length.isdigit() and len(header_length) < 12):
        raise Malformed(f"expected Inference-Header-Content-Length as a number, got {header_length[:40]!r}")
    length = int(header_length)
    if length > len(body):
        raise Malformed(f"expected a body of at least {length} bytes of JSON, got {len(body)} bytes")
    return body[:length], body[length:]


def _decode(text: bytes) -> _Message:
    try:
        return _DECODER.decode(text)
    except RecursionError:
        raise Malformed("expected JSON of a few levels, got one nested too deep") from None
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Malformed(f"expected an inference request as JSON, got {error}") from error


def _bounded(text: str, what: str) -> str:
    if len(text) > MOST_ID_CHARS:
        raise Malformed(f"expected {what} of at most {MOST_ID_CHARS} characters, got {len(text)}")
    return text


def _check_input(given: _Input, spec: TensorSpec, max_rows: int) -> int:
    """Return the number of rows, once name, datatype and shape are the contract's."""
    if given.name != spec.name:
        raise Malformed(f"expected input {spec.name!r}, got {given.name[:80]!r}")
    if given.datatype != spec.datatype.value:
        raise Malformed(
            f"expected datatype {spec.datatype.value} for {spec.name}, got {given.datatype[:40]!r}"
        )
    if "shared_memory_region" in given.parameters:
        raise Malformed("expected data in the request, got a shared memory region; it is not offered here")
    shape = given.shape
    if len(shape) != len(spec.shape) or tuple(shape[1:]) != spec.shape[1:]:
        raise Malformed(f"expected shape {list(spec.shape)} for {spec.name} (-1: rows), got {shape[:16]}")
    if not 1 <= shape[0] <= max_rows:
        raise Malformed(f"expected 1 to {max_rows} rows, got {shape[0]}; split the request")
    return shape[0]


def _tensor(given: _Input, binary: bytes | None, spec: TensorSpec, shape: tuple[int, ...]) -> NDArray[Any]:
    size = given.parameters.get("binary_data_size")
    if size is None:
        if isinstance(given.data, UnsetType):
            raise Malformed(f"expected data or binary_data_size for {spec.name}, got neither")
        if binary:
            raise Malformed(f"expected no bytes after the JSON, got {len(binary)}; say binary_data_size")
        return _from_json(bytes(given.data), spec, shape)
    if not isinstance(given.data, UnsetType):
        raise Malformed(f"expected data or binary_data_size for {spec.name}, got both")
    dtype = NUMPY_TYPES[spec.datatype]
    wanted = math.prod(shape) * dtype.itemsize
    came = None if binary is None else len(binary)
    if type(size) is not int or size != wanted or came != wanted:
        raise Malformed(
            f"expected {wanted} binary bytes for {spec.name} {list(shape)} {spec.datatype.value}, "
            f"got binary_data_size {size!r} and {came} bytes after the JSON"
        )
    return _checked(np.frombuffer(binary or b"", dtype).reshape(shape), spec)


def _from_json(raw: bytes, spec: TensorSpec, shape: tuple[int, ...]) -> NDArray[Any]:
    """Read a flat list, or one nested as the shape."""
    depth = _depth(raw, len(shape))
    try:
        values = _data_decoder(spec.datatype, depth).decode(raw)
        # Ragged lists raise ValueError here; what overflows to infinity is refused below.
        with np.errstate(over="ignore"):
            array = np.asarray(values, NUMPY_TYPES[spec.datatype])
    except RecursionError:
        raise Malformed(f"expected data of {spec.name} flat or nested as its shape, got it deeper") from None
    except (msgspec.MsgspecError, UnicodeDecodeError, ValueError, OverflowError) as error:
        raise Malformed(f"expected {spec.datatype.value} data of {spec.name}, got {error}") from error
    if array.size != math.prod(shape) or array.shape not in (shape, (array.size,)):
        raise Malformed(f"expected {math.prod(shape)} values as {list(shape)}, got {list(array.shape)}")
    return _checked(array.reshape(shape), spec)


def _depth(raw: bytes, rank: int) -> int:
    """Return 1 for a flat list, else the rank: only these two are read.

    >>> _depth(b" [ [1, 2]]", 3), _depth(b"[1]", 3)
    (3, 1)
    """
    inner = raw[:64].lstrip()[1:].lstrip()
    return rank if inner.startswith(b"[") else 1


@lru_cache(maxsize=64)
def _data_decoder(datatype: Datatype, depth: int) -> msgspec.json.Decoder[Any]:
    kind: Any = float
    dtype = NUMPY_TYPES[datatype]
    if datatype is Datatype.BOOL:
        kind = bool
    elif dtype.kind in "iu":
        # The decoder's bounds are int64's; what exceeds them, numpy refuses.
        low, high = int(np.iinfo(dtype).min), min(int(np.iinfo(dtype).max), 2**63 - 1)
        kind = Annotated[int, Meta(ge=low, le=high)] if datatype is not Datatype.UINT64 else int
    for _ in range(depth):
        kind = list[kind]
    return msgspec.json.Decoder(kind)


def _checked(array: NDArray[Any], spec: TensorSpec) -> NDArray[Any]:
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise Malformed(f"expected finite numbers in {spec.name}, got NaN or infinity")
    if array.dtype.kind == "b" and array.size and array.view("u1").max() > 1:
        raise Malformed(f"expected bytes 0 or 1 in {spec.name}, got others")
    return array


def _outputs(message: _Message) -> dict[str, bool]:
    default = _flag(message.parameters, "binary_data_output")
    if not message.outputs:
        return dict.fromkeys(OUTPUTS, default)
    wanted: dict[str, bool] = {}
    for output in message.outputs:
        if output.name not in OUTPUTS or output.name in wanted:
            raise Malformed(f"expected outputs among {OUTPUTS}, each once, got {output.name[:80]!r}")
        if "classification" in output.parameters or "shared_memory_region" in output.parameters:
            raise Malformed(f"expected plain output {output.name}, got an extension that is not offered here")
        given = "binary_data" in output.parameters
        wanted[output.name] = _flag(output.parameters, "binary_data") if given else default
    return wanted


def _flag(parameters: Parameters, name: str) -> bool:
    value = parameters.get(name, False)
    if not isinstance(value, bool):
        raise Malformed(f"expected parameter {name} as true or false, got {value!r}")
    return value
