"""CPU time of a sandwich step on OFA's supernet, and what some such steps teach it.

Measured: a step is the largest, the smallest and two random subnets on one batch; the largest learns from
labels, the others from its answers (Kullback-Leibler), the gradients are summed and clipped, SGD with
Nesterov's momentum goes one step. The rate rises over the first twentieth, 20 steps at most, then falls along
a cosine. After it: accuracy of the largest and of the smallest on the test rows, each after OFA's own
recalibration of batch norm on 512 training rows.
Not measured: making batches, which are drawn without jitter; imports; OFA's progressive shrinking, whose
place the sandwich takes (OFA ships none: the step here is ours, the supernet and all in it is OFA's).

DATA.npz holds train_x and test_x (n, 28, 28) uint8, train_y and test_y (n,).
"""

import argparse
import math
import time
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from figures import spread, tell
from numpy.typing import NDArray
from ofa.imagenet_classification.elastic_nn.networks import OFAMobileNetV3
from ofa.imagenet_classification.elastic_nn.utils import set_running_statistics
from ofa_net import DEPTHS, EXPANSIONS, KERNELS, images, parameters, supernet
from torch import Tensor

LAYOUTS = {"as-is": torch.contiguous_format, "channels-last": torch.channels_last}
RANDOM_SUBNETS, CLIP, RECALIBRATION_ROWS, EXAM_ROWS = 2, 2.0, 512, 500
MOMENTUM, DECAY, RISE_STEPS = 0.9, 3e-5, 20

Batch = tuple[Tensor, Tensor]


def order(n: int, size: int, rng: np.random.Generator) -> Iterator[NDArray[np.int64]]:
    """Yield ``size`` row numbers for ever, in a new order each time all rows were seen."""
    while True:
        rows = rng.permutation(n)
        for start in range(0, n - size + 1, size):
            yield rows[start : start + size]


def rate_at(step: int, steps: int, peak: float) -> float:
    """Return the learning rate of a step.

    >>> [round(rate_at(step, 400, 0.1), 4) for step in (0, 20, 200, 399)]
    [0.005, 0.0994, 0.05, 0.0]
    """
    rise = max(1, min(RISE_STEPS, steps // 20))
    return peak * min(1.0, (step + 1) / rise) * 0.5 * (1 + math.cos(math.pi * step / steps))


def smallest(net: OFAMobileNetV3) -> None:
    net.set_active_subnet(ks=min(KERNELS), e=min(EXPANSIONS), d=min(DEPTHS))


def sandwich(net: OFAMobileNetV3, batch: Batch, optimiser: torch.optim.Optimizer) -> None:
    """Take one step of the sandwich with distillation in place.

    Source: Yu et al., BigNAS (2020), section 3.
    """
    x, y = batch
    optimiser.zero_grad()
    net.set_max_net()
    logits = net(x)
    F.cross_entropy(logits, y).backward()
    answers = logits.detach().softmax(dim=1)
    for place in range(1 + RANDOM_SUBNETS):
        if place == 0:
            smallest(net)
        else:
            net.sample_active_subnet()
        F.kl_div(net(x).log_softmax(dim=1), answers, reduction="batchmean").backward()
    torch.nn.utils.clip_grad_norm_(net.parameters(), CLIP)
    optimiser.step()


def train(net: OFAMobileNetV3, x: Tensor, y: Tensor, arguments: argparse.Namespace) -> list[float]:
    """Train the supernet in place and return the CPU-ms of each step."""
    optimiser = torch.optim.SGD(
        net.parameters(), arguments.rate, momentum=MOMENTUM, nesterov=True, weight_decay=DECAY
    )
    rows = order(len(x), arguments.batch, np.random.default_rng(arguments.seed))
    steps_ms = []
    net.train()
    for step in range(arguments.steps):
        chosen = torch.from_numpy(next(rows))
        batch = x[chosen].contiguous(memory_format=LAYOUTS[arguments.layout]), y[chosen]
        for group in optimiser.param_groups:
            group["lr"] = rate_at(step, arguments.steps, arguments.rate)
        began = time.process_time()
        sandwich(net, batch, optimiser)
        steps_ms.append(1e3 * (time.process_time() - began))
    return steps_ms


def accuracy(net: OFAMobileNetV3, calibration: list[Batch], exam: list[Batch]) -> float:
    """Return the share of the exam that the active subnet gets right, after recalibration."""
    set_running_statistics(net, calibration)
    net.eval()
    with torch.no_grad():
        right = sum(int((net(x).argmax(dim=1) == y).sum()) for x, y in exam)
    return right / sum(len(y) for _, y in exam)


def parts(x: Tensor, y: Tensor, size: int, layout: torch.memory_format) -> list[Batch]:
    """Return the rows in batches."""
    pairs = zip(x.split(size), y.split(size), strict=True)
    return [(images_.contiguous(memory_format=layout), labels) for images_, labels in pairs]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--layout", choices=sorted(LAYOUTS), default="as-is")
    # Of 0.05 and 0.1 the better one after 120 steps on digits.
    parser.add_argument("--rate", type=float, default=0.1)
    parser.add_argument("--batch", type=int, default=64)
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    layout = LAYOUTS[arguments.layout]
    net = supernet(arguments.seed).to(memory_format=layout)
    with np.load(arguments.data) as data:
        x, exam_x = images(data["train_x"]), images(data["test_x"])
        y, exam_y = (torch.from_numpy(data[name].astype(np.int64)) for name in ("train_y", "test_y"))
    steps_ms = train(net, x, y, arguments)
    calibration = parts(x[:RECALIBRATION_ROWS], y[:RECALIBRATION_ROWS], arguments.batch, layout)
    exam = parts(exam_x, exam_y, EXAM_ROWS, layout)
    net.set_max_net()
    largest = accuracy(net, calibration, exam)
    smallest(net)
    least = accuracy(net, calibration, exam)
    record = {
        "peer": "ofa",
        "step_cpu_ms": spread(steps_ms),
        "train_cpu_s": round(sum(steps_ms) / 1e3, 3),
        "accuracy_max": round(largest, 4),
        "accuracy_min": round(least, 4),
        "test_rows": len(exam_y),
        "parameters": parameters(net),
    }
    tell(record | {name: getattr(arguments, name) for name in ("steps", "seed", "layout", "rate", "batch")})


if __name__ == "__main__":
    main()
