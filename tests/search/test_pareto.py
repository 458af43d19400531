"""Who dominates whom, and how much of the plane."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.pareto import crowding, hypervolume, pairwise_ranks, ranks, survivors

# Few values, so that ties of one or both objectives are common.
_POINTS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=60).map(
    lambda points: np.array(points, dtype=np.float64)
)


@given(_POINTS)
def test_sorting_gives_the_ranks_that_comparing_all_pairs_gives(points):
    np.testing.assert_array_equal(ranks(points), pairwise_ranks(points))


@given(_POINTS)
def test_a_third_objective_that_says_nothing_changes_no_rank(points):
    constant = np.column_stack([points, np.zeros(len(points))])
    np.testing.assert_array_equal(ranks(constant), ranks(points))


@given(_POINTS, st.randoms(use_true_random=False))
def test_ranks_do_not_depend_on_the_order_of_the_points(points, chance):
    order = list(range(len(points)))
    chance.shuffle(order)
    np.testing.assert_array_equal(ranks(points[order]), ranks(points)[order])


@given(_POINTS)
def test_the_area_of_all_points_is_that_of_their_front_and_counts_the_squares(points):
    area = hypervolume(points, (7.0, 7.0))
    assert area == hypervolume(points[ranks(points) == 0], (7.0, 7.0))
    squares = [(points <= (x, y)).all(axis=1).any() for x in range(7) for y in range(7)]
    assert area == sum(squares)


def test_points_beyond_the_reference_have_no_area():
    assert hypervolume(np.array([[2.0, 0.0], [0.0, 2.0]]), (2.0, 2.0)) == 0.0
    assert hypervolume(np.array([[1.0, 1.0]]), (2.0, 2.0)) == 1.0


def test_survivors_keep_the_first_front_and_its_ends():
    objectives = np.array([[0.0, 4.0], [1.0, 1.0], [1.1, 0.9], [4.0, 0.0], [5.0, 5.0]])
    assert set(survivors(objectives, 2).tolist()) == {0, 3}
    assert 4 not in survivors(objectives, 4)
    assert sorted(survivors(objectives, 9).tolist()) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("n", [1, 2])
def test_few_points_have_all_the_room(n):
    assert np.isinf(crowding(np.arange(2.0 * n).reshape(n, 2))).all()
