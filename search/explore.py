"""The search proper: measure a few genomes, guess the rest, measure where the guess is promising.

* Every round fits a predictor on all that was measured, lets a strategy run over its guesses and the latency
  table, and examines a handful of the front: half by guessed accuracy, half spread over latency, because a
  two-objective search otherwise crowds into small networks.
* A genome beyond the bounds is never examined.
* The predictor proposes, the exam disposes: only examined genomes can win.

Source: Wu et al., WeakNAS (2021), for iterated weak predictors; Cummings et al., LINAS (2022).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from search.blueprint import Blueprint
from search.bounds import Bounds
from search.budget import Budget
from search.crew import Crew
from search.exam import Exam, Marks
from search.pareto import Objectives, ranks, survivors
from search.predictor import Predictor
from search.space import Genes, Space
from search.strategy import StrategyFactory

Report = Callable[[int, int, str], None]

_GENERATIONS = 12
_POPULATION = 48
_ROUND = 6
_BEYOND = 10.0


@dataclass(frozen=True)
class Look:
    """One genome that was examined."""

    genes: Genes
    blueprint: Blueprint
    marks: Marks
    latency_ms: float
    predicted: float | None


class Explorer:
    """What has been looked at so far.

    Args:
        space: Where it looks.
        exam: What it asks.
        bounds: What it must meet.
        strategy: How it moves over guesses.
        reference: (genes,) what inactive genes are set to.
        rng: Source of randomness.
        crew: To compute with.
    """

    def __init__(
        self,
        space: Space,
        exam: Exam,
        bounds: Bounds,
        strategy: StrategyFactory,
        reference: Genes,
        rng: np.random.Generator,
        crew: Crew,
    ) -> None:
        self._space = space
        self._exam = exam
        self._bounds = bounds
        self._strategy = strategy
        self._reference = reference
        self._rng = rng
        self._crew = crew
        self._guessed: set[bytes] = set()
        self.looks: dict[bytes, Look] = {}

    @property
    def architectures(self) -> int:
        """Return how many genomes were guessed at or examined."""
        return len(self._guessed | self.looks.keys())

    def explore(self, seeds: Genes, n: int, budget: Budget, share: float, report: Report) -> list[Look]:
        """Examine up to ``n`` genomes: the seeds first, then what the guesses propose.

        Args:
            seeds: (k, genes); those beyond the bounds are passed over.
            n: How many to examine in all; seeds always are.
            budget: Of the whole search.
            share: Of it that may be gone at the end.
            report: Told after every round.
        """
        report(0, n, "search: the seeds")
        seeds = self._space.normal(seeds, self._reference)
        self._look([(row, None) for row in seeds[self._bounds.violation(seeds) == 0]])
        while len(self.looks) < n and not budget.stop("search", share):
            chosen = self._shortlist(min(_ROUND, n - len(self.looks)))
            if not chosen:
                break
            self._look(chosen)
            report(len(self.looks), n, f"search: {self.architectures} architectures guessed at")
        return list(self.looks.values())

    def _look(self, chosen: Sequence[tuple[Genes, float | None]]) -> None:
        fresh = {row.tobytes(): (row, guess) for row, guess in chosen if row.tobytes() not in self.looks}
        blueprints = [self._space.blueprint(row) for row, _ in fresh.values()]
        marks = self._crew.map(self._exam.take, blueprints)
        for (name, (row, guess)), blueprint, mark in zip(fresh.items(), blueprints, marks, strict=True):
            latency = self._bounds.latency.predict_ms(blueprint)
            self.looks[name] = Look(row, blueprint, mark, latency, guess)

    def _shortlist(self, n: int) -> list[tuple[Genes, float | None]]:
        looked = list(self.looks.values())
        genes = np.stack([look.genes for look in looked])
        values = np.array([look.marks.accuracy for look in looked])
        predictor = Predictor(self._space.encode(genes), values, self._rng)
        strategy = self._strategy(self._space, self._rng, genes, self._reference)
        asked = []
        for _ in range(_GENERATIONS):
            population = strategy.ask(_POPULATION)
            strategy.tell(population, self._objectives(predictor, population))
            asked.append(population)
        pool = np.unique(np.concatenate(asked), axis=0)
        self._guessed |= {row.tobytes() for row in pool}
        fresh = np.array([row.tobytes() not in self.looks for row in pool])
        pool = pool[fresh]
        pool = pool[self._bounds.violation(pool) == 0] if len(pool) else pool
        if not len(pool):
            return []
        mean, _ = predictor.predict(self._space.encode(pool))
        chosen = spread(self._objectives(predictor, pool), n)
        return [(pool[index], float(mean[index])) for index in chosen]

    def _objectives(self, predictor: Predictor, genes: Genes) -> Objectives:
        """Return (n, 2): the error that the guess fears, and milliseconds."""
        mean, doubt = predictor.predict(self._space.encode(genes))
        latency = [self._bounds.latency.predict_ms(self._space.blueprint(row)) for row in genes]
        violation = self._bounds.violation(genes)
        beyond = np.where(violation > 0, _BEYOND + violation, 0.0)
        return np.column_stack([1 - mean + doubt + beyond, np.array(latency) + beyond])


def spread(objectives: Objectives, n: int) -> list[int]:
    """Return up to ``n`` rows: half by the first objective, half spread along the front by the second.

    >>> front = np.array([[0.0, 5.0], [0.1, 4.0], [0.3, 2.0], [0.9, 0.0], [2.0, 9.0]])
    >>> spread(front, 4)
    [0, 1, 2, 3]
    """
    order = [int(index) for index in np.argsort(objectives[:, 0], kind="stable")]
    chosen = order[: (n + 1) // 2]
    front = np.flatnonzero(ranks(objectives) == 0)
    rest = [int(index) for index in front[np.argsort(objectives[front, 1])] if int(index) not in chosen]
    wanted = min(n - len(chosen), len(rest))
    if wanted:
        chosen += [rest[position] for position in np.linspace(0, len(rest) - 1, wanted).astype(int)]
    missing = n - len(chosen)
    if missing > 0:
        left = [int(index) for index in survivors(objectives, len(objectives)) if int(index) not in chosen]
        chosen += left[:missing]
    return sorted(chosen)
