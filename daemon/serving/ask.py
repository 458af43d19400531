"""An ask: one inference request of the Open Inference Protocol, checked against the model's contract.

* JSON and binary tensors (``Inference-Header-Content-Length``), as the protocol's binary data extension says.
* Exactly the model's one input, by name, datatype and shape; 1 to ``max_rows`` rows; numbers in the
  datatype's range, finite, and spelled as the datatype wants (no ``true`` for a number, no 1.5 for UINT8).
* Outputs are ``logits`` and ``embedding``; none asked means both.
* Top-level parameters: ``group`` names the near-duplicate group, ``binary_data_output`` the default form,
  ``timeout`` how long the answer is of use (µs). Unknown ones change nothing, as the protocol has it.
* Whatever breaks a rule is ``Malformed`` with what was expected and what came; nothing is repaired.

Called by ``front.py`` with whole bodies; ``rpc.py`` makes asks of messages by the same checks.
Source: Open Inference Protocol v2, REST and binary tensor data.
"""

import math
import struct
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from itertools import chain
from typing import Any

import msgspec
import numpy as np
from msgspec import UNSET, Struct, UnsetType
from numpy.typing import NDArray

from daemon.serving import reals
from daemon.serving.refusals import Malformed
from daemon.serving.slot import NUMPY_TYPES
from policies.terms import Datatype, TensorSpec

OUTPUTS = ("logits", "embedding")
MOST_ID_CHARS = 256
_LONGEST_US = 1 << 63
_SHORT = 1 << 10
"""Of a JSON that is kept."""

Parameters = dict[str, str | int | float | bool | None]


class Ask(Struct, frozen=True, gc=False):
    """A checked request.

    ``x`` is ``(rows, ...)`` as the input says; ``outputs`` maps a name to whether it goes back as binary;
    ``key`` is what routes it; ``timeout_s`` how long after its arrival an answer is of use.
    """

    id: str
    group: str
    x: NDArray[Any]
    outputs: dict[str, bool]
    version: str | None = None
    key: str = ""
    timeout_s: float = math.inf


class Given(Struct, frozen=True):
    """What a request says of its one input, before it is believed."""

    name: str
    datatype: str
    shape: Sequence[int]
    parameters: Mapping[str, Any] = {}


class _Output(Struct):
    name: str
    parameters: Parameters = {}


def parse(
    body: bytes,
    header_length: str | None,
    spec: TensorSpec,
    max_rows: int,
    new_id: Callable[[], str],
    version: str | None = None,
    key: str = "",
) -> Ask:
    """Return the request in ``body``.

    Args:
        body: The whole request body, decompressed.
        header_length: The ``Inference-Header-Content-Length`` header; None when all of the body is JSON.
        spec: The model's input contract.
        max_rows: Most rows of one request.
        new_id: Makes an id for a request without one.
        version: The version that the path pins.
        key: The routing key; empty means the id.

    Raises:
        Malformed: The request breaks the protocol or the contract.
    """
    text, binary = _split(body, header_length)
    read = _read_flat(text, spec, max_rows) if binary is None else None
    if read is None:
        said = _said(text, spec, max_rows) if binary is None else _said_again(text, spec, max_rows)
        read = said, _tensor(said, binary, spec)
    said, x = read
    id_ = said.id or new_id()
    return Ask(id_, said.group or id_, x, said.outputs, version, bounded(key, "key") or id_, said.timeout_s)


# -- what every kind of request is checked by ---------------------------------------------------------------


def check_input(given: Given, spec: TensorSpec, max_rows: int) -> tuple[int, ...]:
    """Return the shape, rows first, once name, datatype and shape are the contract's.

    Raises:
        Malformed: They are not.
    """
    if given.name != spec.name:
        raise Malformed(f"expected input {spec.name!r}, got {given.name[:80]!r}")
    if given.datatype != spec.datatype.value:
        raise Malformed(
            f"expected datatype {spec.datatype.value} for {spec.name}, got {given.datatype[:40]!r}"
        )
    if "shared_memory_region" in given.parameters:
        raise Malformed("expected data in the request, got a shared memory region; it is not offered here")
    shape = tuple(given.shape)
    if len(shape) != len(spec.shape) or shape[1:] != spec.shape[1:]:
        raise Malformed(
            f"expected shape {list(spec.shape)} for {spec.name} (-1: rows), got {list(shape[:16])}"
        )
    if not 1 <= shape[0] <= max_rows:
        raise Malformed(f"expected 1 to {max_rows} rows, got {shape[0]}; split the request")
    return shape


