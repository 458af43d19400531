"""A search without labels: the parent as it is, with its norms brought up to date.

* Nothing can be ranked without labels, so no other architecture is looked at.
* The batch norms are calibrated on the new rows; then their scales and shifts follow, made to lower the
  entropy of the answers, since a network that fits its input is sure of itself.
* Where the brief trusts it, the parent then learns from its own answers of which it is surest, all weights of
  its subnet. It can learn its own mistakes; the flag says that somebody accepts that.

Source: Wang et al., Tent: fully test-time adaptation by entropy minimization (2021); Lee, Pseudo-label
(2013).
"""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from search import plan
from search.desk import Desk
from search.export import Subnet
from search.pace import BATCH

Loss = Callable[[Tensor, Tensor], Tensor]
"""Of a batch and the numbers of its rows."""

_AFFINE_STEPS = 60
_AFFINE_RATE = 2e-3
_SURE = 0.9
_PSEUDO_STEPS = 120
_PSEUDO_RATE = 5e-3


def refresh(desk: Desk) -> Subnet:
    """Return the parent's subnet, brought up to date on rows that nobody labelled."""
    net, blueprint = desk.net, desk.space.blueprint(desk.parent.genes)
    rows = desk.data.train_new
    x = net.prepare(rows.x)
    calibration = net.prepare(
        rows.some(plan.FINAL_CALIBRATION_ROWS, np.random.default_rng(desk.brief.seed)).x
    )
    statistics = net.calibrate(blueprint, calibration)
    first = _answers(Subnet(net, blueprint, statistics), x)
    desk.record.note("confidence_before", float(first.max(dim=1).values.mean()), "share", len(x))
    affine = [one for name, one in net.parameters().items() if name.endswith((".scale", ".shift"))]

    def uncertainty(batch: Tensor, _at: Tensor) -> Tensor:
        logits, _ = net.forward(blueprint, batch)
        return -(logits.softmax(dim=1) * logits.log_softmax(dim=1)).sum(dim=1).mean()

    _descend(desk, x, affine, _AFFINE_RATE, plan.refreshing_steps(desk, _AFFINE_STEPS), uncertainty, "affine")
    if desk.brief.pseudo_labels:
        told = _answers(Subnet(net, blueprint, net.calibrate(blueprint, calibration)), x)
        sure, label = told.max(dim=1)
        kept = torch.nonzero(sure >= _SURE).flatten()
        desk.record.note("pseudo_labels", float(len(kept)), "rows", len(x))

        def disagreement(batch: Tensor, at: Tensor) -> Tensor:
            return F.cross_entropy(net.forward(blueprint, batch)[0], label[kept][at])

        every = list(net.parameters().values())
        if len(kept) >= BATCH:
            _descend(
                desk,
                x[kept],
                every,
                _PSEUDO_RATE,
                plan.refreshing_steps(desk, _PSEUDO_STEPS),
                disagreement,
                "pseudo",
            )
    done = Subnet(net, blueprint, net.calibrate(blueprint, calibration))
    last = _answers(done, x)
    desk.record.note("confidence", float(last.max(dim=1).values.mean()), "share", len(x))
    same = float((first.argmax(dim=1) == last.argmax(dim=1)).float().mean())
    desk.record.note("agreement_before", same, "share", len(x))
    return done


def _descend(
    desk: Desk, x: Tensor, weights: list[Tensor], rate: float, count: int, loss: Loss, phase: str
) -> None:
    report = desk.reporter(phase)
    optimiser = torch.optim.Adam(weights, rate)
    for step in range(count):
        if step % 10 == 0:
            report(step, count, f"{phase}: step {step} of {count}")
            if desk.budget.stop(phase, 0.9):
                break
        rng = np.random.default_rng([desk.brief.seed, 10, step])
        at = torch.from_numpy(rng.integers(0, len(x), BATCH))
        gradients = torch.autograd.grad(loss(x[at], at), weights, allow_unused=True)
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.grad = gradient
        optimiser.step()


def _answers(subnet: Subnet, x: Tensor) -> Tensor:
    with torch.no_grad():
        parts = [
            subnet.net.forward(subnet.blueprint, x[first : first + 256], subnet.statistics)[0]
            for first in range(0, len(x), 256)
        ]
    return torch.cat(parts).softmax(dim=1)
