"""The contract of every strategy that ships, and that evolution beats chance."""

import numpy as np
import pytest

from search.pareto import ranks, survivors
from search.spaces.image import ImageSpace
from search.strategies import BUILTIN

_SPACE = ImageSpace(28, 28, 10)


def _worth(genes: np.ndarray) -> np.ndarray:
    """Return two objectives that pull against one another: few parameters, high genes."""
    high = genes[:, ::2].sum(axis=1) + 0.5 * genes[:, 1::2].sum(axis=1)
    return np.column_stack([-high, genes[:, 1::2].sum(axis=1)]).astype(float)


def _run(name: str, seed: int, turns: int = 15) -> np.ndarray:
    strategy = BUILTIN[name](_SPACE, np.random.default_rng(seed), _SPACE.largest[None], _SPACE.smallest)
    asked = []
    for _ in range(turns):
        genes = strategy.ask(32)
        asked.append(genes.copy())
        strategy.tell(genes, _worth(genes))
    return np.concatenate(asked)


@pytest.fixture(params=sorted(BUILTIN))
def name(request):
    return request.param


def test_it_asks_for_as_many_legal_genomes_as_wanted_the_seeds_first(name):
    asked = _run(name, 0)
    assert asked.shape == (15 * 32, len(_SPACE.cardinalities))
    assert _SPACE.legal(asked).all()
    np.testing.assert_array_equal(asked[0], _SPACE.largest)


def test_it_repeats_under_a_seed(name):
    np.testing.assert_array_equal(_run(name, 1), _run(name, 1))
    assert (_run(name, 1) != _run(name, 2)).any()


def test_it_gives_inactive_genes_the_reference_and_begins_without_seeds(name):
    strategy = BUILTIN[name](_SPACE, np.random.default_rng(0), _SPACE.largest[None][:0], _SPACE.largest)
    asked = strategy.ask(50)
    np.testing.assert_array_equal(asked, _SPACE.normal(asked, _SPACE.largest))


def test_it_does_not_change_what_it_is_told(name):
    strategy = BUILTIN[name](_SPACE, np.random.default_rng(0), _SPACE.largest[None], _SPACE.smallest)
    genes = strategy.ask(16)
    worth = _worth(genes)
    copies = genes.copy(), worth.copy()
    strategy.tell(genes, worth)
    strategy.ask(16)
    np.testing.assert_array_equal(genes, copies[0])
    np.testing.assert_array_equal(worth, copies[1])


def _volume(asked: np.ndarray) -> float:
    """Return the area that a front dominates below (0, 20)."""
    worth = _worth(asked)
    front = worth[ranks(worth) == 0]
    front = np.unique(front, axis=0)
    best, area = 0.0, 0.0
    for first, second in front[np.argsort(front[:, 1])]:
        if first < best:
            area += (best - first) * max(0.0, 20 - second)
            best = first
    return area


def test_evolution_dominates_more_than_chance_for_equal_questions():
    gains = [_volume(_run("nsga2", seed)) / _volume(_run("random", seed)) for seed in range(5)]
    assert min(gains) > 1.0


def test_survivors_keep_the_first_front_and_its_ends():
    objectives = np.array([[0.0, 4.0], [1.0, 1.0], [1.1, 0.9], [4.0, 0.0], [5.0, 5.0]])
    assert set(survivors(objectives, 2).tolist()) == {0, 3}
    assert 4 not in survivors(objectives, 4)
