"""The space for windows of sensor readings, one channel or many: see ``search.spaces.staged``.

A window is an image of height 1. Half the networks look at the latest half of it only, which halves the work.
Steps are taken while there are enough readings left, at most four at once.
"""

from policies.errors import PermanentError
from policies.terms import Datatype, Precision, Task
from search.blueprint import Entry, Layout
from search.codec import Codec, Plan, same
from search.spaces.staged import Stages, staged

_FEWEST_STEPS, _MOST_STEPS, _MOST_CHANNELS = 8, 4096, 128
_STEM = 16
_WIDTHS = ((8, 12, 16), (16, 24, 32), (24, 36, 48))
_EMBEDDING = 48
_ROOM = 4
"""Readings that a stage leaves at least."""


def window_space(task: Task, precisions: tuple[Precision, ...]) -> Codec:
    """Return the space of a window task.

    Raises:
        PermanentError: The input is not a batch of FP32 (channels, steps).
    """
    spec = task.input
    fits = len(spec.shape) == 3 and spec.shape[0] == -1
    fits = fits and 1 <= spec.shape[1] <= _MOST_CHANNELS and _FEWEST_STEPS <= spec.shape[2] <= _MOST_STEPS
    if spec.datatype is not Datatype.FP32 or not fits:
        raise PermanentError(
            f"expected an input of FP32 (-1, channels, steps), up to {_MOST_CHANNELS} channels and "
            f"{_FEWEST_STEPS} to {_MOST_STEPS} steps, got {spec.datatype} {spec.shape} in task {task.name}; "
            "give the task another input, or another modality"
        )
    return Codec(window_plan(spec.shape[1], spec.shape[2], len(task.classes)), precisions)


def window_plan(channels: int, steps: int, classes: int) -> Plan:
    """Return the declaration for windows of one length."""
    half = same(steps, 2)
    first = _stride(half)
    strides, left = [], same(half, first)
    for _ in _WIDTHS:
        strides.append((1, _stride(left)))
        left = same(left, strides[-1][1])
    long = steps >= 256
    stages = Stages(
        entries=tuple(Entry(Layout.CT, channels, 1, steps, 1, part) for part in (half, steps)),
        stem=_STEM,
        stem_kernel=(1, 15 if long else 5),
        stem_stride=(1, first),
        widths=_WIDTHS,
        strides=tuple(strides),
        kernels=((1, 5), (1, 9)) if long else ((1, 3), (1, 5)),
        halves=(2, 3, 4),
        embedding=_EMBEDDING,
    )
    return staged("window", stages, classes)


def _stride(left: int) -> int:
    """Return how many readings a step may take.

    >>> [_stride(left) for left in (512, 32, 15, 4)]
    [4, 2, 2, 1]
    """
    return 4 if left >= 128 else 2 if left >= 2 * _ROOM - 1 else 1
