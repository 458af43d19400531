"""How many architectures a CPU-second Archai's Pareto evolution proposes, looks up and ranks.

Measured: ``EvolutionParetoSearch.search`` over Archai's own configuration space, twice: ``as_is``, with the
table, the copies of architectures and the plot that it writes after each iteration, and ``without_files``,
with these three calls taken away. Archai asks an evaluator for one architecture at a time; the table is
additive.
Not measured: imports, any real evaluation, and how good the found architectures are.

The rate falls as a search grows, as Archai ranks all that it has ever seen, so it belongs to these numbers.
"""

import argparse
import logging
import tempfile
import time
from typing import Any

import numpy as np
from additive import Additive
from archai.discrete_search.algos.evolution_pareto import EvolutionParetoSearch
from archai.discrete_search.api.archai_model import ArchaiModel
from archai.discrete_search.api.model_evaluator import ModelEvaluator
from archai.discrete_search.api.search_objectives import SearchObjectives
from archai.discrete_search.search_spaces.config import (
    ArchConfig,
    ArchParamTree,
    ConfigSearchSpace,
    DiscreteChoice,
)
from figures import spread, tell
from overrides import overrides

WRITES = ("save_search_state", "save_pareto_frontier_models", "save_all_2d_pareto_evolution_plots")


class Genes:
    """The least that a configuration space can build: the genes themselves."""

    def __init__(self, config: ArchConfig, genes: int) -> None:
        self.values = np.array([config.pick(f"g{place}") for place in range(genes)], dtype=np.int64)


class Column(ModelEvaluator):
    """One of the two objectives of the table."""

    def __init__(self, table: Additive, column: int) -> None:
        self._table = table
        self._column = column

    @overrides
    def evaluate(self, arch: ArchaiModel, budget: float | None = None) -> float:  # noqa: ARG002  as declared
        return float(self._table.objectives(arch.arch.values[None])[0, self._column])


def search(arguments: argparse.Namespace, seed: int, folder: str) -> EvolutionParetoSearch:
    """Return a search that is ready to go."""
    table = Additive(arguments.genes, arguments.choices, seed)
    tree = {f"g{place}": DiscreteChoice(list(range(arguments.choices))) for place in range(arguments.genes)}
    space = ConfigSearchSpace(Genes, ArchParamTree(tree), seed=seed, model_kwargs={"genes": arguments.genes})
    objectives = SearchObjectives()
    for column, name in enumerate(("error", "ms")):
        objectives.add_objective(name, Column(table, column), higher_is_better=False, compute_intensive=False)
    return EvolutionParetoSearch(
        space,
        objectives,
        folder,
        num_iters=arguments.iterations,
        init_num_models=arguments.population,
        num_crossovers=arguments.population // 2,
        num_random_mix=5,
        max_unseen_population=arguments.population,
        # Its default clears architectures that the next iteration still reads, and crashes.
        clear_evaluated_models=False,
        save_pareto_model_weights=False,
        seed=seed,
    )


def archs_per_cpu_s(arguments: argparse.Namespace, seed: int, files: bool) -> float:
    with tempfile.TemporaryDirectory() as folder:
        began = time.process_time()
        one = search(arguments, seed, folder)
        if not files:
            for write in WRITES:
                setattr(one.search_state, write, _nothing)
        found = one.search()
        spent_s = time.process_time() - began
    return len(found.all_evaluated_objs["ms"]) / spent_s


def _nothing(*_: Any, **__: Any) -> None:
    """Take the place of a call that writes."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--genes", type=int, default=20)
    parser.add_argument("--choices", type=int, default=3)
    parser.add_argument("--population", type=int, default=100)
    parser.add_argument("--iterations", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    logging.disable(logging.INFO)
    seeds = range(arguments.seed, arguments.seed + arguments.repeats)
    record: dict[str, object] = {"peer": "archai", "engine": "EvolutionParetoSearch"}
    for name, files in (("without_files", False), ("as_is", True)):
        record[name] = {
            "archs_per_cpu_s": spread([archs_per_cpu_s(arguments, seed, files) for seed in seeds])
        }
    tell(record | vars(arguments))


if __name__ == "__main__":
    main()
