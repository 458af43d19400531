"""The supernet: one set of weights that every genome of a space shares.

* A subnet is a ``Blueprint``; it uses the first channels and the centre of the kernel of each slot.
* Batch norm has no running averages. In training it uses the batch; before a subnet is evaluated or shipped
  its own statistics are measured on calibration rows, because those of another subnet make it worthless.
* Weights live in channels-last layout, which more than halves the CPU time of a step.
* The mean and spread by which rows are standardised are part of the state, and are set once, at founding.

Source: Yu et al., BigNAS (2020), section 3.5 (calibration); Cai et al., Once-for-All (2020) (slots).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from policies.errors import TamperError
from search.blueprint import Block, Blueprint, Conv, Entry, Layout, Squeeze
from search.rows import FAR, axes, resized
from search.space import Shapes

EPSILON = 1e-5
_MEAN, _SPREAD = "entry.mean", "entry.spread"
_SPREADS = (1e-30, 1e30)
_ENOUGH = 200_000
"""Readings of a channel that say where its middle half lies."""


@dataclass(frozen=True)
class Statistics:
    """Mean and variance of a subnet's convolutions, by slot, each (channels,)."""

    mean: dict[str, Tensor]
    variance: dict[str, Tensor]


class Supernet:
    """The shared weights.

    Args:
        shapes: Of all tensors, by name (``Space.shapes``).
        entry: Any way in of the space; for the layout of rows.
        seed: Of the first weights.
    """

    def __init__(self, shapes: Shapes, entry: Entry, seed: int) -> None:
        rng = torch.Generator().manual_seed(seed)
        self._entry = entry
        self._weights = {name: _first(name, shape, rng).requires_grad_() for name, shape in shapes.items()}
        self._mean = torch.zeros(entry.channels)
        self._spread = torch.ones(entry.channels)

    def parameters(self) -> dict[str, Tensor]:
        """Return the tensors that training changes, by name."""
        return dict(self._weights)

    def state(self) -> dict[str, Tensor]:
        """Return a contiguous copy of all weights, and of the standardisation."""
        state = {
            name: weight.detach().clone(memory_format=torch.contiguous_format)
            for name, weight in self._weights.items()
        }
        return state | {_MEAN: self._mean.clone(), _SPREAD: self._spread.clone()}

    def load(self, state: dict[str, Tensor]) -> None:
        """Take over weights.

        Raises:
            TamperError: Names or shapes are not those of this supernet.
        """
        ours = {name: tuple(weight.shape) for name, weight in self.state().items()}
        theirs = {name: tuple(weight.shape) for name, weight in state.items()}
        if ours != theirs:
            odd = sorted(set(ours.items()) ^ set(theirs.items()))
            raise TamperError(f"expected the supernet's {len(ours)} tensors, the state differs in {odd[:4]}")
        with torch.no_grad():
            for name, weight in self._weights.items():
                weight.copy_(state[name])
            self._mean.copy_(state[_MEAN])
            self._spread.copy_(state[_SPREAD])

    def twin(self) -> "Supernet":
        """Return a copy whose training leaves this one alone."""
        shapes = {name: tuple(weight.shape) for name, weight in self._weights.items()}
        twin = Supernet(shapes, self._entry, 0)
        twin.load(self.state())
        return twin

    def standardise(self, x: NDArray[np.generic]) -> None:
        """Learn from rows how to standardise; pixels need no learning.

        The middle half decides: a few huge readings must not squeeze all others together.
        """
        if self._entry.layout.pixels:
            return
        values = axes(torch.from_numpy(np.ascontiguousarray(x)).float(), self._entry.layout)
        flat = values.transpose(0, 1).reshape(self._entry.channels, -1).double().numpy()
        low, middle, high = np.quantile(
            flat[:, :: max(1, flat.shape[1] // _ENOUGH)], [0.25, 0.5, 0.75], axis=1
        )
        # 1.349 spreads of a normal distribution lie between its quartiles.
        spread = np.where(high > low, (high - low) / 1.349, flat.std(axis=1))
        self._mean = torch.from_numpy(middle).float()
        # Neither a spread nor one divided by it may leave what a float holds.
        self._spread = torch.from_numpy(np.clip(np.where(spread > 0, spread, 1.0), *_SPREADS)).float()

    def standard(self) -> tuple[Tensor, Tensor]:
        """Return mean and 1 / spread, each (channels,)."""
        return self._mean, 1 / self._spread

    def prepare(self, x: NDArray[np.generic]) -> Tensor:
        """Return rows as the networks see them, (n, channels, height, width) float32."""
        values = torch.from_numpy(np.ascontiguousarray(x)).float()
        shaped = axes(values, self._entry.layout)
        if self._entry.layout.pixels:
            # Multiplied, not divided, as the bundle does it: the two round differently.
            return shaped.mul(1 / 255)
        mean, factor = (one[None, :, None, None] for one in self.standard())
        # A reading at the end of what a float holds must not become infinite further on.
        scaled = ((shaped - mean) * factor).clamp(-FAR, FAR)
        return F.softsign(scaled) if self._entry.layout is Layout.F else scaled

    def forward(
        self, blueprint: Blueprint, x: Tensor, statistics: Statistics | None = None
    ) -> tuple[Tensor, Tensor]:
        """Run a subnet.

        Args:
            blueprint: The subnet.
            x: From ``prepare``.
            statistics: Its calibration; None uses those of the batch, as in training.

        Returns:
            Logits (n, classes) and embedding (n, d).
        """

        def conv(one: Conv, y: Tensor) -> Tensor:
            return self._normalise(one, self._convolve(one, y), statistics)

        return self._run(blueprint, x, conv)

    def pooled(self, blueprint: Blueprint, x: Tensor, statistics: Statistics) -> list[Tensor]:
        """Return what each block ends in, averaged over all positions, each (n, channels); as ``forward``."""
        x, found = self._enter(blueprint, x), []
        for block in blueprint.blocks:
            x = self._block(block, x, lambda one, y: self._normalise(one, self._convolve(one, y), statistics))
            found.append(x if x.dim() == 2 else x.mean((2, 3)))
        return found

    def calibrate(self, blueprint: Blueprint, x: Tensor) -> Statistics:
        """Return a subnet's statistics over one large batch; ``x`` as in ``forward``."""
        mean: dict[str, Tensor] = {}
        variance: dict[str, Tensor] = {}

        def conv(one: Conv, y: Tensor) -> Tensor:
            raw = self._convolve(one, y)
            over = (0,) if raw.dim() == 2 else (0, 2, 3)
            variance[one.slot], mean[one.slot] = torch.var_mean(raw, over, correction=0)
            return self._normalise(one, raw, Statistics(mean, variance))

        with torch.no_grad():
            self._run(blueprint, x, conv)
        return Statistics(mean, variance)

    def folded(self, conv: Conv, statistics: Statistics) -> tuple[Tensor, Tensor]:
        """Return a convolution's weight and bias with its batch norm folded in."""
        weight = self._slice(conv).detach()
        scale = self._weights[f"{conv.slot}.scale"][: conv.outputs].detach()
        shift = self._weights[f"{conv.slot}.shift"][: conv.outputs].detach()
        factor = scale / torch.sqrt(statistics.variance[conv.slot] + EPSILON)
        return weight * factor[:, None, None, None], shift - statistics.mean[conv.slot] * factor

    def squeezed(self, squeeze: Squeeze) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Return weight and bias of a squeeze's two layers."""
        weights, slot, n = self._weights, squeeze.slot, squeeze.channels
        return (
            (weights[f"{slot}.reduce.weight"][:, :n], weights[f"{slot}.reduce.bias"]),
            (weights[f"{slot}.expand.weight"][:n], weights[f"{slot}.expand.bias"][:n]),
        )

    def classifier(self, slot: str) -> tuple[Tensor, Tensor]:
        """Return weight (classes, d) and bias (classes,) of a last layer."""
        return self._weights[f"{slot}.weight"], self._weights[f"{slot}.bias"]

    def _run(
        self, blueprint: Blueprint, x: Tensor, conv: Callable[[Conv, Tensor], Tensor]
    ) -> tuple[Tensor, Tensor]:
        x = self._enter(blueprint, x)
        for block in blueprint.blocks:
            x = self._block(block, x, conv)
        embedding = x if x.dim() == 2 else x.mean((2, 3))
        return F.linear(embedding, *self.classifier(blueprint.classifier)), embedding

    def _enter(self, blueprint: Blueprint, x: Tensor) -> Tensor:
        x = resized(x, blueprint.entry)
        return x.flatten(1) if blueprint.blocks[0].convs[0].dense else x

    def _block(self, block: Block, x: Tensor, conv: Callable[[Conv, Tensor], Tensor]) -> Tensor:
        y = x
        for one in block.convs:
            y = conv(one, y)
        if block.squeeze is not None:
            reduce, expand = self.squeezed(block.squeeze)
            share = F.hardsigmoid(F.linear(F.relu(F.linear(y.mean((2, 3)), *reduce)), *expand))
            y = y * share[:, :, None, None]
        return x + y if block.residual else y

    def _slice(self, conv: Conv) -> Tensor:
        weight = self._weights[f"{conv.slot}.weight"]
        down, across = (
            (size - kernel) // 2 for size, kernel in zip(weight.shape[2:], conv.kernel, strict=True)
        )
        return weight[
            : conv.outputs, : conv.inputs, down : down + conv.kernel[0], across : across + conv.kernel[1]
        ]

    def _convolve(self, conv: Conv, x: Tensor) -> Tensor:
        if conv.dense:
            return F.linear(x, self._slice(conv).flatten(1))
        pad = (conv.kernel[0] // 2, conv.kernel[1] // 2)
        return F.conv2d(x, self._slice(conv), stride=conv.stride, padding=pad)

    def _normalise(self, conv: Conv, x: Tensor, statistics: Statistics | None) -> Tensor:
        y = F.batch_norm(
            x,
            None if statistics is None else statistics.mean[conv.slot],
            None if statistics is None else statistics.variance[conv.slot],
            self._weights[f"{conv.slot}.scale"][: conv.outputs],
            self._weights[f"{conv.slot}.shift"][: conv.outputs],
            training=statistics is None,
            eps=EPSILON,
        )
        return F.relu(y) if conv.relu else y


def _first(name: str, shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
    """Return the first numbers of a tensor: He's normal for weights, one for scales, zero for the rest."""
    if name.endswith(".weight"):
        fan_in = math.prod(shape[1:])
        gain = 2.0 if len(shape) == 4 else 1.0
        weight = torch.randn(shape, generator=rng) * math.sqrt(gain / fan_in)
        return weight.to(memory_format=torch.channels_last) if len(shape) == 4 else weight
    return torch.ones(shape) if name.endswith(".scale") else torch.zeros(shape)
