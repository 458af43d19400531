"""Fuzz the parser of REST requests: any body and any framing is a checked ask, or ``Malformed``."""

import json

import atheris
import numpy as np

with atheris.instrument_imports(include=["daemon.serving", "json", "msgspec"]):
    from daemon.serving import ask as rules
    from daemon.serving.ask import Ask, parse
    from daemon.serving.refusals import Malformed
    from daemon.serving.slot import NUMPY_TYPES

from policies.terms import TensorSpec
from tests.fuzz.harness import fuzz

SHAPES = ((-1,), (-1, 3), (-1, 2, 2), (-1, 2, 1, 3))
SPECS = [TensorSpec(name="x", datatype=datatype, shape=shape) for datatype in NUMPY_TYPES for shape in SHAPES]
MOST_ROWS = 4


def framed(spec: int, body: bytes, header: bytes = b"") -> bytes:
    """Return an input: which contract, the framing header with its length, and the body."""
    return bytes([spec, len(header)]) + header + body


def one(data: bytes) -> None:
    """Try one input."""
    if len(data) < 2:
        return
    spec = SPECS[data[0] % len(SPECS)]
    length = data[1] % 16
    header, body = data[2 : 2 + length], data[2 + length :]
    try:
        ask = parse(body, header.decode("latin-1") if length else None, spec, MOST_ROWS, lambda: "new")
    except Malformed as error:
        check_refusal(str(error))
    else:
        check(ask, spec, len(body))


def check_refusal(text: str) -> None:
    """Raise unless a refusal says what was expected, and is short, whatever came."""
    assert "expected" in text
    assert len(text) < 2000


def check(ask: Ask, spec: TensorSpec, came_bytes: int) -> None:
    """Raise unless an ask is as the contract says."""
    assert ask.x.dtype == NUMPY_TYPES[spec.datatype]
    assert ask.x.shape[1:] == spec.shape[1:]
    assert 1 <= ask.x.shape[0] <= MOST_ROWS
    assert ask.x.nbytes <= 8 * came_bytes
    assert ask.x.dtype.kind != "f" or np.isfinite(ask.x).all(), "no number"
    assert ask.x.dtype.kind != "b" or ask.x.view("u1").max() <= 1
    assert ask.outputs
    assert set(ask.outputs) <= set(rules.OUTPUTS)
    assert 1 <= len(ask.id) <= rules.MOST_ID_CHARS
    assert ask.timeout_s > 0
    f"{ask.id}{ask.group}{ask.key}".encode()


def corpus() -> list[bytes]:
    """Return requests of every kind that are good."""
    made = []
    for number, spec in enumerate(SPECS):
        shape = (2, *spec.shape[1:])
        zeros = np.zeros(shape, NUMPY_TYPES[spec.datatype])
        tensor = {"name": "x", "datatype": spec.datatype.value, "shape": list(shape)}
        more = {"id": "a", "parameters": {"group": "g", "timeout": 5}, "outputs": [{"name": "logits"}]}
        text = json.dumps({**more, "inputs": [{**tensor, "data": zeros.tolist()}]})
        made.append(framed(number, text.encode()))
        sized = {**tensor, "parameters": {"binary_data_size": zeros.nbytes}}
        head = json.dumps({"inputs": [sized]}).encode()
        made.append(framed(number, head + zeros.tobytes(), str(len(head)).encode()))
    return made


def plant() -> None:
    """Let what is no number through."""
    rules._checked = lambda array, _spec: array


if __name__ == "__main__":
    fuzz(one, corpus(), plant)
