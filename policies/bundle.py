"""What an ONNX bundle says of itself, under the metadata key ``instar.bundle``, as canonical JSON.

A bundle is one ONNX file with its preprocessing inside the graph, the outputs ``logits`` (batch, classes) and
``embedding`` (batch, d), and this text. It is named by the digest of its bytes. It holds no date, so that
the same brief and seed give the same bytes.

A bundle may have an exit: a third output, ``exit_logits`` (batch, classes), computed from a tensor in the
middle of the graph, the trunk. Who serves it cuts the graph there (``policies.cut``) and spares a row the
rest when the exit is sure enough; how sure is the policy's to say, not the bundle's.
"""

from typing import Literal

from pydantic import Field, model_validator

from policies.terms import Datatype, Genome, Name, Task, TensorSpec, Term

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
    exit_logits_b64: str | None = Field(
        default=None, description="Of a bundle with an exit, and of no other."
    )


class Exit(Term):
    """Where a row may leave early. One row's exit does not depend on the rows beside it."""

    output: Literal["exit_logits"]
    trunk: TensorSpec = Field(
        description="From which the rest of the graph goes on: FP32, or UINT8 in a network in int8."
    )

    @model_validator(mode="after")
    def _batched(self) -> "Exit":
        spec = self.trunk
        if (
            spec.datatype not in (Datatype.FP32, Datatype.UINT8)
            or spec.shape[:1] != (-1,)
            or min(spec.shape[1:], default=0) < 1
        ):
            raise ValueError(f"expected a trunk of FP32 or UINT8 (-1, ...), got {spec.datatype} {spec.shape}")
        return self


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
    exit: Exit | None = None

    @model_validator(mode="after")
    def _told_of_the_exit(self) -> "BundleMeta":
        if any((golden.exit_logits_b64 is None) != (self.exit is None) for golden in self.goldens):
            wanted = "no" if self.exit is None else "an"
            raise ValueError(f"expected {wanted} exit in every golden, as in the bundle; export it again")
        return self


def check_task(meta: BundleMeta, task: Task) -> str | None:
    """Return how a bundle's contract differs from its task's, or None when it is the same."""
    if meta.input != task.input:
        return f"expected input {task.input}, the bundle has {meta.input}"
    if meta.classes != task.classes:
        return f"expected {len(task.classes)} classes {task.classes}, the bundle has {meta.classes}"
    wanted = ("logits", "embedding") if meta.exit is None else ("logits", "embedding", meta.exit.output)
    names = tuple(spec.name for spec in meta.outputs)
    if names != wanted:
        return f"expected outputs {', '.join(wanted)}, the bundle has {', '.join(names)}"
    logits, exits = meta.outputs[0], meta.outputs[2:]
    if any((one.datatype, one.shape) != (logits.datatype, logits.shape) for one in exits):
        return f"expected an exit of {logits.datatype} {logits.shape} as the logits, got {exits[0].shape}"
    return None
