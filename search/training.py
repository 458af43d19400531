"""Training of a supernet: the sandwich rule with distillation in place.

* Each step trains the largest subnet on labels, and smaller ones on labels and on the largest's answers to
  the same batch, half and half. The caller says which; it should often name the smallest, so that the whole
  range learns.
* During the warm-up part only the largest is trained; until it knows something it has nothing to teach.
* The learning rate rises over the first steps and falls along a cosine to nothing at the last planned step.
  When the budget will not reach the plan, the plan is shortened, so that the fall is never cut off.

Source: Yu et al., BigNAS (2020), section 3; Hinton et al., Distilling the knowledge in a network (2015).
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from policies.terms import Augmentation
from search.blueprint import Blueprint
from search.budget import Budget
from search.crew import Crew
from search.dataset import Rows
from search.exam import images
from search.jitter import jitter
from search.supernet import Supernet

Batch = tuple[Tensor, Tensor]
Report = Callable[[int, int, str], None]
"""Called with steps done, steps planned and a message."""

_MOMENTUM = 0.9
_DECAY = 1e-4
_CLIP = 2.0
_RISE = 20
_LOOK_EVERY = 10

# Nominal CPU time, one thread, measured at batch 64 (a 2.0 GHz-class core with AVX2) plus a margin of 15 %.
_SECONDS_PER_MAC = 6.2e-11
_SECONDS_PER_NET = 0.006


@dataclass(frozen=True)
class Course:
    """How a training goes: ``steps`` in all, the first ``warm`` of them on the largest subnet alone."""

    phase: str
    steps: int
    warm: int
    rate: float
    end_share: float


def step_cost_s(blueprints: tuple[Blueprint, ...], batch: int) -> float:
    """Return the nominal CPU-seconds of one training step over some subnets."""
    return sum(_SECONDS_PER_MAC * blueprint.macs * batch + _SECONDS_PER_NET for blueprint in blueprints)


def batches(new: Rows, old: Rows, size: int, augmentation: Augmentation, seed: int) -> Iterator[Batch]:
    """Yield jittered batches for ever, half of them old rows where there are any.

    Yields:
        x (size, 1, h, w) float32 and y (size,) int64.
    """
    rng = np.random.default_rng(seed)
    noise = torch.Generator().manual_seed(seed)
    parts = [(new, size)] if not len(old) else [(new, size - size // 2), (old, size // 2)]
    streams = [_indices(len(rows), count, rng) for rows, count in parts]
    while True:
        chosen = [rows.take(next(stream)) for (rows, _), stream in zip(parts, streams, strict=True)]
        x = images(np.concatenate([rows.x for rows in chosen]))
        y = torch.from_numpy(np.concatenate([rows.y for rows in chosen]))
        yield jitter(x, augmentation, noise), y


def train(
    net: Supernet,
    data: Iterator[Batch],
    subnets: Callable[[int], tuple[Blueprint, ...]],
    course: Course,
    budget: Budget,
    report: Report,
    crew: Crew,
) -> int:
    """Train until the course or its share of the budget ends.

    Args:
        net: Changed in place.
        data: Batches.
        subnets: Returns the subnets of a step; the first learns from labels and teaches the others.
        course: How long and how fast.
        budget: Of the whole search.
        report: Told now and then.
        crew: To compute with.

    Returns:
        The steps taken.
    """
    optimiser = torch.optim.SGD(
        net.parameters(), course.rate, momentum=_MOMENTUM, nesterov=True, weight_decay=_DECAY
    )
    planned, began = course.steps, budget.used_s
    step = 0
    while step < planned:
        if step % _LOOK_EVERY == 0:
            planned = budget.replan(course.phase, step, course.steps, began, course.end_share)
            report(step, planned, f"{course.phase}: step {step} of {planned}")
            if step >= planned:
                break
        for group in optimiser.param_groups:
            group["lr"] = rate_at(step, planned, course.rate)
        blueprints = subnets(step)
        x, y = next(data)
        _step(net, x, y, blueprints[:1] if step < course.warm else blueprints, optimiser, crew)
        step += 1
    report(step, step, f"{course.phase}: {step} steps")
    return step


def rate_at(step: int, steps: int, peak: float) -> float:
    """Return the learning rate of a step.

    >>> [round(rate_at(step, 100, 0.1), 4) for step in (0, 19, 60, 99)]
    [0.005, 0.0914, 0.0345, 0.0]
    """
    return peak * min(1.0, (step + 1) / _RISE) * 0.5 * (1 + math.cos(math.pi * step / steps))


def _step(
    net: Supernet,
    x: Tensor,
    y: Tensor,
    blueprints: tuple[Blueprint, ...],
    optimiser: torch.optim.Optimizer,
    crew: Crew,
) -> None:
    weights = net.parameters()
    logits, _ = net.forward(blueprints[0], x)
    answers = logits.detach().softmax(dim=1)

    def taught() -> tuple[Tensor | None, ...]:
        logits = [net.forward(one, x)[0] for one in blueprints[1:]]
        losses = [(F.cross_entropy(one, answers) + F.cross_entropy(one, y)) / 2 for one in logits]
        if not losses:
            return (None,) * len(weights)
        return torch.autograd.grad(torch.stack(losses).sum(), weights, allow_unused=True)

    ours, theirs = crew.together(
        lambda: torch.autograd.grad(F.cross_entropy(logits, y), weights, allow_unused=True), taught
    )
    for weight, *gradients in zip(weights, ours, theirs, strict=True):
        there = [gradient for gradient in gradients if gradient is not None]
        weight.grad = torch.stack(there).sum(dim=0) if there else None
    # A spike from one subnet must not throw all the others off.
    torch.nn.utils.clip_grad_norm_(weights, _CLIP)
    optimiser.step()


def _indices(n: int, count: int, rng: np.random.Generator) -> Iterator[NDArray[np.int64]]:
    """Yield ``count`` row numbers for ever, each row once before any row again."""
    order = np.empty(0, dtype=np.int64)
    while True:
        while len(order) < count:
            order = np.concatenate([order, rng.permutation(n)])
        yield order[:count]
        order = order[count:]