def from_bytes(raw: bytes, spec: TensorSpec, shape: tuple[int, ...]) -> NDArray[Any]:
    """Return a tensor of little-endian bytes in C order.

    Raises:
        Malformed: They are not as many as the shape wants, or not finite.
    """
    dtype = NUMPY_TYPES[spec.datatype]
    if len(raw) != math.prod(shape) * dtype.itemsize:
        raise Malformed(
            f"expected {math.prod(shape) * dtype.itemsize} binary bytes for {spec.name} {list(shape)} "
            f"{spec.datatype.value}, got {len(raw)}"
        )
    return _checked(np.frombuffer(raw, dtype).reshape(shape), spec)


def from_values(values: Sequence[Any], spec: TensorSpec, shape: tuple[int, ...]) -> NDArray[Any]:
    """Return a tensor of numbers, flat or nested as the shape.

    Raises:
        Malformed: They are others, or out of the datatype's range.
    """
    flat = _flattened(values, spec, shape)
    try:
        # Three times as quick as numpy with a list of Python numbers, and it refuses what does not fit.
        raw = _packer(spec.datatype, len(flat)).pack(*flat)
    except (struct.error, OverflowError) as error:
        raise Malformed(f"expected {spec.datatype.value} data of {spec.name}, got {error}") from error
    return _checked(np.frombuffer(raw, NUMPY_TYPES[spec.datatype]).reshape(shape), spec)


@lru_cache(maxsize=256)
def _packer(datatype: Datatype, size: int) -> struct.Struct:
    char = NUMPY_TYPES[datatype].char
    # numpy names its 64-bit integers after C's long; with "<", a long has 4 bytes.
    return struct.Struct(f"<{size}{ {'l': 'q', 'L': 'Q'}.get(char, char) }")


def _flattened(values: Sequence[Any], spec: TensorSpec, shape: tuple[int, ...]) -> Sequence[Any]:
    size = math.prod(shape)
    if values and isinstance(values[0], list):
        for i, dim in enumerate(shape):
            if i:
                if not all(len(value) == dim for value in values):
                    raise Malformed(f"expected data of {spec.name} nested as {list(shape)}, got it ragged")
                values = list(chain.from_iterable(values))
            elif len(values) != dim:
                raise Malformed(f"expected {dim} rows in data of {spec.name}, got {len(values)}")
    if len(values) != size:
        raise Malformed(f"expected {size} values as {list(shape)} in {spec.name}, got {len(values)}")
    return values


def _checked(array: NDArray[Any], spec: TensorSpec) -> NDArray[Any]:
    if array.dtype.kind == "f" and not reals.finite(array):
        raise Malformed(f"expected finite numbers in {spec.name}, got NaN or infinity")
    if array.dtype.kind == "b" and array.size and array.view("u1").max() > 1:
        raise Malformed(f"expected bytes 0 or 1 in {spec.name}, got others")
    return array


def wanted_outputs(
    asked: list[tuple[str, Mapping[str, Any]]], parameters: Mapping[str, Any]
) -> dict[str, bool]:
    """Return the outputs that go back, each with whether as binary.

    Raises:
        Malformed: An output is unknown, named twice, or wanted in a way that is not offered.
    """
    default = _flag(parameters, "binary_data_output")
    if not asked:
        return dict.fromkeys(OUTPUTS, default)
    wanted: dict[str, bool] = {}
    for name, said in asked:
        if name not in OUTPUTS or name in wanted:
            raise Malformed(f"expected outputs among {OUTPUTS}, each once, got {name[:80]!r}")
        if not said:
            wanted[name] = default
            continue
        # A class count of 0 is how clients say that they want the plain tensor.
        if said.get("classification") or "shared_memory_region" in said:
            raise Malformed(f"expected plain output {name}, got an extension that is not offered here")
        wanted[name] = _flag(said, "binary_data") if "binary_data" in said else default
    return wanted


def group_of(parameters: Mapping[str, Any]) -> str:
    """Return the near-duplicate group that a request names, or an empty text."""
    group = parameters.get("group", "")
    if not isinstance(group, str):
        raise Malformed(f"expected parameter group as a string, got {group!r}")
    return bounded(group, "parameter group")


def timeout_of(parameters: Mapping[str, Any]) -> float:
    """Return for how many seconds an answer is of use; the parameter is in microseconds, 0 means for ever."""
    micros = parameters.get("timeout", 0)
    if type(micros) is not int or micros < 0:
        raise Malformed(f"expected parameter timeout as microseconds, 0 or more, got {micros!r}")
    # JSON has whole numbers that no float holds: whoever names one wants to wait for ever.
    return min(micros, _LONGEST_US) / 1e6 if micros else math.inf


def bounded(text: str, what: str) -> str:
    """Return a client's short text as it is.

    Raises:
        Malformed: It is not short.
    """
    if len(text) > MOST_ID_CHARS:
        raise Malformed(f"expected {what} of at most {MOST_ID_CHARS} characters, got {len(text)}")
    return text


def _flag(parameters: Mapping[str, Any], name: str) -> bool:
    value = parameters.get(name, False)
    if not isinstance(value, bool):
        raise Malformed(f"expected parameter {name} as true or false, got {value!r}")
    return value


