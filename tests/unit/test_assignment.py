"""Which Upper takes which positions, on grids small enough to know the answer."""

import math

import pytest

from psl_flower.errors import ConfigError
from psl_flower.patches import PatchGrid
from psl_flower.patches.assignment import assign, min_distance


def grid(rows, cols):
    return PatchGrid(image_size=(rows, cols), patch_size=(1, 1), stride=(1, 1))


def test_round_robin_is_position_modulo_uppers():
    assert assign(grid(2, 3), 4, "round-robin") == (0, 1, 2, 3, 0, 1)


def test_as_many_uppers_as_patches_take_their_own():
    assert assign(grid(3, 3), 9) == tuple(range(9))


def test_one_upper_takes_all():
    assert assign(grid(2, 2), 1) == (0, 0, 0, 0)


def test_scatter_puts_two_uppers_on_a_chessboard():
    assert assign(grid(4, 4), 2) == (0, 1, 0, 1, 1, 0, 1, 0, 0, 1, 0, 1, 1, 0, 1, 0)
    # Round-robin would give each Upper whole columns.
    assert min_distance(grid(4, 4), assign(grid(4, 4), 2, "round-robin")) == 1.0
    assert min_distance(grid(4, 4), assign(grid(4, 4), 2)) == math.sqrt(2)


def test_scatter_puts_four_uppers_two_steps_apart():
    assert min_distance(grid(4, 4), assign(grid(4, 4), 4)) == 2.0


def test_min_distance_of_single_positions_is_infinite():
    assert min_distance(grid(2, 2), (0, 1, 2, 3)) == math.inf
    assert min_distance(grid(2, 3), (0, 1, 2, 1, 2, 0)) == pytest.approx(math.sqrt(2))


BAD = [(0, "scatter"), (5, "scatter"), (-1, "round-robin")]


@pytest.mark.parametrize(("uppers", "method"), BAD)
def test_impossible_numbers_are_refused(uppers, method):
    assert BAD
    with pytest.raises(ConfigError, match=rf"uppers: {uppers} Upper nodes cannot share 4 patches; choose 1 to 4"):
        assign(grid(2, 2), uppers, method)


def test_unknown_method_is_refused():
    with pytest.raises(ConfigError, match='assignment: expected "scatter" or "round-robin", got \'random\''):
        assign(grid(2, 2), 2, "random")
