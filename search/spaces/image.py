"""The space for small images, grey or in colour: see ``search.spaces.staged``.

The stem halves the side; stages work at a half, a quarter and an eighth of it. Above 40 pixels the first
stage halves it again, so that the work for a row stays in bounds. Half the networks see the image at three
quarters of its side.
"""

from policies.errors import PermanentError
from policies.terms import Datatype, Precision, Task
from search.blueprint import Entry, Layout
from search.codec import Codec, Plan
from search.spaces.staged import Stages, staged

_SMALLEST_SIDE, _LARGEST_SIDE = 20, 64
_LARGE = 40

STEM = 16
EMBEDDING = 48
WIDTHS = ((8, 12, 16), (16, 24, 32), (24, 36, 48))
HALVES = (2, 3, 4)


def image_space(task: Task, precisions: tuple[Precision, ...]) -> Codec:
    """Return the space of an image task.

    Raises:
        PermanentError: The input is not a batch of UINT8 images of 20 to 64 pixels a side.
    """
    layout, channels, height, width = _read(task)
    plan = image_plan(layout, channels, height, width, len(task.classes))
    return Codec(plan, precisions)


def image_plan(
    layout: Layout,
    channels: int,
    height: int,
    width: int,
    classes: int,
    *,
    stem: int = STEM,
    widths: tuple[tuple[int, ...], ...] = WIDTHS,
    embedding: int = EMBEDDING,
) -> Plan:
    """Return the declaration for one image size; a benchmark asks for other measures than a task gets."""
    sizes = [(height * 3 // 4, width * 3 // 4), (height, width)]
    first = (2, 2) if max(height, width) > _LARGE else (1, 1)
    stages = Stages(
        entries=tuple(Entry(layout, channels, height, width, *size) for size in sizes),
        stem=stem,
        stem_kernel=(3, 3),
        stem_stride=(2, 2),
        widths=widths,
        strides=(first, *[(2, 2)] * (len(widths) - 1)),
        kernels=((3, 3), (5, 5)),
        halves=HALVES,
        embedding=embedding,
    )
    return staged("image", stages, classes)


def _read(task: Task) -> tuple[Layout, int, int, int]:
    """Return layout, channels, height and width of a row."""
    spec = task.input
    found = None
    match spec.shape:
        case (-1, height, width):
            found = Layout.HW, 1, height, width
        case (-1, height, width, 3):
            found = Layout.HWC, 3, height, width
        case (-1, 3, height, width):
            found = Layout.CHW, 3, height, width
        case _:
            pass
    good = found is not None and all(_SMALLEST_SIDE <= side <= _LARGEST_SIDE for side in found[2:])
    if spec.datatype is not Datatype.UINT8 or found is None or not good:
        raise PermanentError(
            f"expected an input of UINT8 (-1, h, w), (-1, h, w, 3) or (-1, 3, h, w), sides of "
            f"{_SMALLEST_SIDE} to {_LARGEST_SIDE} pixels, got {spec.datatype} {spec.shape} in task "
            f"{task.name}; give the task another input, or another modality"
        )
    return found
