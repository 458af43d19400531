"""Messages: asks and answers as protobuf, checked by the same rules as those that come as JSON.

* Tensors come raw (little-endian, C order) or as typed contents, never both in one request; FP16 only raw,
  as the protocol has it. Answers are raw.
* What the server says of itself is ``description.py``'s; here it only changes its clothes.
* Parameters that are not known change nothing.

Called by ``rpc.py``. Pure. The message classes are NVIDIA's, made from the published ``.proto``.

Source: Open Inference Protocol v2, gRPC; Triton's ``grpc_service.proto``.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

from google.protobuf.json_format import ParseDict
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2 as pb

from daemon.serving import ask as rules
from daemon.serving.answer import Answer
from daemon.serving.ask import Ask, Given
from daemon.serving.refusals import Malformed
from policies.terms import Datatype, TensorSpec

Message = Any
"""One of the generated classes; they are made at run time and have no types."""

_FIELDS = {
    Datatype.BOOL: "bool_contents",
    Datatype.UINT8: "uint_contents",
    Datatype.UINT16: "uint_contents",
    Datatype.UINT32: "uint_contents",
    Datatype.UINT64: "uint64_contents",
    Datatype.INT8: "int_contents",
    Datatype.INT16: "int_contents",
    Datatype.INT32: "int_contents",
    Datatype.INT64: "int64_contents",
    Datatype.FP32: "fp32_contents",
    Datatype.FP64: "fp64_contents",
}


def read(kind: Any, raw: bytes) -> Message:
    """Return a message of a kind.

    Raises:
        Malformed: The bytes are none.
    """
    try:
        return kind.FromString(raw)
    except DecodeError as error:
        raise Malformed(f"expected a {kind.DESCRIPTOR.name}, got bytes that are none: {error}") from error


def fill(kind: Any, said: Mapping[str, Any]) -> bytes:
    """Return a message of a kind with what ``description.py`` says, serialised."""
    raw: bytes = ParseDict(said, kind()).SerializeToString()
    return raw


def plain(parameters: Any) -> dict[str, Any]:
    """Return protobuf parameters as a dictionary; one without a value is None."""
    said: dict[str, Any] = {}
    for name, value in parameters.items():
        choice = value.WhichOneof("parameter_choice")
        said[name] = None if choice is None else getattr(value, choice)
    return said


def ask_of(
    message: Message, spec: TensorSpec, max_rows: int, new_id: Callable[[], str], key: str, within_s: float
) -> Ask:
    """Return the request in a ``ModelInferRequest``.

    Args:
        message: The request.
        spec: The model's input contract.
        max_rows: Most rows of one request.
        new_id: Makes an id for a request without one.
        key: The routing key; empty means the id.
        within_s: The call's deadline, in seconds after the request's arrival.

    Raises:
        Malformed: The request breaks the protocol or the contract.
    """
    if len(message.inputs) != 1:
        raise Malformed(f"expected 1 input {spec.name!r}, got {len(message.inputs)} inputs")
    given = message.inputs[0]
    said = plain(given.parameters) if given.parameters else {}
    shape = rules.check_input(Given(given.name, given.datatype, given.shape, said), spec, max_rows)
    x = _tensor(message, given, spec, shape)
    parameters = plain(message.parameters) if message.parameters else {}
    id_ = rules.bounded(message.id, "id") or new_id()
    outputs: list[tuple[str, Mapping[str, Any]]] = [
        (each.name, plain(each.parameters)) for each in message.outputs
    ]
    return Ask(
        id_,
        rules.group_of(parameters) or id_,
        x,
        rules.wanted_outputs(outputs, parameters),
        message.model_version or None,
        rules.bounded(key, "key") or id_,
        min(rules.timeout_of(parameters), within_s),
    )


def answer_of(ask: Ask, answer: Answer) -> bytes:
    """Return a ``ModelInferResponse`` with raw contents, serialised."""
    message = pb.ModelInferResponse(model_name=answer.model, model_version=str(answer.generation), id=ask.id)
    for name in ask.outputs:
        array = answer.array(name)
        message.outputs.add(name=name, datatype="FP32", shape=array.shape)
        message.raw_output_contents.append(array.astype("<f4", copy=False).tobytes())
    raw: bytes = message.SerializeToString()
    return raw


def _tensor(message: Message, given: Any, spec: TensorSpec, shape: tuple[int, ...]) -> NDArray[Any]:
    raw = message.raw_input_contents
    if raw:
        if len(raw) != 1:
            raise Malformed(f"expected raw_input_contents for 1 input, got {len(raw)}")
        if given.HasField("contents"):
            raise Malformed(f"expected contents or raw_input_contents for {spec.name}, got both")
        return rules.from_bytes(raw[0], spec, shape)
    wanted = _FIELDS.get(spec.datatype)
    if wanted is None:
        raise Malformed(f"expected {spec.datatype.value} data of {spec.name} in raw_input_contents, got none")
    filled = [field.name for field, _ in given.contents.ListFields()]
    if filled != [wanted]:
        raise Malformed(
            f"expected {math.prod(shape)} values in {wanted} or in raw_input_contents for {spec.name}, "
            f"got {', '.join(filled) or 'none'}"
        )
    return rules.from_values(getattr(given.contents, wanted)[:], spec, shape)
