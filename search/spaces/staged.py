"""Networks in stages, for images and for windows: elastic size, depth, width, kernel, expansion, exit.

* A stem, stages of one or two blocks, and a 1x1 head. The first block of a stage may take steps.
* A block is a dense convolution into ``expansion`` times its inputs, and a 1x1 back. Depthwise kernels
  have fewer multiplications, but cost more CPU time in training at these sizes (measured: 50 against 31 ms a
  step), and the search pays for training, not for multiplications.
* The network may end one stage early, in a head of its own. Every head is as wide: monitors read its output.
* Channels are weighed (squeeze and excite) in the last stage only, where they are many and positions few.
* The genes of a block or a stage that is not there are inactive.
"""

from collections.abc import Callable
from dataclasses import dataclass

from search.blueprint import Block, Conv, Entry, Squeeze
from search.codec import Gene, Place, Plan, Values, same

SIZE, EXIT = 0, 1
_STAGE_GENES = 6
_BLOCKS = 2
_SQUEEZED = 4
"""Channels to one hidden number of a squeeze."""

Pair = tuple[int, int]


@dataclass(frozen=True)
class Stages:
    """The measures of a family of networks.

    Args:
        entries: Ways in, the smallest first.
        stem: Channels after the stem.
        stem_kernel: Of the stem.
        stem_stride: Of the stem.
        widths: Channels of each stage, the narrowest first.
        strides: Step of the first block of each stage.
        kernels: Of a block, the smallest first.
        halves: Expansion factors in halves, so that all widths are whole.
        embedding: Channels of the head.
    """

    entries: tuple[Entry, ...]
    stem: int
    stem_kernel: Pair
    stem_stride: Pair
    widths: tuple[tuple[int, ...], ...]
    strides: tuple[Pair, ...]
    kernels: tuple[Pair, ...]
    halves: tuple[int, ...]
    embedding: int


def staged(name: str, stages: Stages, classes: int) -> Plan:
    """Return the declaration of a family."""
    last = len(stages.widths) - 1
    squeeze = 2 + _STAGE_GENES * len(stages.widths)
    places = [Place((SIZE,), _stem(stages))]
    for stage in range(len(stages.widths)):
        places += [_place(stages, stage, index, squeeze) for index in range(_BLOCKS)]
        if stage >= last - 1:
            places.append(_head(stages, stage))
    return Plan(
        name=name,
        genes=_genes(stages, last),
        places=tuple(places),
        entry_gene=SIZE,
        entries=stages.entries,
        exit_gene=EXIT,
        classifiers=("classifier.early", "classifier"),
        classes=classes,
        embedding=stages.embedding,
    )


def _genes(stages: Stages, last: int) -> tuple[Gene, ...]:
    genes = [Gene("size", len(stages.entries)), Gene("exit", 2)]
    for stage, widths in enumerate(stages.widths):
        there = ((EXIT, 1),) if stage == last else ()
        twice = (*there, (_first(stage), 1))
        choices = [("kernel", len(stages.kernels)), ("expansion", len(stages.halves))]
        genes += [Gene("depth", _BLOCKS, there), Gene("width", len(widths), there)]
        genes += [Gene(kind, values, there) for kind, values in choices]
        genes += [Gene(kind, values, twice) for kind, values in choices]
    return (*genes, Gene("squeeze", 2, ((EXIT, 1),)))


def _first(stage: int) -> int:
    return 2 + _STAGE_GENES * stage


def _stem(stages: Stages) -> Callable[[Values], Block]:
    def block(values: Values) -> Block:
        entry = stages.entries[values[0]]
        height, width = _sides(stages, values[0], -1)
        conv = Conv(
            "stem", stages.stem_kernel, stages.stem_stride, entry.channels, stages.stem, True, height, width
        )
        return Block((conv,), residual=False)

    return block


def _place(stages: Stages, stage: int, index: int, squeeze: int) -> Place:
    """Return where block ``index`` of a stage may stand."""
    first, last = _first(stage), stage == len(stages.widths) - 1
    before = _first(stage - 1) + 1 if stage and not index else first + 1
    choice = first + 2 + 2 * index
    genes = (SIZE, EXIT, first, before, first + 1, choice, choice + 1, *((squeeze,) if last else ()))

    def block(values: Values) -> Block | None:
        size, leave, depth, narrow, wide, kernel, expansion, *squeezed = values
        if depth < index or (last and not leave):
            return None
        outputs = stages.widths[stage][wide]
        came = stages.widths[stage - 1][narrow] if stage else stages.stem
        inputs = outputs if index else came
        sides = _sides(stages, size, stage)
        stride = stages.strides[stage] if not index else (1, 1)
        hidden = inputs * stages.halves[expansion] // 2
        slot = f"s{stage}b{index}"
        convs = (
            Conv(f"{slot}.expand", stages.kernels[kernel], stride, inputs, hidden, True, *sides),
            Conv(f"{slot}.project", (1, 1), (1, 1), hidden, outputs, False, *sides),
        )
        weighed = Squeeze(f"{slot}.squeeze", outputs, max(stages.widths[stage]) // _SQUEEZED)
        return Block(
            convs,
            residual=stride == (1, 1) and inputs == outputs,
            squeeze=weighed if squeezed and squeezed[0] else None,
        )

    return Place(genes, block)


def _head(stages: Stages, stage: int) -> Place:
    last = stage == len(stages.widths) - 1

    def block(values: Values) -> Block | None:
        size, leave, wide = values
        if bool(leave) != last:
            return None
        sides = _sides(stages, size, stage)
        slot = "head" if last else "head.early"
        inputs = stages.widths[stage][wide]
        return Block((Conv(slot, (1, 1), (1, 1), inputs, stages.embedding, True, *sides),), residual=False)

    return Place((SIZE, EXIT, _first(stage) + 1), block)


def _sides(stages: Stages, size: int, stage: int) -> Pair:
    """Return height and width after a stage; -1 is the stem."""
    entry = stages.entries[size]
    height, width = entry.to_height, entry.to_width
    for down, across in (stages.stem_stride, *stages.strides[: stage + 1]):
        height, width = same(height, down), same(width, across)
    return height, width
