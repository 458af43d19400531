"""pymoo's NSGA-II over integer genes, set up as pymoo's own guide for integers does.

Used by ``pymoo_engine.py`` and ``pymoo_search.py``. Everything is vectorised: simulated binary crossover and
polynomial mutation on floats, rounded by pymoo's repair; duplicates are dropped by pymoo.
"""

import numpy as np
from numpy.typing import NDArray
from pymoo.algorithms.moo.nsga2 import NSGA2
from pymoo.core.evaluator import Evaluator
from pymoo.core.problem import Problem
from pymoo.core.termination import NoTermination
from pymoo.operators.crossover.sbx import SBX
from pymoo.operators.mutation.pm import PM
from pymoo.operators.repair.rounding import RoundingRepair
from pymoo.operators.sampling.rnd import IntegerRandomSampling
from pymoo.problems.static import StaticProblem


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
        self._problem = Problem(n_var=len(choices), n_obj=2, xl=0, xu=choices - 1, vtype=int)
        repair = RoundingRepair()
        self._algorithm = NSGA2(
            pop_size=population,
            sampling=IntegerRandomSampling() if first is None else _begun(choices, population, seed, first),
            crossover=SBX(prob=1.0, eta=3.0, vtype=float, repair=repair),
            mutation=PM(prob=1.0, eta=3.0, vtype=float, repair=repair),
            eliminate_duplicates=True,
        )
        self._algorithm.setup(self._problem, termination=NoTermination(), seed=seed, verbose=False)
        self._asked = None

    def ask(self) -> NDArray[np.int64]:
        """Return the next generation (n, genes) int64; empty when pymoo finds nothing new."""
        self._asked = self._algorithm.ask()
        if self._asked is None or len(self._asked) == 0:
            return np.empty((0, self._problem.n_var), dtype=np.int64)
        return np.asarray(self._asked.get("X"), dtype=np.int64)

    def tell(self, objectives: NDArray[np.float64]) -> None:
        """Take the objectives (n, 2) of what was asked."""
        Evaluator().eval(StaticProblem(self._problem, F=objectives), self._asked)
        self._algorithm.tell(infills=self._asked)


def _begun(
    choices: NDArray[np.int64], population: int, seed: int, first: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return a first population (population, genes) that holds some given genomes."""
    rows = np.random.default_rng(seed).integers(0, choices, (population, len(choices)))
    rows[: len(first)] = first
    return rows