# -- JSON ---------------------------------------------------------------------------------------------------


class _Said(Struct, frozen=True, gc=False):
    """What a request's JSON says, checked; ``data`` and ``size`` (of binary data) are not, yet."""

    id: str
    group: str
    shape: tuple[int, ...]
    outputs: dict[str, bool]
    timeout_s: float
    data: Any
    size: Any


def _said(text: bytes, spec: TensorSpec, max_rows: int) -> _Said:
    message = _decode(text, spec)
    if len(message.inputs) != 1:
        raise Malformed(f"expected 1 input {spec.name!r}, got {len(message.inputs)} inputs")
    given = message.inputs[0]
    parameters = message.parameters
    return _Said(
        bounded(message.id, "id"),
        group_of(parameters),
        check_input(Given(given.name, given.datatype, given.shape, given.parameters), spec, max_rows),
        wanted_outputs([(each.name, each.parameters) for each in message.outputs], parameters),
        timeout_of(parameters),
        given.data,
        given.parameters.get("binary_data_size"),
    )


_known = lru_cache(maxsize=64)(_said)


def _said_again(text: bytes, spec: TensorSpec, max_rows: int) -> _Said:
    """Return what a text without numbers says: clients say the same of their numbers again and again."""
    return _known(text, spec, max_rows) if len(text) <= _SHORT else _said(text, spec, max_rows)


def _read_flat(text: bytes, spec: TensorSpec, max_rows: int) -> tuple[_Said, NDArray[Any]] | None:
    """Read a request in the usual form; None: it is in another one, or wrong."""
    parts = reals.cut(text) if spec.datatype in reals.REAL else None
    if parts is None:
        return None
    try:
        said = _said_again(parts[0], spec, max_rows)
    except Malformed:
        return None
    if said.data != [] or said.size is not None:
        return None
    x = reals.read(parts[1], spec.datatype, said.shape)
    return None if x is None else (said, x)


def _split(body: bytes, header_length: str | None) -> tuple[bytes, bytes | None]:
    if header_length is None:
        return body, None
    if not (header_length.isascii() and header_length.isdigit() and len(header_length) < 12):
        raise Malformed(f"expected Inference-Header-Content-Length as a number, got {header_length[:40]!r}")
    length = int(header_length)
    if length > len(body):
        raise Malformed(f"expected a body of at least {length} bytes of JSON, got {len(body)} bytes")
    return body[:length], body[length:]


def _decode(text: bytes, spec: TensorSpec) -> Any:
    """Read a message whose data is flat, or nested as the shape; typed, so that the numbers are read once."""
    datatype, rank = spec.datatype, len(spec.shape)
    try:
        try:
            return _decoder(datatype, 1).decode(text)
        except msgspec.ValidationError:
            if rank == 1 or b"[[" not in b"".join(text.split(None)):
                raise
            return _decoder(datatype, rank).decode(text)
    except RecursionError:
        raise Malformed("expected JSON of a few levels, got one nested too deep") from None
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Malformed(f"expected an inference request as JSON, got {error}") from error


@lru_cache(maxsize=64)
def _decoder(datatype: Datatype, depth: int) -> msgspec.json.Decoder[Any]:
    kind: Any = float
    if datatype is Datatype.BOOL:
        kind = bool
    elif NUMPY_TYPES[datatype].kind in "iu":
        kind = int
    for _ in range(depth):
        kind = list[kind]
    given = msgspec.defstruct(
        "Input",
        [
            ("name", str),
            ("shape", list[int]),
            ("datatype", str),
            ("parameters", Parameters, {}),
            ("data", kind | UnsetType, UNSET),
        ],
    )
    message = msgspec.defstruct(
        "Request",
        [
            ("inputs", list[given]),  # type: ignore[valid-type]  # made a line above
            ("id", str, ""),
            ("parameters", Parameters, {}),
            ("outputs", list[_Output], []),
        ],
    )
    return msgspec.json.Decoder(message)


def _tensor(said: _Said, binary: bytes | None, spec: TensorSpec) -> NDArray[Any]:
    if said.size is None:
        if said.data is UNSET:
            raise Malformed(f"expected data or binary_data_size for {spec.name}, got neither")
        if binary:
            raise Malformed(f"expected no bytes after the JSON, got {len(binary)}; say binary_data_size")
        return from_values(said.data, spec, said.shape)
    if said.data is not UNSET:
        raise Malformed(f"expected data or binary_data_size for {spec.name}, got both")
    came = 0 if binary is None else len(binary)
    if type(said.size) is not int or said.size != came:
        raise Malformed(
            f"expected binary_data_size of {spec.name} to be the {came} bytes after the JSON, "
            f"got {said.size!r}"
        )
    return from_bytes(binary or b"", spec, said.shape)
