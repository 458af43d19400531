"""How many architectures a CPU-second pymoo's NSGA-II proposes and ranks.

Measured: ask, one look-up of an additive table for the whole generation, tell; set-up of the algorithm
included. Not measured: imports, any real evaluation, and how good the found architectures are.
"""

import argparse
import time

import numpy as np
from additive import Additive
from figures import spread, tell
from pymoo_nsga2 import Nsga2


def archs_per_cpu_s(arguments: argparse.Namespace, seed: int) -> float:
    table = Additive(arguments.genes, arguments.choices, seed)
    choices = [arguments.choices] * arguments.genes
    began, archs = time.process_time(), 0
    search = Nsga2(np.array(choices), arguments.population, seed)
    for _ in range(arguments.generations):
        genes = search.ask()
        search.tell(table.objectives(genes))
        archs += len(genes)
    return archs / (time.process_time() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--genes", type=int, default=20)
    parser.add_argument("--choices", type=int, default=3)
    parser.add_argument("--population", type=int, default=100)
    parser.add_argument("--generations", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    rates = [archs_per_cpu_s(arguments, arguments.seed + repeat) for repeat in range(arguments.repeats)]
    tell({"peer": "pymoo", "engine": "NSGA2", "archs_per_cpu_s": spread(rates), **vars(arguments)})


if __name__ == "__main__":
    main()
