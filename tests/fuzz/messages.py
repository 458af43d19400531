"""Fuzz the parser of gRPC requests: any bytes are a checked ask, or ``Malformed``."""

import math

import atheris
import numpy as np
from tritonclient.grpc import service_pb2 as pb

with atheris.instrument_imports(include=["daemon.serving"]):
    from daemon.serving import ask as rules
    from daemon.serving import messages
    from daemon.serving.refusals import Malformed
    from daemon.serving.slot import NUMPY_TYPES

from tests.fuzz.ask import MOST_ROWS, SPECS, check, check_refusal
from tests.fuzz.harness import fuzz


def one(data: bytes) -> None:
    """Try one input: which contract, then a message."""
    if not data:
        return
    spec = SPECS[data[0] % len(SPECS)]
    try:
        message = messages.read(pb.ModelInferRequest, data[1:])
        ask = messages.ask_of(message, spec, MOST_ROWS, lambda: "new", "", math.inf)
    except Malformed as error:
        check_refusal(str(error))
    else:
        # Small numbers are packed into a byte each, and defaults into none.
        check(ask, spec, 8 * len(data))


def corpus() -> list[bytes]:
    """Return requests of every kind that are good, raw and typed."""
    made = []
    for number, spec in enumerate(SPECS):
        shape = (2, *spec.shape[1:])
        zeros = np.zeros(shape, NUMPY_TYPES[spec.datatype])
        tensor = pb.ModelInferRequest.InferInputTensor(
            name="x", datatype=spec.datatype.value, shape=list(shape)
        )
        message = pb.ModelInferRequest(id="a", inputs=[tensor], raw_input_contents=[zeros.tobytes()])
        message.parameters["group"].string_param = "g"
        message.parameters["timeout"].int64_param = 5
        message.outputs.add(name="logits")
        made.append(bytes([number]) + message.SerializeToString())
        if (field := messages._FIELDS.get(spec.datatype)) is not None:
            getattr(tensor.contents, field).extend(zeros.ravel().tolist())
            typed = pb.ModelInferRequest(inputs=[tensor])
            made.append(bytes([number]) + typed.SerializeToString())
    return made


def plant() -> None:
    """Let what is no number through."""
    rules._checked = lambda array, _spec: array


if __name__ == "__main__":
    fuzz(one, corpus(), plant)
