"""What everybody is asked: two models in three forms, and the right answers to that.

* A cell is a model in a form; a `Course` lays the files that servers and load generators read, and measures a
  cell at a door.
* `verify` holds the numbers of a door against the runtime's, before anything is measured.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import grpc
import httpx
import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2

from benchmarks.serving import load, models
from benchmarks.serving.asks import FRAME_BYTES, HEADER_LENGTH, Ask, Form, ask, check, logits_of
from benchmarks.serving.load import Burst, Door
from benchmarks.serving.quiet import calmest
from policies.errors import PermanentError

MODELS = tuple(models.GRAPHS)
_PATIENCE_S = 10.0


class Cell(NamedTuple):
    """A model, asked in one form."""

    model: str
    form: Form


@dataclass(frozen=True)
class Course:
    """What everybody is asked: the models' files, the requests' bodies and the right answers.

    Args:
        folder: Where they lie.
        warm_s: Seconds before a burst counts.
        seconds: Of a burst.
    """

    folder: Path
    warm_s: int
    seconds: int

    def lay(self) -> None:
        """Write the files."""
        for model in MODELS:
            self.file(model).write_bytes(models.make_bundle(model))
            for form in Form:
                self.body(Cell(model, form)).write_bytes(self.ask(Cell(model, form)).body)

    def file(self, model: str) -> Path:
        """Return a model's file."""
        return self.folder / f"{model}.onnx"

    def body(self, cell: Cell) -> Path:
        """Return the file of a request's body."""
        return self.folder / f"{cell.model}.{cell.form.lower()}"

    def ask(self, cell: Cell) -> Ask:
        """Return a cell's request."""
        return ask(cell.form, cell.model, models.digit(1))

    def wanted(self, model: str) -> NDArray[np.float32]:
        """Return the right answer."""
        return models.answer(self.file(model).read_bytes(), models.digit(1))

    def burst(self, door: Door, cell: Cell, frame_bytes: int) -> Burst:
        """Measure one cell; ``frame_bytes`` is of a right gRPC answer."""
        asked, body, lengths_s = self.ask(cell), self.body(cell), (self.warm_s, self.seconds)
        if cell.form is Form.GRPC:
            return calmest(lambda: load.grpc(door, asked, body, frame_bytes, *lengths_s))
        return calmest(lambda: load.rest(door, asked, body, *lengths_s))


def verify(who: str, asked: Sequence[tuple[Door, Cell]], course: Course) -> dict[Cell, int]:
    """Hold one answer of each door against the runtime's; return the bytes of the gRPC answers.

    Raises:
        PermanentError: One is refused, or another one.
    """
    frames: dict[Cell, int] = {}
    for door, cell in asked:
        if cell.form is Form.GRPC:
            came, frames[cell] = grpc_answer(door, course.ask(cell))
        else:
            came = rest_answer(door, course.ask(cell))
        check(f"{who} ({cell.model}, {cell.form})", came, course.wanted(cell.model))
    return frames


def rest_answer(door: Door, asked: Ask) -> NDArray[np.float32]:
    """Return the logits (n, 10) that a REST door answers.

    Raises:
        PermanentError: It is refused, or there are none.
    """
    url = f"http://{door.address}{asked.path}"
    try:
        answer = httpx.post(url, content=asked.body, headers=asked.headers, timeout=_PATIENCE_S)
    except httpx.HTTPError as error:
        raise PermanentError(f"expected an answer of {url}, got {error!r}") from error
    if answer.status_code != 200:
        raise PermanentError(f"expected 200 of {url}, got {answer.status_code}: {answer.text[:200]}")
    return logits_of(answer.content, answer.headers.get(HEADER_LENGTH))


def grpc_answer(door: Door, asked: Ask) -> tuple[NDArray[np.float32], int]:
    """Return the logits (n, 10) that a gRPC door answers, and the bytes of the answer's frame.

    Raises:
        PermanentError: It is refused, or there are none.
    """
    with grpc.insecure_channel(door.address) as channel:
        try:
            raw = channel.unary_unary(asked.path)(asked.body[FRAME_BYTES:], timeout=_PATIENCE_S)
        except grpc.RpcError as error:
            raise PermanentError(f"expected a gRPC answer of {door.address}, got {error!r}") from error
    answer = service_pb2.ModelInferResponse.FromString(raw)
    # The protocol lets a server choose between two places.
    if answer.raw_output_contents:
        numbers = np.frombuffer(answer.raw_output_contents[0], "<f4")
    else:
        numbers = np.array([x for one in answer.outputs for x in one.contents.fp32_contents], np.float32)
    if not len(numbers) or len(numbers) % models.CLASSES:
        raise PermanentError(f"expected logits of {door.address}, got {len(numbers)} numbers")
    return numbers.reshape(-1, models.CLASSES), len(raw) + FRAME_BYTES
