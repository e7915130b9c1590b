"""What nodes learn: classes from gradients, and neighbouring patches by their borders."""

import numpy as np
import pytest
import torch

from psl_flower.leakage.gradients import KNOWN_PER_CLASS, guess_labels, nearest_class
from psl_flower.leakage.seams import BELOW, RIGHT, borders, match_seams, matches, neighbours
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


def test_looks_add_up_and_lengths_do_not_count():
    values = torch.tensor([[[1.0, 0], [0, 1], [0.5, 0.4]], [[1, 0], [0, 1], [0, 9]]])
    known = np.array([True, True, False])
    assert nearest_class(values, np.array([0, 1, 1]), known, 2).tolist() == [0, 1, 1]
    # A class of which no image is known is never guessed.
    assert nearest_class(values, np.array([0, 2, 2]), known, 3).tolist() == [0, 2, 2]


GRID = PatchGrid(image_size=(6, 8), patch_size=(3, 4), stride=(3, 4))


def test_neighbours():
    assert neighbours(GRID) == [(0, 1, RIGHT), (2, 3, RIGHT), (0, 2, BELOW), (1, 3, BELOW)]


def test_borders_by_hand():
    images = np.arange(6 * 8, dtype=np.uint8).reshape(1, 1, 6, 8)
    patches = GRID.split(images)
    last, begin = borders(GRID, patches[:, 0], patches[:, 1], RIGHT)
    assert (last.tolist(), begin.tolist()) == ([[3, 11, 19]], [[4, 12, 20]])
    last, begin = borders(GRID, patches[:, 1], patches[:, 3], BELOW)
    assert (last.tolist(), begin.tolist()) == ([[20, 21, 22, 23]], [[28, 29, 30, 31]])
    overlapping = PatchGrid(image_size=(6, 8), patch_size=(6, 5), stride=(6, 3))
    last, begin = borders(overlapping, *overlapping.split(images).swapaxes(0, 1), RIGHT)
    assert torch.equal(last, begin) and last.shape == (1, 12)


def test_matches_by_hand():
    first = torch.tensor([[0.0], [5], [9]])
    assert matches(first, torch.tensor([[1.0], [8], [4]])).tolist() == [True, False, False]
    # What is all alike is not matched by luck.
    assert matches(first, torch.ones(3, 1)).tolist() == [False] * 3


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
