"""The search proper: measure a few genomes, guess the rest, measure where the guess is promising.

* Every round fits a predictor on all that was measured, lets a strategy run over its guesses and the latency
  table, and examines a handful of the front: half by the guess that its doubt allows, half spread over
  latency, because a two-objective search otherwise crowds into small networks.
* A genome beyond the bounds is never examined.
* The predictor proposes, the exam disposes: only examined genomes can win.
* A round depends on the seed, its number and what was examined before it, so a search that was broken off
  goes on as if it had not been.

Source: Wen et al., WeakNAS (2021), for iterated weak predictors; Cummings et al., LINAS (2022).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from search.bounds import Bounds
from search.budget import Budget
from search.crew import Crew
from search.exam import Marks
from search.examiner import Examiner
from search.pareto import Objectives, ranks, survivors
from search.predictor import Predictor
from search.space import Genes, Space
from search.strategy import Strategy, StrategyFactory

Report = Callable[[int, int, str], None]

GENERATIONS = 12
POPULATION = 256
_ROUND = 8
_FEWEST_LIKES = 16
_LEAST_TRUST = 0.2
_BEYOND = 10.0


@dataclass(frozen=True)
class Look:
    """One genome that was examined; ``predicted`` is the guess that led to it, None for a seed."""

    genes: Genes
    marks: Marks
    latency_ms: float
    predicted: float | None


class Guess:
    """Both objectives of genomes nobody has examined."""

    def __init__(self, space: Space, bounds: Bounds, predictor: Predictor) -> None:
        self._space = space
        self._bounds = bounds
        self._predictor = predictor

    def accuracy(self, genes: Genes) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return guessed accuracy and its doubt; each (n,)."""
        return self._predictor.predict(self._space.encode(genes))

    def objectives(self, genes: Genes) -> Objectives:
        """Return (n, 2): the error that the guess fears, and milliseconds."""
        mean, doubt = self.accuracy(genes)
        violation = self._bounds.violation(genes)
        beyond = np.where(violation > 0, _BEYOND + violation, 0.0)
        return np.column_stack([1 - mean + doubt + beyond, self._bounds.costs.latency_ms(genes) + beyond])


