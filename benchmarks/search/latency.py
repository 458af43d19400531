"""How well latency is predicted: a device profile against whole networks that it has not seen.

    python -m benchmarks.search.latency [--seeds 5] [--quick]

Measured: for each seed ``search.profile`` measures this device (every block once, a line fitted on 10 whole
networks) and ``search.costs`` predicts 40 random networks; these are then timed through onnxruntime, one row,
one thread, in turn, as everywhere here (the median over rounds of the lower quartile). MAPE is the mean of
|predicted - measured| / measured, tau is Kendall's. Times are wall times: they have to be, and load on the
machine is in them.

Beside it the noise ceiling of the same run: the same networks timed a second time, compared with the first.
No predictor can be expected to do better than that. In int8 a line is fitted on 10 whole quantised networks.
The spaces for windows and tables are told, not judged.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import kendalltau

from benchmarks.search import table
from benchmarks.search.device import measured
from benchmarks.search.row import Figure, Row
from policies.terms import Precision
from search.blueprint import Layout
from search.codec import Codec
from search.costs import Costs
from search.profile import whole_ms
from search.space import Genes
from search.spaces.image import image_plan
from search.spaces.table import table_plan
from search.spaces.window import window_plan

MAPE, TAU = 0.05, 0.85
HELD_OUT, QUICK_HELD_OUT = 40, 16

PLANS = {
    "images 28x28": image_plan(Layout.HW, 1, 28, 28, 10),
    "windows 1x1024": window_plan(1, 1024, 9),
    "tables of 9": table_plan(9, 2),
}
JUDGED = ("images 28x28", Precision.FP32)


@dataclass(frozen=True)
class Agreement:
    """How two lists of milliseconds agree."""

    mape: float
    tau: float

    @classmethod
    def of(cls, guessed: np.ndarray, measured: np.ndarray) -> "Agreement":
        return cls(
            float(np.mean(np.abs(guessed - measured) / measured)),
            float(kendalltau(guessed, measured).statistic),
        )


def one_seed(space: Codec, seed: int, count: int) -> dict[Precision, tuple[Agreement, Agreement]]:
    """Return for each precision how prediction and second timing agree with the first timing."""
    costs, rng = Costs(space, measured(space, seed)), np.random.default_rng([seed, 31])
    found = {}
    for place, precision in enumerate((Precision.FP32, Precision.INT8)):
        genes: Genes = space.sample(rng, count)
        genes[:, -1] = place
        first, second = (whole_ms(space, genes, time.perf_counter, np.random.default_rng(seed)) for _ in "ab")
        found[precision] = Agreement.of(costs.latency_ms(genes), first), Agreement.of(second, first)
    return found


def rows(seeds: Sequence[int], quick: bool) -> list[Row]:
    """Return the rows of this part."""
    made = []
    for name, plan in PLANS.items():
        space = Codec(plan, (Precision.FP32, Precision.INT8))
        found = []
        for seed in seeds[:1] if quick else seeds:
            table.say(f"latency: {name}, seed {seed}")
            found.append(one_seed(space, seed, QUICK_HELD_OUT if quick else HELD_OUT))
        for precision in (Precision.FP32, Precision.INT8):
            pairs = [one[precision] for one in found]
            made += _rows(name, precision, pairs)
    return made


def _rows(name: str, precision: Precision, pairs: list[tuple[Agreement, Agreement]]) -> list[Row]:
    judged = (name, precision) == JUDGED
    mape, tau = Figure.of([ours.mape for ours, _ in pairs]), Figure.of([ours.tau for ours, _ in pairs])
    noise = Figure.of([again.mape for _, again in pairs]), Figure.of([again.tau for _, again in pairs])
    what = f"latency of {name}, {precision}, predicted"
    return [
        Row(
            f"{what}: MAPE",
            "<= 0.05" if judged else "",
            mape,
            "share",
            peers={"noise: timed again": noise[0]},
            met=mape.median <= MAPE if judged else None,
        ),
        Row(
            f"{what}: Kendall's tau",
            ">= 0.85" if judged else "",
            tau,
            "tau",
            peers={"noise: timed again": noise[1]},
            met=tau.median >= TAU if judged else None,
        ),
    ]


if __name__ == "__main__":
    table.alone(rows, __doc__)
