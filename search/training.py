"""Training of a supernet: the sandwich rule with distillation in place, and replay with a memory.

* Each step trains the largest subnet on labels, and smaller ones on labels and on the largest's answers to
  the same batch, half and half. The caller says which; it should often name the smallest, so that the whole
  range learns.
* During the warm-up part only the first subnet is trained; until it knows something it has nothing to teach.
* Old rows carry the answers that the parent gave to them; the first subnet is held to these as well as to the
  labels, so that what was learned is not unlearned.
* The learning rate rises over the first steps and falls along a cosine to nothing at the last planned step.
  When the budget will not reach the plan, the plan is shortened, so that the fall is never cut off.
* When the loss leaves its path, or is no number, training goes back to the last snapshot and on at half the
  rate.
* A steady course keeps its rate and averages its weights instead: it has a good answer at every moment, where
  a cosine has one at its end.
* Nothing here has a memory but the weights and what ``Pupil.memory`` returns: every step draws its rows, its
  noise and its subnets from the seed and its own number. So a training that was broken off goes on as if it
  had not been.

Source: Yu et al., BigNAS (2020), section 3; Hinton et al., Distilling the knowledge in a network (2015);
Buzzega et al., Dark experience for general continual learning (2020), the loss DER++.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from policies.errors import PermanentError
from search.batches import Batch, Batches
from search.blueprint import Blueprint
from search.budget import Budget
from search.crew import Crew
from search.supernet import Supernet

Report = Callable[[int, int, str], None]
"""Called with steps done, steps planned and a message."""

Subnets = Callable[[int], tuple[Blueprint, ...]]
"""Returns the subnets of a step; the first learns from labels and teaches the others."""

_MOMENTUM, _AVERAGE = "momentum.", "average."
MOMENTUM = 0.9
_DECAY = 1e-4
_CLIP = 2.0
_RISE = 20
_STEADY_RISE = 3
_LONGEST_AVERAGE = 0.97
_LOOK_EVERY = 10
SNAPSHOT_EVERY = 50
_MEMORY_WEIGHT = 0.2
_SMOOTH = 0.95
_SPIKE_FACTOR, _SPIKE_ROOM = 3.0, 1.0
_MOST_ROLLBACKS = 8
_SETTLED = 40
"""Steps before which no loss counts as a spike: the first ones are wild by nature."""


@dataclass(frozen=True)
class Course:
    """How a training goes.

    Args:
        phase: Its name.
        steps: In all.
        warm: How many of them train the first subnet alone.
        rate: The highest learning rate.
        end_share: Of the whole budget, that may be gone by the end.
        steady: Whether the rate stays, and the answer is the average of the weights.
    """

    phase: str
    steps: int
    warm: int
    rate: float
    end_share: float
    steady: bool = False


@dataclass(frozen=True)
class Memory:
    """All that a training is, at one moment, beside its weights."""

    step: int
    planned: int
    scale: float
    smooth: float
    rollbacks: int


class Pupil:
    """A supernet in training.

    Args:
        net: Changed in place.
        batches: Rows.
        subnets: Who learns at each step.
        course: How long and how fast.
        crew: To compute with.
    """

    def __init__(self, net: Supernet, batches: Batches, subnets: Subnets, course: Course, crew: Crew) -> None:
        self._net = net
        self._batches = batches
        self._subnets = subnets
        self._course = course
        self._crew = crew
        self._weights = net.parameters()
        self._optimiser = torch.optim.SGD(
            list(self._weights.values()), course.rate, momentum=MOMENTUM, nesterov=True, weight_decay=_DECAY
        )
        self._average = {name: weight.detach().clone() for name, weight in self._weights.items()}
        self.memory = Memory(0, course.steps, 1.0, math.nan, 0)
        self._snapshot = (self.memory, self.tensors())

    def tensors(self) -> dict[str, Tensor]:
        """Return a copy of weights, momentum and, of a steady course, the average, by name."""
        held = self._net.state()
        for name, weight in self._weights.items():
            buffer = (
                self._optimiser.state[weight].get("momentum_buffer")
                if weight in self._optimiser.state
                else None
            )
            if buffer is not None:
                held[f"{_MOMENTUM}{name}"] = buffer.clone(memory_format=torch.contiguous_format)
            if self._course.steady:
                held[f"{_AVERAGE}{name}"] = self._average[name].clone(memory_format=torch.contiguous_format)
        return held

    def averaged(self) -> Supernet:
        """Return a copy of the net with the averaged weights; of a steady course only."""
        twin = self._net.twin()
        with torch.no_grad():
            for name, weight in twin.parameters().items():
                weight.copy_(self._average[name])
        return twin

    def restore(self, memory: Memory, tensors: Mapping[str, Tensor]) -> None:
        """Go back to a moment, or take up a training that was broken off."""
        beside = (_MOMENTUM, _AVERAGE)
        self._net.load({name: one for name, one in tensors.items() if not name.startswith(beside)})
        for name, weight in self._weights.items():
            if self._course.steady:
                self._average[name].copy_(tensors[f"{_AVERAGE}{name}"])
            buffer = tensors.get(f"{_MOMENTUM}{name}")
            if buffer is None:
                self._optimiser.state.pop(weight, None)
            else:
                self._optimiser.state[weight]["momentum_buffer"] = torch.empty_like(weight).copy_(buffer)
        self.memory = memory
        self._snapshot = (memory, dict(tensors))

    def train(self, budget: Budget, report: Report, keep: Callable[["Pupil"], None]) -> int:
        """Train until the course or its share of the budget ends.

        Args:
            budget: Of the whole search.
            report: Told now and then.
            keep: Called at every snapshot.

        Returns:
            The steps taken, those before a restart included.
        """
        course, began, first = self._course, budget.used_s, self.memory.step
        while self.memory.step < self.memory.planned:
            step = self.memory.step
            if step % _LOOK_EVERY == 0:
                left = budget.replan(
                    course.phase, step - first, self.memory.planned - first, began, course.end_share
                )
                self._remember(planned=first + left)
                report(step, self.memory.planned, f"{course.phase}: step {step} of {self.memory.planned}")
                if step >= self.memory.planned:
                    break
            if step % SNAPSHOT_EVERY == 0:
                self._snapshot = (self.memory, self.tensors())
                keep(self)
            loss = self.step(step)
            if self._spiked(loss):
                self._go_back()
                continue
            smooth = loss if math.isnan(self.memory.smooth) else self.memory.smooth
            self._remember(step=step + 1, smooth=_SMOOTH * smooth + (1 - _SMOOTH) * loss)
        report(self.memory.step, self.memory.step, f"{course.phase}: {self.memory.step} steps")
        return self.memory.step

    def advance(self) -> None:
        """Take the next step, whatever its loss and its price: for one who watches and decides."""
        self.step(self.memory.step)
        self._remember(step=self.memory.step + 1)

    def _remember(self, **changed: float) -> None:
        self.memory = Memory(**(vars(self.memory) | changed))

    def _spiked(self, loss: float) -> bool:
        if not math.isfinite(loss):
            return True
        since = self.memory.step - self._course.warm
        settled = self.memory.step >= _SETTLED and not 0 <= since < _SETTLED
        return settled and loss > _SPIKE_FACTOR * self.memory.smooth + _SPIKE_ROOM

    def _go_back(self) -> None:
        memory, tensors = self._snapshot
        if self.memory.rollbacks == _MOST_ROLLBACKS:
            raise PermanentError(
                f"expected a loss that falls in {self._course.phase}, but it left its path {_MOST_ROLLBACKS} "
                f"times, last at step {self.memory.step}, each time at half the rate; look at the rows: "
                "are there readings far out of range, or labels that say nothing?"
            )
        calmer = Memory(
            memory.step, self.memory.planned, self.memory.scale / 2, memory.smooth, self.memory.rollbacks + 1
        )
        self.restore(calmer, tensors)

    def step(self, step: int) -> float:
        """Take one step; return the mean loss of its subnets before it."""
        course = self._course
        if course.steady:
            rate = course.rate * min(1.0, (step + 1) / _STEADY_RISE) * self.memory.scale
        else:
            rate = rate_at(step, self.memory.planned, course.rate) * self.memory.scale
        for group in self._optimiser.param_groups:
            group["lr"] = rate
        blueprints = self._subnets(step)
        chosen = blueprints[:1] if step < course.warm else blueprints
        loss = gradients(self._net, self._weights, self._batches.at(step), chosen, self._crew)
        # A spike from one subnet must not throw all the others off.
        torch.nn.utils.clip_grad_norm_(list(self._weights.values()), _CLIP)
        if math.isfinite(loss):
            self._optimiser.step()
        if course.steady:
            self._follow(step)
        return loss

    def _follow(self, step: int) -> None:
        """Move the average towards the weights that just learned; a young average moves fast."""
        moved = [name for name, weight in self._weights.items() if weight.grad is not None]
        share = 1 - min(_LONGEST_AVERAGE, (step + 1) / (step + 5))
        with torch.no_grad():
            torch._foreach_lerp_(
                [self._average[name] for name in moved], [self._weights[name] for name in moved], share
            )


def rate_at(step: int, steps: int, peak: float) -> float:
    """Return the learning rate of a step.

    >>> [round(rate_at(step, 100, 0.1), 4) for step in (0, 19, 60, 99)]
    [0.005, 0.0914, 0.0345, 0.0]
    """
    return peak * min(1.0, (step + 1) / _RISE) * 0.5 * (1 + math.cos(math.pi * step / steps))


def gradients(
    net: Supernet,
    weights: Mapping[str, Tensor],
    batch: Batch,
    blueprints: tuple[Blueprint, ...],
    crew: Crew,
) -> float:
    """Set the gradients of one step; return the mean loss of its subnets.

    Args:
        net: The supernet.
        weights: Those that learn.
        batch: Rows, labels, and what the parent answered.
        blueprints: The teacher first.
        crew: To compute with.
    """
    leaves = list(weights.values())
    logits, _ = net.forward(blueprints[0], batch.x)
    answers = logits.detach().softmax(dim=1)
    losses: list[float] = []

    def taught() -> tuple[Tensor | None, ...]:
        if len(blueprints) == 1:
            return (None,) * len(leaves)
        told = [net.forward(one, batch.x)[0] for one in blueprints[1:]]
        each = [(F.cross_entropy(one, answers) + F.cross_entropy(one, batch.y)) / 2 for one in told]
        total = torch.stack(each).sum()
        losses.append(float(total.detach()))
        return torch.autograd.grad(total, leaves, allow_unused=True)

    def learned() -> tuple[Tensor | None, ...]:
        loss = F.cross_entropy(logits, batch.y)
        if batch.memory is not None:
            old = len(batch.memory)
            loss = loss + _MEMORY_WEIGHT * F.mse_loss(logits[-old:], batch.memory)
        losses.append(float(loss.detach()))
        return torch.autograd.grad(loss, leaves, allow_unused=True)

    ours, theirs = crew.together(learned, taught)
    for weight, *parts in zip(leaves, ours, theirs, strict=True):
        there = [part for part in parts if part is not None]
        weight.grad = None if not there else there[0] if len(there) == 1 else there[0] + there[1]
    return sum(losses) / len(blueprints)
