"""The contract of every strategy that ships, and that evolution beats chance."""

import numpy as np
import pytest

from search.pareto import hypervolume
from search.strategies import BUILTIN
from tests.search.worlds import BARS

_SPACE = BARS.space()
_TURNS, _ASKED = 15, 32


def _worth(genes: np.ndarray) -> np.ndarray:
    """Return two objectives that pull against one another: high genes, and few of every second."""
    high = genes[:, ::2].sum(axis=1) + 0.5 * genes[:, 1::2].sum(axis=1)
    return np.column_stack([-high, genes[:, 1::2].sum(axis=1)]).astype(float)


def _run(name: str, seed: int, turns: int = _TURNS) -> np.ndarray:
    strategy = BUILTIN[name](_SPACE, np.random.default_rng(seed), _SPACE.largest[None], _SPACE.smallest)
    asked = []
    for _ in range(turns):
        genes = strategy.ask(_ASKED)
        asked.append(genes.copy())
        strategy.tell(genes, _worth(genes))
    return np.concatenate(asked)


@pytest.fixture(params=sorted(BUILTIN))
def name(request):
    return request.param


def test_it_asks_for_as_many_legal_genomes_as_wanted_the_seeds_first(name):
    asked = _run(name, 0)
    assert asked.shape == (_TURNS * _ASKED, len(_SPACE.cardinalities))
    assert _SPACE.legal(asked).all()
    np.testing.assert_array_equal(asked[0], _SPACE.largest)


def test_more_seeds_than_one_question_holds_are_asked_for_in_turn(name):
    seeds = _SPACE.sample(np.random.default_rng(0), 12)
    strategy = BUILTIN[name](_SPACE, np.random.default_rng(1), seeds, _SPACE.smallest)
    first = strategy.ask(8)
    strategy.tell(first, _worth(first))
    second = strategy.ask(8)
    wanted = _SPACE.normal(seeds, _SPACE.smallest)
    np.testing.assert_array_equal(np.concatenate([first, second[:4]]), wanted)


def test_it_repeats_under_a_seed(name):
    np.testing.assert_array_equal(_run(name, 1), _run(name, 1))
    assert (_run(name, 1) != _run(name, 2)).any()


def test_it_gives_inactive_genes_the_reference_and_begins_without_seeds(name):
    strategy = BUILTIN[name](_SPACE, np.random.default_rng(0), _SPACE.largest[None][:0], _SPACE.largest)
    asked = strategy.ask(50)
    np.testing.assert_array_equal(asked, _SPACE.normal(asked, _SPACE.largest))
    strategy.tell(asked, _worth(asked))
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
    return hypervolume(_worth(asked), (0.0, 20.0))


@pytest.mark.parametrize("evolved", sorted(set(BUILTIN) - {"random"}))
def test_evolution_dominates_more_than_chance_for_equal_questions(evolved):
    gains = [_volume(_run(evolved, seed)) / _volume(_run("random", seed)) for seed in range(5)]
    assert min(gains) > 1.0
