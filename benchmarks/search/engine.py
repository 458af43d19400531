"""How many architectures the search considers in a CPU-second: guess of accuracy, latency, bounds, ranks.

    python -m benchmarks.search.engine [--seeds 5] [--quick]

Measured: a round of ``search.explore`` without its exams: the predictor fitted on 40 marks, NSGA-II through
16 generations of 128 over the guessed accuracy with its doubt, the latency table and all limits; each repeat
anew. What is counted is every architecture that was proposed, guessed at and ranked.

Beside it in the same run, each in its own environment: OFA's EvolutionFinder with OFA's predictor and latency
table (``fast`` is the quickest that its parts can be put together, ``as it comes`` asks the supernet), and
the engines of pymoo, Optuna and Archai over 20 genes, which have neither a predictor nor limits to ask: their
objectives are one look-up in a table. Not measured anywhere: imports, and how good what is found is.
"""

import time
from collections.abc import Sequence

import numpy as np

from benchmarks.search import digits, table
from benchmarks.search.device import measured
from benchmarks.search.environments import run
from benchmarks.search.row import Figure, Row, times
from policies.terms import Precision
from search.bounds import Bounds
from search.costs import Costs
from search.explore import GENERATIONS, POPULATION, Guess, evolve
from search.predictor import Predictor
from search.profile import Profile
from search.space import Space
from search.spaces import BUILTIN as SPACES
from search.strategies import BUILTIN as STRATEGIES

TARGET = 100_000
MARKS, REPEATS, QUICK_REPEATS = 40, 30, 5


def rate(space: Space, profile: Profile, seed: int, repeats: int) -> float:
    """Return architectures a CPU-second; one that is proposed twice in a run counts once."""
    rng = np.random.default_rng(seed)
    genes = space.sample(rng, MARKS)
    accuracy = 0.9 + 0.1 * rng.random(MARKS)
    costs = Costs(space, profile)
    bounds = Bounds(space, digits.LOOSE, costs, digits.LOOSE.max_p99_ms, None, True)
    began, asked = time.process_time(), 0
    for _ in range(repeats):
        guess = Guess(space, bounds, Predictor(space.encode(genes), accuracy, rng))
        strategy = STRATEGIES["nsga2"](space, rng, genes, space.smallest)
        asked += len(np.unique(space.names(evolve(strategy, guess, GENERATIONS, POPULATION)[0])))
    return asked / (time.process_time() - began)


def peers(quick: bool) -> dict[str, Figure]:
    """Return what the peers' engines give."""
    fewer = ("--repeats", "1") if quick else ("--repeats", "5")
    table.say("engine: OFA's finder")
    finder = run("ofa", "ofa_finder.py", *fewer)
    found = {
        "OFA finder, fast": Figure.told(finder["fast"]["archs_per_cpu_s"]),
        "OFA finder, as it comes": Figure.told(finder["as_is"]["archs_per_cpu_s"]),
    }
    for name, peer in (("pymoo NSGA-II", "pymoo"), ("Optuna NSGA-II", "optuna")):
        table.say(f"engine: {name}")
        found[name] = Figure.told(run(peer, f"{peer}_engine.py", *fewer)["archs_per_cpu_s"])
    table.say("engine: Archai")
    archai = run("archai", "archai_engine.py", "--repeats", "1" if quick else "3")
    for key, name in (("without_files", "Archai, without its files"), ("as_is", "Archai, as it comes")):
        found[name] = Figure.told(archai[key]["archs_per_cpu_s"])
    return found


def rows(seeds: Sequence[int], quick: bool) -> list[Row]:
    """Return the row of this part."""
    task = digits.task()
    space = SPACES[task.modality](task, (Precision.FP32, Precision.INT8))
    table.say("engine: the device's profile")
    profile = measured(space, 0)
    repeats = QUICK_REPEATS if quick else REPEATS
    rate(space, profile, 0, 1)
    ours = Figure.of([rate(space, profile, seed, repeats) for seed in seeds])
    beside = peers(quick)
    return [
        Row(
            "architectures through the search loop",
            ">= 100,000 per CPU-s",
            ours,
            "1/CPU-s",
            peers=beside,
            ratio="; ".join(times(ours, figure, name) for name, figure in beside.items()),
            met=ours.median >= TARGET,
        )
    ]


if __name__ == "__main__":
    table.alone(rows, __doc__)
