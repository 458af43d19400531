"""A sandwich step beside Once-for-All's, at OFA's number of parameters, and what equally many steps teach.

    python -m benchmarks.search.step [--seeds 5] [--quick]

Measured, CPU-ms of one step: the largest, the smallest and two random subnets on the same batch of 64, the
largest teaching the others; gradients, clipping and the optimiser; making the batch is not counted, and there
is no jitter, on either side. OFA's supernet is MobileNetV3, width 0.5, 32x32x3, as it comes from its package
(``peers/ofa_step.py``), and again in channels-last layout. Ours is the image space at 32x32x3 with measures
under which its largest network has OFA's number of parameters within 1 %: three stages as the meter reader
has them, and a wide fourth at 2x2 positions.

Both learn the digits (padded to 32, one channel thrice) for 120 steps at a peak rate of 0.1 (of 0.05 and 0.1
OFA's better one); then the largest and the smallest are calibrated on 512 training rows and examined on 2,000
others. The recipes differ as the two systems do: our pupils learn from labels and teacher half and half, the
rate rises over 20 steps and decay is 1e-4; OFA's learn from the teacher alone, over 6 steps and with 3e-5, as
its own training does. Also the meter reader's own step as the search takes it, rows and jitter counted (max +
min + 2 random is what ``search.lessons`` asks for). ``--quick``: 20 steps, one seed, and OFA
as it comes alone.
"""

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.search import digits, table
from benchmarks.search.environments import run
from benchmarks.search.row import Figure, Row, times
from policies.terms import Precision
from search.batches import Batch, Batches
from search.blueprint import Blueprint, Layout
from search.codec import Codec
from search.crew import Crew
from search.dataset import Rows
from search.exam import mark
from search.pace import BATCH
from search.spaces import BUILTIN as SPACES
from search.spaces.image import image_plan
from search.supernet import Supernet
from search.training import MOMENTUM, Course, Pupil, gradients, rate_at

STEPS, QUICK_STEPS, OWN_STEPS = 120, 20, 60
RATE, DECAY, CLIP = 0.1, 1e-4, 2.0
OFA_PARAMETERS = 1_791_370
CALIBRATION_ROWS, SIDE = 512, 32
STEM, EMBEDDING = 16, 128
WIDTHS = ((8, 12, 16), (16, 24, 32), (24, 36, 48), (96, 128, 160))
HELD = slice(8000, 10_000)


def wide() -> Codec:
    """Return the space whose largest network is as large as OFA's."""
    plan = image_plan(Layout.HWC, 3, SIDE, SIDE, 10, stem=STEM, widths=WIDTHS, embedding=EMBEDDING)
    return Codec(plan, (Precision.FP32,))


def coloured(rows: Rows) -> Rows:
    """Return digits as (n, 32, 32, 3): padded with black, one channel thrice."""
    edge = (SIDE - rows.x.shape[1]) // 2
    padded = np.pad(rows.x, ((0, 0), (edge, edge), (edge, edge)))
    return Rows(np.repeat(padded[..., None], 3, axis=3), rows.y)


def trained(
    space: Codec, net: Supernet, batch: Callable[[int], Batch], steps: int, random: int, seed: int
) -> list[float]:
    """Train a supernet in place and return the CPU-ms of each step.

    Args:
        space: Of the supernet.
        net: The supernet.
        batch: Of each step; not counted.
        steps: How many.
        random: Random subnets beside the largest and the smallest.
        seed: Of the random subnets.
    """
    weights, crew, rng = net.parameters(), Crew(1), np.random.default_rng([seed, 1])
    optimiser = torch.optim.SGD(
        list(weights.values()), RATE, momentum=MOMENTUM, nesterov=True, weight_decay=DECAY
    )
    largest, smallest = space.blueprint(space.largest), space.blueprint(space.smallest)
    steps_ms = []
    for step in range(steps):
        rows = batch(step)
        others = [space.blueprint(genes) for genes in space.sample(rng, random)]
        for group in optimiser.param_groups:
            group["lr"] = rate_at(step, steps, RATE)
        began = time.process_time()
        gradients(net, weights, rows, (largest, smallest, *others), crew)
        torch.nn.utils.clip_grad_norm_(list(weights.values()), CLIP)
        optimiser.step()
        steps_ms.append(1000 * (time.process_time() - began))
    crew.close()
    return steps_ms


