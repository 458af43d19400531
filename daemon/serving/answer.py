"""An answer: the bytes that go back for an ask, in JSON or with binary tensors behind it.

Called by ``front.py``. The version it names is the generation that really answered. Pure.

Source: Open Inference Protocol v2, REST and binary tensor data.
"""

from typing import Any

import numpy as np
import orjson
from msgspec import Struct
from numpy.typing import NDArray

from daemon.serving.ask import Ask


class Answer(Struct, frozen=True, gc=False):
    """What one slot said to one ask: ``logits`` (rows, classes) and ``embedding`` (rows, d), float32."""

    model: str
    generation: int
    logits: NDArray[np.float32]
    embedding: NDArray[np.float32]

    def array(self, name: str) -> NDArray[np.float32]:
        """Return an output by its name."""
        return self.logits if name == "logits" else self.embedding


def encode(ask: Ask, answer: Answer) -> tuple[bytes, int | None]:
    """Return the body, and the length of its JSON part when binary tensors follow it."""
    outputs: list[dict[str, Any]] = []
    tails: list[bytes] = []
    for name, binary in ask.outputs.items():
        array = answer.array(name)
        output: dict[str, Any] = {"name": name, "datatype": "FP32", "shape": array.shape}
        if binary:
            tails.append(array.astype("<f4", copy=False).tobytes())
            output["parameters"] = {"binary_data_size": array.nbytes}
        else:
            output["data"] = np.ascontiguousarray(array.reshape(-1))
        outputs.append(output)
    head = orjson.dumps(
        {
            "model_name": answer.model,
            "model_version": str(answer.generation),
            "id": ask.id,
            "outputs": outputs,
        },
        option=orjson.OPT_SERIALIZE_NUMPY,
    )
    return (head + b"".join(tails), len(head)) if tails else (head, None)
