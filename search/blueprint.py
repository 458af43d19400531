"""A blueprint: the layers of one network, as plain numbers.

A ``Space`` turns a genome into a blueprint; the supernet runs it, the cost model prices it, the exporter
writes it. A blueprint names slots of the supernet, and holds no weights.

* Every convolution is square, padded to "same", without bias, and followed by a batch norm.
* A block adds its input to its output when ``residual`` is set.
* After the last block: global average pool (the embedding), then one linear layer (the logits).
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Conv:
    """One convolution, and how much of its slot it uses.

    Args:
        slot: Name of the supernet's weights; the first ``outputs`` and ``inputs`` channels and the centre
            ``kernel`` x ``kernel`` of them are used.
        kernel: Side of the kernel; odd.
        stride: Step in both directions.
        inputs: Channels in.
        outputs: Channels out.
        relu: Whether a ReLU follows the batch norm.
        height: Rows of the output.
        width: Columns of the output.
    """

    slot: str
    kernel: int
    stride: int
    inputs: int
    outputs: int
    relu: bool
    height: int
    width: int

    @property
    def params(self) -> int:
        """Return the numbers it ships: weights, and one bias a channel after the batch norm is folded in."""
        return self.outputs * (self.inputs * self.kernel**2 + 1)

    @property
    def macs(self) -> int:
        """Return multiply-accumulates for one input row."""
        return self.outputs * self.inputs * self.kernel**2 * self.height * self.width


@dataclass(frozen=True)
class Block:
    """Convolutions in a row, perhaps with a shortcut around them."""

    convs: tuple[Conv, ...]
    residual: bool


@dataclass(frozen=True)
class Blueprint:
    """A whole network for images of ``height`` x ``width`` pixels and one channel."""

    height: int
    width: int
    blocks: tuple[Block, ...]
    classes: int

    @property
    def embedding(self) -> int:
        """Return the width of the penultimate features."""
        return self.blocks[-1].convs[-1].outputs

    @property
    def convs(self) -> tuple[Conv, ...]:
        """Return all convolutions in the order in which they run."""
        return tuple(conv for block in self.blocks for conv in block.convs)

    @property
    def params(self) -> int:
        """Return the numbers that ship.

        >>> conv = Conv("a", 3, 1, 1, 4, True, 8, 8)
        >>> Blueprint(8, 8, (Block((conv,), False),), 2).params
        50
        """
        return sum(conv.params for conv in self.convs) + self.classes * (self.embedding + 1)

    @property
    def macs(self) -> int:
        """Return multiply-accumulates for one input row.

        >>> conv = Conv("a", 3, 1, 1, 4, True, 8, 8)
        >>> Blueprint(8, 8, (Block((conv,), False),), 2).macs
        2312
        """
        return sum(conv.macs for conv in self.convs) + self.classes * self.embedding