def ours(seed: int, steps: int) -> tuple[float, float, float]:
    """Return the median CPU-ms of a step at OFA's size, and the accuracy of the largest and the smallest."""
    space = wide()
    net = Supernet(space.shapes(), space.entries()[0], seed)
    train, held = coloured(digits.rows(digits.TRAIN)), coloured(digits.rows(HELD))
    x = net.prepare(train.x)
    order = np.random.default_rng(seed)
    decks = np.concatenate([order.permutation(len(train)) for _ in range(1 + steps * BATCH // len(train))])

    def batch(step: int) -> Batch:
        at = torch.from_numpy(decks[step * BATCH : (step + 1) * BATCH])
        return Batch(x[at], torch.from_numpy(train.y)[at], None)

    steps_ms = trained(space, net, batch, steps, 2, seed)
    nothing, found = held.take(np.zeros(0, dtype=np.int64)), []
    for genes in (space.largest, space.smallest):
        blueprint = space.blueprint(genes)
        statistics = net.calibrate(blueprint, x[:CALIBRATION_ROWS])
        found.append(mark(net, blueprint, statistics, held, nothing).accuracy)
    return float(np.median(steps_ms)), found[0], found[1]


def own(seed: int, steps: int, random: int) -> float:
    """Return the median CPU-ms of a whole step of the meter reader: rows, jitter, subnets, optimiser."""
    task, crew = digits.task(), Crew(1)
    space = SPACES[task.modality](task, (Precision.FP32,))
    net, train = Supernet(space.shapes(), space.entries()[0], seed), digits.rows(digits.TRAIN)
    nothing = train.take(np.zeros(0, dtype=np.int64))
    batches = Batches(net, train, nothing, None, Layout.HW, task.augmentation, BATCH, seed)
    ends = space.blueprint(space.largest), space.blueprint(space.smallest)

    def subnets(step: int) -> tuple[Blueprint, ...]:
        drawn = space.sample(np.random.default_rng([seed, 1, step]), random)
        return *ends, *(space.blueprint(genes) for genes in drawn)

    pupil, steps_ms = Pupil(net, batches, subnets, Course("bench", steps, 0, RATE, 1.0), crew), []
    for step in range(steps):
        began = time.process_time()
        pupil.step(step)
        steps_ms.append(1000 * (time.process_time() - began))
    crew.close()
    return float(np.median(steps_ms))


def theirs(seeds: Sequence[int], steps: int, layout: str) -> list[dict[str, Any]]:
    """Return what OFA's script says for each seed."""
    train, held = digits.rows(digits.TRAIN), digits.rows(HELD)
    found = []
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "digits.npz"
        np.savez(data, train_x=train.x, train_y=train.y, test_x=held.x, test_y=held.y)
        for seed in seeds:
            table.say(f"step: OFA {layout}, seed {seed}")
            options = ("--steps", str(steps), "--seed", str(seed), "--layout", layout, "--rate", str(RATE))
            found.append(run("ofa", "ofa_step.py", str(data), *options))
    return found


def rows(seeds: Sequence[int], quick: bool) -> list[Row]:
    """Return the rows of this part."""
    seeds, steps = (seeds[:1], QUICK_STEPS) if quick else (seeds, STEPS)
    largest = wide().blueprint(wide().largest)
    assert abs(largest.params / OFA_PARAMETERS - 1) < 0.01, largest.params
    table.say(f"step: ours, {len(seeds)} seeds")
    ms, most, least = (
        Figure.of(values) for values in zip(*[ours(seed, steps) for seed in seeds], strict=True)
    )
    layouts = {"OFA as it comes": "as-is"} | ({} if quick else {"OFA, channels last": "channels-last"})
    told = {name: theirs(seeds, steps, layout) for name, layout in layouts.items()}
    steps_ms = {name: Figure.of([one["step_cpu_ms"]["median"] for one in told[name]]) for name in told}
    maxima = {name: Figure.of([one["accuracy_max"] for one in told[name]]) for name in told}
    minima = {name: Figure.of([one["accuracy_min"] for one in told[name]]) for name in told}
    asis = "OFA as it comes"
    table.say("step: the meter reader's own")
    pairs = {random: Figure.of([own(seed, OWN_STEPS, random) for seed in seeds]) for random in (2, 1)}
    ratio = " and ".join(times(figure, ms, f"less than {name}") for name, figure in steps_ms.items())
    note = f"{largest.params:,} parameters; OFA's {told[asis][0]['parameters']:,}"
    return [
        Row(
            "sandwich step at OFA's size",
            ">= 5 x less than OFA as it comes",
            ms,
            "CPU-ms",
            peers=steps_ms,
            ratio=ratio,
            met=steps_ms[asis].median >= 5 * ms.median,
            note=note,
        ),
        Row(
            f"largest after {steps} steps",
            "no worse than OFA",
            most,
            "share",
            peers=maxima,
            met=most.median >= maxima[asis].median,
        ),
        Row(
            f"smallest after {steps} steps",
            "no worse than OFA",
            least,
            "share",
            peers=minima,
            met=least.median >= minima[asis].median,
        ),
        Row(
            "sandwich step of the meter reader, max + min + 2 random",
            "<= 100 CPU-ms",
            pairs[2],
            "CPU-ms",
            met=pairs[2].median <= 100,
        ),
        Row("the same, max + min + 1 random", "", pairs[1], "CPU-ms"),
    ]


if __name__ == "__main__":
    table.alone(rows, __doc__)
