"""The space for small grey images: elastic depth, width, kernel and expansion.

* A stem (3x3, stride 2), three stages at a half, a quarter and an eighth of the side, a 1x1 head.
* A block is a dense k x k convolution into ``expansion`` times its inputs, and a 1x1 back. Depthwise kernels
  have fewer multiplications, but cost more CPU time in training at these sizes (measured: 50 against 31 ms a
  step), and the search pays for training, not for multiplications.
* Six genes a stage: depth, width, then kernel and expansion of its two blocks. The genes of the second block
  are inactive at depth 1.
* The head, and with it the embedding's width, is the same for all: monitors read it.
"""

from itertools import product

import numpy as np
from numpy.typing import NDArray

from policies.errors import PermanentError
from policies.terms import Datatype, Task
from search.blueprint import Block, Blueprint, Conv
from search.space import Genes

STEM = 16
EMBEDDING = 48
WIDTHS = ((8, 12, 16), (16, 24, 32), (24, 36, 48))
KERNELS = (3, 5)
HALF_EXPANSIONS = (2, 3, 4)
"""Expansion factors in halves, so that all widths are whole."""

_STAGE = (2, 3, 2, 3, 2, 3)
_GENES = len(_STAGE)
_SMALLEST_SIDE, _LARGEST_SIDE = 20, 64


