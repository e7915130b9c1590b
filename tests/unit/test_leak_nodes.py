"""What nodes learn: classes from gradients, and neighbouring patches by their borders."""

import numpy as np
import pytest
import torch

from psl_flower.leakage.gradients import KNOWN_PER_CLASS, guess_labels, nearest_class
from psl_flower.leakage.seams import BELOW, RIGHT, distances, match_seams, matches, neighbours
from psl_flower.patches import PatchGrid


def test_gradients_that_point_by_class_give_the_classes_away():
    drawn = np.random.default_rng(0)
    labels = drawn.integers(0, 4, 200)
    centres = torch.randn(2, 4, 16, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(2, 200, 16, generator=torch.Generator().manual_seed(1))
    found = guess_labels(centres[:, labels] + 0.5 * noise, noise, labels, 4)
    assert found.from_gradients.mean > 0.9
    assert found.from_patches.mean < 0.5
    assert (found.images, found.known, found.looks) == (200 - 4 * KNOWN_PER_CLASS, KNOWN_PER_CLASS, 2)
    assert 0.25 <= found.chance < 0.4
    assert "from the gradients of 2 looks" in found.line


def test_without_gradients_or_images_to_guess_there_is_nothing_to_say():
    labels = np.zeros(9, np.int64)
    assert guess_labels(torch.empty(0), torch.zeros(1, 9, 4), labels, 1) is None
    assert guess_labels(torch.ones(1, 3, 4), torch.zeros(1, 3, 4), labels[:3], 1) is None
    assert guess_labels(torch.zeros(2, 9, 4), torch.zeros(2, 9, 4), labels, 1) is None


def test_looks_of_frozen_uppers_do_not_count():
    gradients = torch.stack([torch.zeros(40, 4), torch.randn(40, 4)])
    assert guess_labels(gradients, torch.randn(2, 40, 4), np.arange(40) % 2, 2).looks == 1


def test_looks_add_up_and_lengths_do_not_count():
    values = torch.tensor([[[1.0, 0], [0, 1], [0.5, 0.4]], [[1, 0], [0, 1], [0, 9]]])
    known = np.array([True, True, False])
    assert nearest_class(values, np.array([0, 1, 1]), known, 2).tolist() == [0, 1, 1]
    # A class of which no image is known is never guessed.
    assert nearest_class(values, np.array([0, 2, 2]), known, 3).tolist() == [0, 2, 2]


GRID = PatchGrid(image_size=(6, 8), patch_size=(3, 4), stride=(3, 4))


def test_neighbours():
    assert neighbours(GRID) == [(0, 1, RIGHT), (2, 3, RIGHT), (0, 2, BELOW), (1, 3, BELOW)]


def slow_distance(border, inside, other):
    """Return the distance of two borders (C, D) by its definition, one way."""
    step = border - inside
    covariance = np.cov(step) + 4 * np.eye(len(step))
    difference = other - border - step.mean(1, keepdims=True)
    return sum(column @ np.linalg.inv(covariance) @ column for column in difference.T)


@pytest.mark.parametrize(("side", "first", "second"), [(RIGHT, 0, 1), (BELOW, 1, 3)])
def test_distances_are_their_definition(side, first, second):
    patches = GRID.split(np.random.default_rng(0).integers(0, 256, (5, 3, 6, 8), np.uint8))
    found = distances(GRID, patches[:, first], patches[:, second], side)
    a, b = (patches[:, p].astype(float) for p in (first, second))
    if side == BELOW:
        a, b = a.swapaxes(2, 3), b.swapaxes(2, 3)
    expected = [
        [slow_distance(x[..., -1], x[..., -2], y[..., 0]) + slow_distance(y[..., 0], y[..., 1], x[..., -1]) for y in b]
        for x in a
    ]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-8)


def test_overlapping_patches_are_compared_by_what_both_have():
    images = np.random.default_rng(0).integers(0, 256, (2, 1, 6, 8), np.uint8)
    overlapping = PatchGrid(image_size=(6, 8), patch_size=(6, 5), stride=(6, 3))
    patches = overlapping.split(images)
    found = distances(overlapping, patches[:, 0], patches[:, 1], RIGHT)
    assert found.diagonal().tolist() == [0, 0] and found[0, 1] > 0
    assert matches(found).all()


def test_patches_of_one_column_are_compared_by_it():
    grid = PatchGrid(image_size=(2, 2), patch_size=(2, 1), stride=(2, 1))
    patches = grid.split(np.array([[[[1, 4], [1, 8]]]], np.uint8))
    assert distances(grid, patches[:, 0], patches[:, 1], RIGHT).tolist() == [[pytest.approx(58**0.5)]]


def test_matches_by_hand():
    first = torch.tensor([[0.0], [5], [9]])
    assert matches(torch.cdist(first, torch.tensor([[1.0], [8], [4]]))).tolist() == [True, False, False]
    # What is all alike is not matched by luck.
    assert matches(torch.ones(3, 3)).tolist() == matches(torch.zeros(3, 3)).tolist() == [False] * 3
    # The second fits everything, so that it fits the first is no sign.
    assert matches(torch.tensor([[3.0, 2, 9, 9], [9, 1, 9, 9], [9, 2, 4, 9], [9, 2, 9, 4]])).all()


def test_smooth_images_are_matched_and_noise_is_not():
    drawn = np.random.default_rng(0)
    coarse = torch.from_numpy(drawn.random((300, 3, 4, 4))).float()
    smooth = torch.nn.functional.interpolate(coarse, size=(24, 32), mode="bilinear", align_corners=True)
    noise = torch.from_numpy(drawn.random((300, 3, 24, 32))).float()
    grid = PatchGrid(image_size=(24, 32), patch_size=(12, 16), stride=(12, 16))
    shares = [
        [seam.matched.mean for seam in match_seams(grid, grid.split((images * 255).byte()).numpy(), (0, 1, 2, 0))]
        for images in (smooth, noise)
    ]
    assert len(shares[0]) == 4
    assert min(shares[0]) > 0.8 > 0.1 > max(shares[1])


@pytest.mark.parametrize(("assignment", "pairs"), [((0, 0, 0, 0), []), ((0, 0, 1, 1), [(0, 2), (1, 3)])])
def test_patches_of_one_node_need_no_matching(assignment, pairs):
    patches = np.zeros((3, 4, 1, 3, 4), np.uint8)
    assert [(seam.first, seam.second) for seam in match_seams(GRID, patches, assignment)] == pairs
