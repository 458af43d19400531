"""Which records a lane takes: a segment's header, held against the lane's task.

* A header is the line that begins every segment (``policies.telemetry``). It is checked once; after that its
  bytes are looked up.
* Classes and input must be the task's; the embedding's width is the network's own.
* A lane knows ``MOST_LAYOUTS`` headers at most: more networks than that are not served at once.

Records themselves are not read here.
"""

import json
import math
from dataclasses import dataclass

import numpy as np

from policies.errors import PermanentError
from policies.telemetry import FORMAT, MAGIC, sample_fields, telemetry_fields
from policies.terms import Datatype, Task

MOST_HEADER_BYTES = 1 << 14
MOST_LAYOUTS = 64
_MOST_EMBEDDING = 1 << 16


@dataclass(frozen=True, slots=True)
class Layout:
    """A kind of segment and how its records lie; ``header`` is the line itself, newline included."""

    kind: str
    header: bytes
    record_bytes: int


class Layouts:
    """The layouts that one lane takes."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._known: dict[bytes, Layout] = {}

    def read(self, body: memoryview | bytes, kind: str) -> Layout:
        """Return the layout of a body that begins with a header.

        Raises:
            PermanentError: It does not begin with one, or with one of another task.
        """
        end = bytes(body[:MOST_HEADER_BYTES]).find(b"\n") + 1
        if end == 0:
            raise PermanentError(f"expected a segment's header within {MOST_HEADER_BYTES} bytes, got none")
        header = bytes(body[:end])
        layout = self._known.get(header)
        if layout is None:
            layout = self._learn(header)
        if layout.kind != kind:
            raise PermanentError(f"expected records of kind {kind}, the header says {layout.kind}")
        return layout

    def _learn(self, header: bytes) -> Layout:
        if len(self._known) >= MOST_LAYOUTS:
            raise PermanentError(f"expected at most {MOST_LAYOUTS} layouts of a lane, got another one")
        try:
            head = json.loads(header)
            kind, model = head["kind"], head["model"]
            fields = [(name, dtype, tuple(shape)) for name, dtype, shape in head["fields"]]
            if (head["magic"], head["format"]) != (MAGIC, FORMAT):
                raise ValueError(f"magic and format are {head['magic']!r}, {head['format']!r}")
            if fields != self._wanted(kind, fields):
                raise ValueError(f"fields of kind {kind!r} are not those of task {self._task.name}")
            record_bytes = np.dtype([(name, dtype, shape) for name, dtype, shape in fields]).itemsize
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise PermanentError(f"expected a header of {MAGIC} {FORMAT}, got {error!r}"[:500]) from error
        if model != self._task.model:
            raise PermanentError(f"expected records of model {self._task.model}, got {str(model)[:80]!r}")
        self._known[header] = Layout(kind, header, record_bytes)
        return self._known[header]

    def _wanted(self, kind: str, fields: list[tuple[str, str, tuple[int, ...]]]) -> list[object]:
        """Return the fields that segments of a kind have; the embedding's width is taken as it comes."""
        task = self._task
        if kind == "samples":
            dtype = np.dtype(_NUMPY[task.input.datatype]).str
            return list(sample_fields(dtype, task.input.shape[1:]))
        if kind != "telemetry":
            raise ValueError(f"expected kind telemetry or samples, got {kind!r}")
        shapes = {name: shape for name, _dtype, shape in fields}
        width = math.prod(shapes["embedding"])
        if not 0 <= width <= _MOST_EMBEDDING:
            raise ValueError(f"expected an embedding of at most {_MOST_EMBEDDING}, got {width}")
        return list(telemetry_fields(len(task.classes), width))


_NUMPY = {one: one.value.lower().replace("fp", "float") for one in Datatype}