class ImageSpace:
    """All networks for one image size and number of classes."""

    def __init__(self, height: int, width: int, classes: int) -> None:
        self._height = height
        self._width = width
        self._classes = classes
        self._cardinalities = np.array(_STAGE * len(WIDTHS), dtype=np.int64)

    @property
    def name(self) -> str:
        """Return the name that genomes carry."""
        return "image"

    @property
    def cardinalities(self) -> Genes:
        """Return how many values each gene has; (18,)."""
        return self._cardinalities.copy()

    @property
    def smallest(self) -> Genes:
        """Return the genome of the cheapest network."""
        return np.zeros_like(self._cardinalities)

    @property
    def largest(self) -> Genes:
        """Return the genome that uses every slot whole."""
        return self._cardinalities - 1

    def sample(self, rng: np.random.Generator, n: int) -> Genes:
        """Return ``n`` genomes, each gene drawn evenly."""
        return rng.integers(0, self._cardinalities, (n, len(self._cardinalities)))

    def mutate(self, rng: np.random.Generator, genes: Genes, rate: float) -> Genes:
        """Return a copy in which each gene gets another value with probability ``rate``."""
        step = 1 + rng.integers(0, self._cardinalities - 1, genes.shape)
        changed = (genes + step) % self._cardinalities
        return np.where(rng.random(genes.shape) < rate, changed, genes)

    def cross(self, rng: np.random.Generator, one: Genes, other: Genes) -> Genes:
        """Return children by uniform crossover."""
        return np.where(rng.random(one.shape) < 0.5, one, other)

    def active(self, genes: Genes) -> NDArray[np.bool_]:
        """Return which genes say something; (n, 18)."""
        active = np.ones(genes.shape, dtype=np.bool_)
        for first in range(0, genes.shape[1], _GENES):
            active[:, first + 4 : first + 6] = genes[:, first : first + 1] > 0
        return active

    def normal(self, genes: Genes, reference: Genes) -> Genes:
        """Return a copy whose inactive genes are those of ``reference``."""
        normal: Genes = np.where(self.active(genes), genes, reference)
        return normal

    def encode(self, genes: Genes) -> NDArray[np.float64]:
        """Return one-hot genes, zero where inactive, and the logarithm of the parameter count.

        Returns:
            (n, 46) float64: 45 one-hot columns, one of log10 of thousands of parameters.
        """
        active = self.active(genes)
        columns = [
            (genes[:, i] == value) & active[:, i]
            for i, count in enumerate(self._cardinalities)
            for value in range(count)
        ]
        params = [np.log10(self.blueprint(row).params / 1000) for row in genes]
        return np.column_stack([*columns, params]).astype(np.float64)

    def distance(self, genes: Genes, reference: Genes) -> Genes:
        """Return in how many active genes each row differs from ``reference``; (n,)."""
        return np.asarray(((genes != reference) & self.active(genes)).sum(axis=1), dtype=np.int64)

    def legal(self, genes: Genes) -> NDArray[np.bool_]:
        """Return which rows are genomes of this space; (n,)."""
        if genes.ndim != 2 or genes.shape[1] != len(self._cardinalities):
            return np.zeros(len(genes), dtype=np.bool_)
        return np.asarray(((genes >= 0) & (genes < self._cardinalities)).all(axis=1))

    def blueprint(self, genes: Genes) -> Blueprint:
        """Return the layers of one genome (18,)."""
        blocks = [self._stem()]
        inputs = STEM
        for stage, widths in enumerate(WIDTHS):
            depth, breadth, *choices = (int(gene) for gene in genes[stage * _GENES : (stage + 1) * _GENES])
            for index in range(depth + 1):
                kernel, expansion = choices[2 * index : 2 * index + 2]
                blocks.append(self._block(stage, index, inputs, widths[breadth], kernel, expansion))
                inputs = widths[breadth]
        blocks.append(self._head(inputs))
        return Blueprint(self._height, self._width, tuple(blocks), self._classes)

    def blocks(self) -> tuple[Block, ...]:
        """Return every block that some genome has, without repetition."""
        found = {self._stem(): None} | {self._head(width): None for width in WIDTHS[-1]}
        for stage, widths in enumerate(WIDTHS):
            before = WIDTHS[stage - 1] if stage else (STEM,)
            pairs = [(0, one, two) for one in before for two in widths] + [(1, one, one) for one in widths]
            for (index, one, two), kernel, expansion in product(
                pairs, range(len(KERNELS)), range(len(HALF_EXPANSIONS))
            ):
                found[self._block(stage, index, one, two, kernel, expansion)] = None
        return tuple(found)

    def _stem(self) -> Block:
        height, width = self._sides(0)
        return Block((Conv("stem", 3, 2, 1, STEM, True, height, width),), residual=False)

    def _head(self, inputs: int) -> Block:
        height, width = self._sides(len(WIDTHS) - 1)
        return Block((Conv("head", 1, 1, inputs, EMBEDDING, True, height, width),), residual=False)

    def _block(self, stage: int, index: int, inputs: int, outputs: int, kernel: int, expansion: int) -> Block:
        height, width = self._sides(stage)
        slot = f"s{stage}b{index}"
        stride = 2 if stage and not index else 1
        hidden = inputs * HALF_EXPANSIONS[expansion] // 2
        convs = (
            Conv(f"{slot}.expand", KERNELS[kernel], stride, inputs, hidden, True, height, width),
            Conv(f"{slot}.project", 1, 1, hidden, outputs, False, height, width),
        )
        return Block(convs, residual=stride == 1 and inputs == outputs)

    def _sides(self, stage: int) -> tuple[int, int]:
        height, width = self._height, self._width
        for _ in range(stage + 1):
            # "Same" padding rounds an odd side up.
            height, width = (height + 1) // 2, (width + 1) // 2
        return height, width


def image_space(task: Task) -> ImageSpace:
    """Return the space of an image task.

    Raises:
        PermanentError: The input is not a batch of grey UINT8 images of 20 to 64 pixels a side.
    """
    spec = task.input
    shape = spec.shape
    if (
        spec.datatype is not Datatype.UINT8
        or len(shape) != 3
        or shape[0] != -1
        or not all(_SMALLEST_SIDE <= side <= _LARGEST_SIDE for side in shape[1:])
    ):
        raise PermanentError(
            f"expected an input of UINT8 (-1, h, w), sides of {_SMALLEST_SIDE} to {_LARGEST_SIDE} pixels, "
            f"got {spec.datatype} {shape} in task {task.name}; give the task another space"
        )
    return ImageSpace(shape[1], shape[2], len(task.classes))
