"""Cold start: what a founding search of 300 CPU-seconds teaches the two ends of its supernet.

    python -m benchmarks.search.cold [--seeds 5] [--quick]

Measured: ``python -m search`` on a founding brief with 7,000 training digits and a budget of 300 CPU-s, as
the daemon starts it, profile, search and final included; the CPU-seconds are the kernel's count of the whole
process. Then the largest and the smallest architecture of the supernet that it left, in full precision, each
after a calibration of its batch norms on 1,024 training digits, on 2,000 digits that the search never saw.
Beside them the winner, from its file. ``--quick``: one seed, 60 CPU-s, and nothing is judged.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors.torch import load

from benchmarks.search import digits, table
from benchmarks.search.row import Figure, Row
from policies.terms import Precision
from search import plan
from search.exam import mark
from search.examiner import mark_bundle
from search.spaces import BUILTIN as SPACES
from search.supernet import Supernet

BUDGET_S, QUICK_BUDGET_S = 300.0, 60.0
LARGEST, SMALLEST = 0.985, 0.97


def rows(seeds: Sequence[int], quick: bool) -> list[Row]:
    """Return the rows of this part."""
    budget_s = QUICK_BUDGET_S if quick else BUDGET_S
    found = []
    for seed in seeds[:1] if quick else seeds:
        table.say(f"cold: seed {seed}, {budget_s:g} CPU-s")
        with tempfile.TemporaryDirectory() as folder:
            found.append(_one(Path(folder), seed, budget_s))
    cpu, largest, smallest, winner = (Figure.of(values) for values in zip(*found, strict=True))

    def judged(met: bool) -> bool | None:
        return None if quick else met

    return [
        Row("cold start: CPU time", "<= 300 CPU-s", cpu, "CPU-s", met=judged(cpu.high <= BUDGET_S)),
        Row(
            "cold start: largest, held out",
            ">= 0.985",
            largest,
            "share",
            met=judged(largest.median >= LARGEST),
        ),
        Row(
            "cold start: smallest, held out",
            ">= 0.97",
            smallest,
            "share",
            met=judged(smallest.median >= SMALLEST),
        ),
        Row("cold start: winner's file, held out", "", winner, "share"),
    ]


def _one(folder: Path, seed: int, budget_s: float) -> tuple[float, float, float, float]:
    """Return CPU-seconds, and the accuracy of the largest, the smallest and the winner."""
    founded = digits.found(folder, seed, budget_s)
    task, train, held = digits.task(), digits.rows(digits.TRAIN), digits.rows(digits.HELD_OUT)
    space = SPACES[task.modality](task, (Precision.FP32,))
    net = Supernet(space.shapes(), space.entries()[0], seed)
    net.load(load(founded.state.read_bytes()))
    nothing = held.take(np.zeros(0, dtype=np.int64))
    x = net.prepare(train.some(plan.FINAL_CALIBRATION_ROWS, np.random.default_rng(seed)).x)
    ends = []
    for genes in (space.largest, space.smallest):
        blueprint = space.blueprint(genes)
        ends.append(mark(net, blueprint, net.calibrate(blueprint, x), held, nothing).accuracy)
    raw = (founded.folder / founded.result.bundle.path).read_bytes()
    return founded.cpu_s, ends[0], ends[1], mark_bundle(raw, held, nothing).accuracy


if __name__ == "__main__":
    table.alone(rows, __doc__)
