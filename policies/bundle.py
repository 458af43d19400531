"""What an ONNX bundle says of itself, under the metadata key ``instar.bundle``, as canonical JSON.

A bundle is one ONNX file with its preprocessing inside the graph, the outputs ``logits`` (batch, classes) and
``embedding`` (batch, d), and this text. It is named by the digest of its bytes. It holds no date, so that
the same brief and seed give the same bytes.
"""

from typing import Literal

from pydantic import Field

from policies.terms import Genome, Name, Task, TensorSpec, Term

KEY = "instar.bundle"
OPSET = 17


class Golden(Term):
    """Inputs and the outputs that the trained network gave for them, before export.

    Arrays are base64 of little-endian C-order bytes; outputs are float32. ``probe`` inputs lie outside the
    data (constants, extremes, noise), where a planted branch would show.
    """

    kind: Literal["clean", "probe"]
    rows: int = Field(gt=0)
    input_b64: str
    logits_b64: str
    embedding_b64: str


class BundleMeta(Term):
    """The text inside a bundle."""

    format: Literal[1]
    task: Name
    model: Name
    genome: Genome
    input: TensorSpec
    outputs: tuple[TensorSpec, ...]
    classes: tuple[str, ...]
    brief: Name
    seed: int
    params: int = Field(gt=0)
    macs: int = Field(gt=0)
    goldens: tuple[Golden, ...] = Field(min_length=2)


def check_task(meta: BundleMeta, task: Task) -> str | None:
    """Return how a bundle's contract differs from its task's, or None when it is the same."""
    if meta.input != task.input:
        return f"expected input {task.input}, the bundle has {meta.input}"
    if meta.classes != task.classes:
        return f"expected {len(task.classes)} classes {task.classes}, the bundle has {meta.classes}"
    names = tuple(spec.name for spec in meta.outputs)
    if names != ("logits", "embedding"):
        return f"expected outputs logits and embedding, the bundle has {names}"
    return None
