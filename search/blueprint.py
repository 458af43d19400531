"""A network as plain numbers.

A ``Space`` turns a genome into a blueprint; the supernet runs it, the cost model prices it, the exporter
writes it. A blueprint names slots of the supernet, and holds no weights.

* Everything is a convolution over (height, width): a window has height 1, a table row has height and width 1,
  where a convolution is a matrix product and is written as one.
* A convolution is padded to "same", without bias, and followed by a batch norm.
* A block may weigh its channels (``Squeeze``), and adds its input to its output when ``residual`` is set.
* After the last block: global average pool (the embedding), then one linear layer (the logits).
"""

from dataclasses import dataclass
from enum import StrEnum

from policies.terms import Precision


class Layout(StrEnum):
    """How the axes of a row are laid out; c channels, h rows, w columns, t steps, f features."""

    HW = "hw"
    HWC = "hwc"
    CHW = "chw"
    CT = "ct"
    F = "f"

    @property
    def pixels(self) -> bool:
        """Tell whether values are pixels, 0 to 255, rather than numbers with a unit of their own."""
        return self in (Layout.HW, Layout.HWC, Layout.CHW)


@dataclass(frozen=True)
class Entry:
    """What happens to a row before the first block.

    * Pixels are scaled to [0, 1]; other numbers are standardised with the mean and spread of the founding
      rows, which the supernet keeps. Features of a table are then squashed to (-1, 1), for their tails are
      long.
    * An image may be made smaller (bilinear); of a window, the latest part may be kept.

    Args:
        layout: Of a row.
        channels: Channels, or features of a table.
        height: Of the row as it comes; 1 for windows and tables.
        width: Of the row as it comes; 1 for tables.
        to_height: What the first block sees.
        to_width: What the first block sees.
    """

    layout: Layout
    channels: int
    height: int
    width: int
    to_height: int
    to_width: int

    @property
    def whole(self) -> bool:
        """Tell whether the first block sees the row at its own size."""
        return (self.height, self.width) == (self.to_height, self.to_width)


@dataclass(frozen=True)
class Conv:
    """One convolution, and how much of its slot it uses.

    Args:
        slot: Name of the supernet's weights; the first ``outputs`` and ``inputs`` channels and the centre
            ``kernel`` of them are used.
        kernel: Height and width of the kernel; odd.
        stride: Step down and across.
        inputs: Channels in.
        outputs: Channels out.
        relu: Whether a ReLU follows the batch norm.
        height: Rows of the output.
        width: Columns of the output.
    """

    slot: str
    kernel: tuple[int, int]
    stride: tuple[int, int]
    inputs: int
    outputs: int
    relu: bool
    height: int
    width: int

    @property
    def dense(self) -> bool:
        """Tell whether it is a plain matrix product, as in a network for tables."""
        return self.kernel == (1, 1) and (self.height, self.width) == (1, 1)

    @property
    def params(self) -> int:
        """Return the numbers it ships: weights, and one bias a channel after the batch norm is folded in."""
        return self.outputs * (self.inputs * self.kernel[0] * self.kernel[1] + 1)

    @property
    def macs(self) -> int:
        """Return multiply-accumulates for one row."""
        return self.outputs * self.inputs * self.kernel[0] * self.kernel[1] * self.height * self.width

    @property
    def values(self) -> int:
        """Return the numbers of its output for one row."""
        return self.outputs * self.height * self.width


@dataclass(frozen=True)
class Squeeze:
    """A weight for each channel, computed from all of them.

    Source: Hu et al., Squeeze-and-excitation networks (2018).
    """

    slot: str
    channels: int
    hidden: int

    @property
    def params(self) -> int:
        """Return the numbers it ships."""
        return self.hidden * (self.channels + 1) + self.channels * (self.hidden + 1)

    @property
    def macs(self) -> int:
        """Return multiply-accumulates for one row."""
        return 2 * self.hidden * self.channels


@dataclass(frozen=True)
class Block:
    """Convolutions in a row, perhaps with weighed channels, perhaps with a shortcut around them."""

    convs: tuple[Conv, ...]
    residual: bool
    squeeze: Squeeze | None = None

    @property
    def params(self) -> int:
        """Return the numbers it ships."""
        return sum(conv.params for conv in self.convs) + (self.squeeze.params if self.squeeze else 0)

    @property
    def macs(self) -> int:
        """Return multiply-accumulates for one row."""
        return sum(conv.macs for conv in self.convs) + (self.squeeze.macs if self.squeeze else 0)

    @property
    def values(self) -> int:
        """Return the most numbers that are alive at once for one row: in, out, and what the shortcut
        keeps."""
        first = self.convs[0]
        came = first.inputs * first.height * first.stride[0] * first.width * first.stride[1]
        most, before = 0, came
        for conv in self.convs:
            most = max(most, before + conv.values + (came if self.residual else 0))
            before = conv.values
        return most


@dataclass(frozen=True)
class Blueprint:
    """A whole network.

    Args:
        entry: What happens to a row first.
        blocks: In the order in which they run.
        classifier: Slot of the last layer.
        classes: How many logits.
        precision: What it computes in when it is served.
    """

    entry: Entry
    blocks: tuple[Block, ...]
    classifier: str
    classes: int
    precision: Precision = Precision.FP32

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
        """Return the numbers that ship, whatever their precision.

        >>> conv = Conv("a", (3, 3), (1, 1), 1, 4, True, 8, 8)
        >>> Blueprint(Entry(Layout.HW, 1, 8, 8, 8, 8), (Block((conv,), False),), "classifier", 2).params
        50
        """
        return sum(block.params for block in self.blocks) + self.classes * (self.embedding + 1)

    @property
    def macs(self) -> int:
        """Return multiply-accumulates for one row.

        >>> conv = Conv("a", (3, 3), (1, 1), 1, 4, True, 8, 8)
        >>> Blueprint(Entry(Layout.HW, 1, 8, 8, 8, 8), (Block((conv,), False),), "classifier", 2).macs
        2312
        """
        return sum(block.macs for block in self.blocks) + self.classes * self.embedding
