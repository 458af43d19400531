"""Messages for the tests of gRPC, what came of them, and how to wait for another thread."""

import threading
from collections.abc import Callable

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2 as pb

MODEL = "meter-reader"
CODE = grpc.StatusCode
OUTCOMES = ("ok", "client_error", "timeout", "shed", "error")


def message(x=None, raw=True, **changes):
    """Return a good request, with changes to its one input."""
    x = np.zeros((1, 28, 28), np.uint8) if x is None else x
    given = {"name": "image", "datatype": "UINT8", "shape": x.shape} | changes
    made = pb.ModelInferRequest(model_name=MODEL, inputs=[pb.ModelInferRequest.InferInputTensor(**given)])
    if raw:
        made.raw_input_contents.append(x.tobytes())
    return made


def changed(change: Callable, **given):
    made = message(**given)
    change(made)
    return made


def refusal(call, *given, **named) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call(*given, **named)
    return caught.value.code(), caught.value.details()


def counts(plane) -> list[float]:
    told = plane.metrics()
    return [told[f'instar_serve_requests_total{{model="{MODEL}",outcome="{each}"}}'] for each in OUTCOMES]


def until(true: Callable[[], bool]) -> None:
    """Wait for what another thread is about to do."""
    pause = threading.Event()
    for _ in range(3000):
        if true():
            return
        pause.wait(0.01)
    raise AssertionError("expected it within 30 s")