class Explorer:
    """What has been looked at so far.

    Args:
        space: Where it looks.
        examiner: What it asks.
        bounds: What it must meet.
        strategy: How it moves over guesses.
        reference: (genes,) what inactive genes are set to.
        seed: Of all chance.
        crew: To compute with.
    """

    def __init__(
        self,
        space: Space,
        examiner: Examiner,
        bounds: Bounds,
        strategy: StrategyFactory,
        reference: Genes,
        seed: int,
        crew: Crew,
    ) -> None:
        self._space = space
        self._examiner = examiner
        self._bounds = bounds
        self._strategy = strategy
        self._reference = reference
        self._seed = seed
        self._crew = crew
        self._guessed = np.empty(0, dtype=np.int64)
        self.rounds = 0
        self.looks: dict[int, Look] = {}

    @property
    def architectures(self) -> int:
        """Return how many genomes were guessed at or examined."""
        return len(np.union1d(self._guessed, np.fromiter(self.looks, dtype=np.int64)))

    @property
    def guessed(self) -> NDArray[np.int64]:
        """Return the names of all genomes that were guessed at."""
        return self._guessed

    def resume(self, looks: Sequence[Look], rounds: int, guessed: NDArray[np.int64]) -> None:
        """Take up a search where it was broken off."""
        self.looks = {self._name(look.genes): look for look in looks}
        self.rounds = rounds
        self._guessed = guessed

    def explore(
        self, seeds: Genes, n: int, budget: Budget, share: float, report: Report, keep: Callable[[], None]
    ) -> list[Look]:
        """Examine up to ``n`` genomes: the seeds first, then what the guesses propose.

        Args:
            seeds: (k, genes); those beyond the bounds are passed over.
            n: How many to examine in all; seeds always are.
            budget: Of the whole search.
            share: Of it that may be gone at the end.
            report: Told after every round.
            keep: Called after every round, to keep what there is.
        """
        report(len(self.looks), n, "search: the seeds")
        if not self.looks:
            seeds = self._space.normal(seeds, self._reference)
            self._look([(row, None) for row in seeds[self._bounds.violation(seeds) == 0]])
            keep()
        while len(self.looks) < n and not budget.stop("search", share):
            chosen = self._shortlist(min(_ROUND, n - len(self.looks)))
            if not chosen:
                break
            self._look(chosen)
            report(len(self.looks), n, f"search: {self.architectures} architectures guessed at")
            keep()
        return list(self.looks.values())

    def _name(self, row: Genes) -> int:
        return int(self._space.names(row[None])[0])

    def _look(self, chosen: Sequence[tuple[Genes, float | None]]) -> None:
        fresh = {self._name(row): (row, guess) for row, guess in chosen if self._name(row) not in self.looks}
        rows = [row for row, _ in fresh.values()]
        marks = self._crew.map(self._examiner.examine, rows)
        latency = self._bounds.costs.latency_ms(np.stack(rows)) if rows else np.empty(0)
        for (name, (row, guess)), mark, ms in zip(fresh.items(), marks, latency, strict=True):
            self.looks[name] = Look(row, mark, float(ms), guess)

    def _shortlist(self, n: int) -> list[tuple[Genes, float | None]]:
        rng = np.random.default_rng([self._seed, 6, self.rounds])
        self.rounds += 1
        looked = list(self.looks.values())
        genes = np.stack([look.genes for look in looked])
        values = np.array([look.marks.accuracy for look in looked])
        guess = Guess(self._space, self._bounds, Predictor(self._space.encode(genes), values, rng))
        strategy = self._strategy(self._space, rng, genes, self._reference)
        asked, objectives = evolve(strategy, guess, GENERATIONS, POPULATION)
        names, first = np.unique(self._space.names(asked), return_index=True)
        self._guessed = np.union1d(self._guessed, names)
        fresh = ~np.isin(names, np.fromiter(self.looks, dtype=np.int64))
        first = first[fresh & (objectives[first, 1] < _BEYOND)]
        if not len(first):
            return []
        chosen = first[spread(objectives[first], n)]
        mean, _ = guess.accuracy(asked[chosen])
        return [(row, float(value)) for row, value in zip(asked[chosen], mean, strict=True)]


def beliefs(space: Space, looks: Sequence[Look], seed: int) -> NDArray[np.float64]:
    """Return ``believed`` of some looks; (n,)."""
    genes = np.stack([look.genes for look in looks])
    accuracy = np.array([look.marks.accuracy for look in looks])
    return believed(space, genes, accuracy, len(looks[0].marks.new), seed)


def believed(
    space: Space, genes: Genes, accuracy: NDArray[np.float64], rows: int, seed: int
) -> NDArray[np.float64]:
    """Return what to believe of examined genomes: between what the exam says and what their likes say.

    An exam of some hundred rows is off by half a point, and the best of many exams is the luckiest. Each
    genome is drawn towards the guess of a predictor that was fitted on all of them, by as much as the spread
    around that guess is explained by the chance of the exam. Few genomes say nothing about one another, and
    are believed.

    Args:
        space: Of the genomes.
        genes: (n, genes) that were examined.
        accuracy: (n,) shares of right rows.
        rows: How many rows each was asked; >= 1.
        seed: Of the predictor.

    Source: Efron and Morris, Stein's paradox in statistics (1977).
    """
    if len(genes) < _FEWEST_LIKES:
        return accuracy
    features = space.encode(genes)
    guess, _ = Predictor(features, accuracy, np.random.default_rng([seed, 15])).predict(features)
    around = float(np.mean((accuracy - guess) ** 2))
    chance = float(np.mean(accuracy * (1 - accuracy))) / rows
    share = max(_LEAST_TRUST, 1 - chance / around) if around > 0 else 1.0
    return np.asarray(guess + share * (accuracy - guess))


def evolve(strategy: Strategy, guess: Guess, generations: int, population: int) -> tuple[Genes, Objectives]:
    """Let a strategy run over guesses; return all that it asked for, with the answers."""
    asked, answers = [], []
    for _ in range(generations):
        genes = strategy.ask(population)
        objectives = guess.objectives(genes)
        strategy.tell(genes, objectives)
        asked.append(genes)
        answers.append(objectives)
    return np.concatenate(asked), np.concatenate(answers)


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
