"""Optuna's NSGA-II sampler driven from outside, a generation at a time.

What it says and hears is in ``asker.py``. Its CPU time is what setting up, breeding and ranking cost; what
the evaluations cost is the caller's to measure.
"""

import argparse

from asker import Asker, cardinalities_of, genomes_of
from optuna_nsga2 import Nsga2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cardinalities", type=cardinalities_of, required=True)
    parser.add_argument("--population", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=genomes_of, default="", help="genomes of the first population")
    arguments = parser.parse_args()
    asker = Asker(arguments.cardinalities)
    first = asker.free(arguments.first)
    search = Nsga2(asker.choices, arguments.population, arguments.seed, first)
    while True:
        objectives = asker.ask(search.ask())
        if objectives is None:
            return
        search.tell(objectives)


if __name__ == "__main__":
    main()
