"""Assignments on any grid: complete, balanced, and scatter at least as scattered as round-robin."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from psl_flower.patches import PatchGrid
from psl_flower.patches.assignment import assign, min_distance

# The machine may be busy: no deadline for an example.
many = settings(deadline=None, max_examples=60)


@st.composite
def problems(draw):
    rows, cols = draw(st.integers(1, 7)), draw(st.integers(1, 7))
    grid = PatchGrid(image_size=(rows, cols), patch_size=(1, 1), stride=(1, 1))
    return grid, draw(st.integers(1, grid.num_patches))


@many
@given(problems(), st.sampled_from(["scatter", "round-robin"]))
def test_complete_and_balanced(problem, method):
    grid, uppers = problem
    assignment = assign(grid, uppers, method)
    assert len(assignment) == grid.num_patches
    counts = np.bincount(assignment, minlength=uppers)
    assert len(counts) == uppers
    assert counts.min() >= 1
    assert counts.max() - counts.min() <= 1
    assert all(type(m) is int for m in assignment)


def test_scatter_keeps_neighbours_at_least_as_far_apart_on_every_small_grid():
    sizes = [(rows, cols) for rows in range(1, 6) for cols in range(rows, 6)]
    assert (3, 3) in sizes
    for size in sizes:
        grid = PatchGrid(image_size=size, patch_size=(1, 1), stride=(1, 1))
        for uppers in range(1, grid.num_patches + 1):
            scattered, simple = assign(grid, uppers), assign(grid, uppers, "round-robin")
            assert min_distance(grid, scattered) >= min_distance(grid, simple), (size, uppers)


@many
@given(problems())
def test_scatter_keeps_neighbours_at_least_as_far_apart(problem):
    grid, uppers = problem
    scattered = assign(grid, uppers, "scatter")
    assert scattered == assign(grid, uppers, "scatter")
    assert min_distance(grid, scattered) >= min_distance(grid, assign(grid, uppers, "round-robin"))


@many
@given(problems())
def test_uppers_are_numbered_by_their_first_position(problem):
    grid, uppers = problem
    assignment = assign(grid, uppers, "scatter")
    assert list(dict.fromkeys(assignment)) == list(range(uppers))
