"""The supernet: one set of weights that every genome of a space shares.

* A subnet is a ``Blueprint``; it uses the first channels and the centre of the kernel of each slot.
* Batch norm has no running averages. In training it uses the batch; before a subnet is evaluated or shipped
  its own statistics are measured on calibration images, because those of another subnet make it worthless.
* Weights live in channels-last layout, which more than halves the CPU time of a step.

Source: Yu et al., BigNAS (2020), section 3.5 (calibration); Cai et al., Once-for-All (2020) (slots).
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from policies.errors import TamperError
from search.blueprint import Blueprint, Conv

EPSILON = 1e-5


@dataclass(frozen=True)
class Statistics:
    """Mean and variance of a subnet's convolutions, by slot, each (channels,)."""

    mean: dict[str, Tensor]
    variance: dict[str, Tensor]


class Supernet:
    """The shared weights.

    Args:
        largest: The blueprint that uses every slot whole.
        seed: Of the first weights.
    """

    def __init__(self, largest: Blueprint, seed: int) -> None:
        rng = torch.Generator().manual_seed(seed)
        self._weights: dict[str, Tensor] = {}
        for conv in largest.convs:
            shape = (conv.outputs, conv.inputs, conv.kernel, conv.kernel)
            spread = math.sqrt(2.0 / (conv.inputs * conv.kernel**2))
            weight = torch.randn(shape, generator=rng) * spread
            self._weights[f"{conv.slot}.weight"] = weight.to(memory_format=torch.channels_last)
            self._weights[f"{conv.slot}.scale"] = torch.ones(conv.outputs)
            self._weights[f"{conv.slot}.shift"] = torch.zeros(conv.outputs)
        spread = math.sqrt(1.0 / largest.embedding)
        self._weights["classifier.weight"] = (
            torch.randn((largest.classes, largest.embedding), generator=rng) * spread
        )
        self._weights["classifier.bias"] = torch.zeros(largest.classes)
        for weight in self._weights.values():
            weight.requires_grad_()

    def parameters(self) -> list[Tensor]:
        """Return the tensors that training changes."""
        return list(self._weights.values())

    def state(self) -> dict[str, Tensor]:
        """Return a contiguous copy of all weights."""
        return {
            name: weight.detach().clone(memory_format=torch.contiguous_format)
            for name, weight in self._weights.items()
        }

    def load(self, state: dict[str, Tensor]) -> None:
        """Take over weights.

        Raises:
            TamperError: Names or shapes are not those of this supernet.
        """
        ours = {name: tuple(weight.shape) for name, weight in self._weights.items()}
        theirs = {name: tuple(weight.shape) for name, weight in state.items()}
        if ours != theirs:
            odd = sorted(set(ours.items()) ^ set(theirs.items()))
            raise TamperError(f"expected the supernet's {len(ours)} tensors, the state differs in {odd[:4]}")
        with torch.no_grad():
            for name, weight in self._weights.items():
                weight.copy_(state[name])

    def forward(
        self, blueprint: Blueprint, x: Tensor, statistics: Statistics | None = None
    ) -> tuple[Tensor, Tensor]:
        """Run a subnet.

        Args:
            blueprint: The subnet.
            x: (n, 1, h, w) float32 in [0, 1].
            statistics: Its calibration; None uses those of the batch, as in training.

        Returns:
            Logits (n, classes) and embedding (n, d).
        """
        for block in blueprint.blocks:
            y = x
            for conv in block.convs:
                y = self._conv(conv, y, statistics)
            x = x + y if block.residual else y
        embedding = x.mean((2, 3))
        weight, bias = self._weights["classifier.weight"], self._weights["classifier.bias"]
        return F.linear(embedding, weight, bias), embedding

    def calibrate(self, blueprint: Blueprint, x: Tensor) -> Statistics:
        """Return a subnet's statistics over one large batch; ``x`` as in ``forward``."""
        mean: dict[str, Tensor] = {}
        variance: dict[str, Tensor] = {}
        with torch.no_grad():
            for block in blueprint.blocks:
                y = x
                for conv in block.convs:
                    raw = self._convolve(conv, y)
                    variance[conv.slot], mean[conv.slot] = torch.var_mean(raw, (0, 2, 3), correction=0)
                    y = self._normalise(conv, raw, Statistics(mean, variance))
                x = x + y if block.residual else y
        return Statistics(mean, variance)

    def folded(self, conv: Conv, statistics: Statistics) -> tuple[Tensor, Tensor]:
        """Return a convolution's weight and bias with its batch norm folded in."""
        weight = self._slice(conv).detach()
        scale = self._weights[f"{conv.slot}.scale"][: conv.outputs].detach()
        shift = self._weights[f"{conv.slot}.shift"][: conv.outputs].detach()
        factor = scale / torch.sqrt(statistics.variance[conv.slot] + EPSILON)
        return weight * factor[:, None, None, None], shift - statistics.mean[conv.slot] * factor

    def classifier(self) -> tuple[Tensor, Tensor]:
        """Return weight (classes, d) and bias (classes,) of the last layer."""
        return self._weights["classifier.weight"].detach(), self._weights["classifier.bias"].detach()

    def _conv(self, conv: Conv, x: Tensor, statistics: Statistics | None) -> Tensor:
        return self._normalise(conv, self._convolve(conv, x), statistics)

    def _slice(self, conv: Conv) -> Tensor:
        weight = self._weights[f"{conv.slot}.weight"]
        edge = (weight.shape[-1] - conv.kernel) // 2
        inner = slice(edge, edge + conv.kernel)
        return weight[: conv.outputs, : conv.inputs, inner, inner]

    def _convolve(self, conv: Conv, x: Tensor) -> Tensor:
        return F.conv2d(x, self._slice(conv), stride=conv.stride, padding=conv.kernel // 2)

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
