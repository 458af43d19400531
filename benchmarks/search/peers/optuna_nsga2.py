"""Optuna's NSGA-II sampler over integer genes, in memory, asked and told.

Used by ``optuna_engine.py`` and ``optuna_search.py``. A generation is asked for at once; Optuna still samples
trial by trial, which is how it works.
"""

import numpy as np
import optuna
from numpy.typing import NDArray


class Nsga2:
    """Asks and is told.

    Args:
        choices: (genes,) int64, number of values of each gene, each >= 2.
        population: Size of the population.
        seed: Of everything random.
        first: (n, genes) int64, genomes of the first population; the others are random. None: all are.
    """

    def __init__(
        self, choices: NDArray[np.int64], population: int, seed: int, first: NDArray[np.int64] | None = None
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._last = [int(count) - 1 for count in choices]
        self._population = population
        sampler = optuna.samplers.NSGAIISampler(population_size=population, seed=seed)
        self._study = optuna.create_study(
            storage=optuna.storages.InMemoryStorage(), sampler=sampler, directions=["minimize", "minimize"]
        )
        for row in [] if first is None else first.tolist():
            self._study.enqueue_trial({f"g{place}": value for place, value in enumerate(row)})
        self._asked: list[optuna.Trial] = []

    def ask(self) -> NDArray[np.int64]:
        """Return a generation (population, genes) int64; it may repeat what was asked before."""
        self._asked = [self._study.ask() for _ in range(self._population)]
        rows = [
            [trial.suggest_int(f"g{place}", 0, last) for place, last in enumerate(self._last)]
            for trial in self._asked
        ]
        return np.array(rows, dtype=np.int64)

    def tell(self, objectives: NDArray[np.float64]) -> None:
        """Take the objectives (population, 2) of what was asked."""
        for trial, pair in zip(self._asked, objectives.tolist(), strict=True):
            self._study.tell(trial, pair)
