"""Coordinated augmentation, against slow obvious references."""

import numpy as np
import pytest
import torch

from psl_flower.augment import Augmentation
from psl_flower.patches import PatchGrid
from psl_flower.seeds import uniform

SAMPLES = np.arange(100, 140)
SEED = 11


def images(size=(6, 8), channels=2):
    return np.random.default_rng(0).integers(0, 256, (len(SAMPLES), channels, *size), np.uint8)


def reference(patch_hw, flip, dy, dx):
    """Mirror, then move down by dy and right by dx, repeating the border."""
    h, w = patch_hw.shape
    if flip:
        patch_hw = patch_hw[:, ::-1]
    moved = np.empty_like(patch_hw)
    for y in range(h):
        for x in range(w):
            moved[y, x] = patch_hw[min(max(y - dy, 0), h - 1), min(max(x - dx, 0), w - 1)]
    return moved


def offset(purpose, sample, shift):
    return int(np.floor(uniform(SEED, purpose, np.array([sample]))[0] * (2 * shift + 1))) - shift


CASES = [(True, 0), (False, 2), (True, 1), (True, 4)]


@pytest.mark.parametrize(("flip", "shift"), CASES)
def test_against_the_reference(flip, shift):
    assert CASES
    augmentation = Augmentation(flip=flip, shift=shift)
    patches = PatchGrid(image_size=(6, 8), patch_size=(3, 4), stride=(3, 4)).split(images())
    before = patches.copy()
    found = augmentation.apply(patches, SEED, SAMPLES)
    flipped = augmentation.flipped(SEED, SAMPLES)
    assert np.array_equal(patches, before)
    seen = set()
    for i, sample in enumerate(SAMPLES):
        dy, dx = offset("shift-y", sample, shift), offset("shift-x", sample, shift)
        seen.add((bool(flipped[i]), dy, dx))
        for p in range(4):
            for c in range(2):
                assert np.array_equal(found[i, p, c], reference(patches[i, p, c], flipped[i], dy, dx))
    assert {dy for _, dy, _ in seen} == set(range(-shift, shift + 1))
    assert {flip for flip, _, _ in seen} == ({True, False} if flip else {False})


def test_mirrored_patches_in_a_mirrored_grid_are_the_mirrored_image():
    grid = PatchGrid(image_size=(6, 8), patch_size=(3, 4), stride=(3, 4))
    augmentation = Augmentation(flip=True)
    whole = images()
    flipped = augmentation.flipped(SEED, SAMPLES)
    expected = np.where(flipped[:, None, None, None], whole[..., ::-1], whole)
    own = torch.from_numpy(augmentation.apply(grid.split(whole), SEED, SAMPLES)).float()
    joined = grid.tile(own, torch.from_numpy(flipped))
    assert np.array_equal(joined.numpy().astype(np.uint8), expected)
    # Without the mirrored grid it would not be.
    assert not np.array_equal(grid.tile(own).numpy().astype(np.uint8), expected)


def test_a_shifted_patch_is_the_shifted_image_away_from_its_border():
    grid = PatchGrid(image_size=(12, 16), patch_size=(6, 8), stride=(6, 8))
    whole = images((12, 16), 1)
    shift = 2
    found = grid.merge(Augmentation(shift=shift).apply(grid.split(whole), SEED, SAMPLES))
    inner = [y for y in range(12) if shift <= y % 6 < 6 - shift], [x for x in range(16) if shift <= x % 8 < 8 - shift]
    for i, sample in enumerate(SAMPLES):
        moved = np.roll(whole[i, 0], (offset("shift-y", sample, shift), offset("shift-x", sample, shift)), (0, 1))
        assert np.array_equal(found[i, 0][np.ix_(*inner)], moved[np.ix_(*inner)])


def test_every_party_draws_the_same_for_its_own_samples():
    augmentation = Augmentation(flip=True, shift=2)
    patches = images()[:, None]
    some = np.array([5, 0, 17])
    together = augmentation.apply(patches, SEED, SAMPLES)
    assert np.array_equal(augmentation.apply(patches[some], SEED, SAMPLES[some]), together[some])
    assert not np.array_equal(augmentation.apply(patches, SEED + 1, SAMPLES), together)


def test_nothing_asked_for_changes_nothing():
    patches = images()[:, None]
    assert Augmentation().apply(patches, SEED, SAMPLES) is patches
    assert not Augmentation(shift=3).flipped(SEED, SAMPLES).any()
