"""Coordinated augmentation, against slow obvious references."""

import numpy as np
import pytest
import torch

from psl_flower.config import RunConfig
from psl_flower.engine.augment import Augmentation
from psl_flower.engine.build import Blueprint
from psl_flower.engine.inputs import network_input
from psl_flower.errors import ConfigError
from psl_flower.patches import PatchGrid
from psl_flower.seeds import uniform
from psl_flower.wire.plan import Plan, StepId, pack_samples

SAMPLES = np.arange(100, 140)
SEED = 11
GRID = PatchGrid(image_size=(6, 8), patch_size=(3, 4), stride=(3, 4))


def augmentation(grid=GRID, **options):
    return Augmentation(grid=grid, **options)


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


def moved(drawn, patches, seed=SEED, samples=SAMPLES):
    """Return what `apply` makes of patches, as an array."""
    return drawn.apply(torch.from_numpy(patches), seed, samples).numpy()


CASES = [(True, 0), (False, 2), (True, 1), (True, 4)]


@pytest.mark.parametrize(("flip", "shift"), CASES)
def test_against_the_reference(flip, shift):
    assert CASES
    drawn = augmentation(flip=flip, shift=shift)
    patches = GRID.split(images())
    before = patches.copy()
    found = moved(drawn, patches)
    flipped = drawn.flipped(SEED, SAMPLES)
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
    drawn = augmentation(flip=True)
    whole = images()
    flipped = drawn.flipped(SEED, SAMPLES)
    expected = np.where(flipped[:, None, None, None], whole[..., ::-1], whole)
    own = torch.from_numpy(moved(drawn, GRID.split(whole))).float()
    joined = GRID.tile(own, torch.from_numpy(flipped))
    assert np.array_equal(joined.numpy().astype(np.uint8), expected)
    # Without the mirrored grid it would not be.
    assert not np.array_equal(GRID.tile(own).numpy().astype(np.uint8), expected)


def test_a_shifted_patch_is_the_shifted_image_away_from_its_border():
    grid = PatchGrid(image_size=(12, 16), patch_size=(6, 8), stride=(6, 8))
    whole = images((12, 16), 1)
    shift = 2
    found = grid.merge(moved(augmentation(shift=shift), grid.split(whole)))
    inner = [y for y in range(12) if shift <= y % 6 < 6 - shift], [x for x in range(16) if shift <= x % 8 < 8 - shift]
    for i, sample in enumerate(SAMPLES):
        rolled = np.roll(whole[i, 0], (offset("shift-y", sample, shift), offset("shift-x", sample, shift)), (0, 1))
        assert np.array_equal(found[i, 0][np.ix_(*inner)], rolled[np.ix_(*inner)])


def test_every_party_draws_the_same_for_its_own_samples():
    drawn = augmentation(flip=True, shift=2)
    patches = images()[:, None]
    some = np.array([5, 0, 17])
    together = moved(drawn, patches)
    assert np.array_equal(moved(drawn, patches[some], SEED, SAMPLES[some]), together[some])
    assert not np.array_equal(moved(drawn, patches, SEED + 1), together)


def test_nothing_asked_for_changes_nothing():
    patches = torch.from_numpy(images()[:, None])
    assert augmentation().apply(patches, SEED, SAMPLES) is patches
    assert not augmentation(shift=3).flipped(SEED, SAMPLES).any()


GRIDS = {
    "simple": GRID,
    "overlapping": PatchGrid(image_size=(8, 8), patch_size=(4, 4), stride=(2, 2)),
    "padded by one column": PatchGrid(image_size=(6, 7), patch_size=(3, 4), stride=(3, 4), fit="pad"),
}


def square(grid, sample, side):
    """Return (height, width) bool: the sample's square in the padded image."""
    height, width = grid.padded_size
    at = np.array([sample])
    y = int(uniform(SEED, "cutout-y", at)[0] * height) - side // 2
    x = int(uniform(SEED, "cutout-x", at)[0] * width) - side // 2
    blank = np.zeros((height, width), bool)
    blank[max(y, 0) : max(y + side, 0), max(x, 0) : max(x + side, 0)] = True
    return blank


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("side", [1, 3, 4])
@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS.keys())
def test_the_square_is_one_in_the_joined_image(grid, side, flip):
    assert GRIDS
    drawn = augmentation(grid, flip=flip, shift=1, cutout=side)
    blanked = drawn.blanked(range(grid.num_patches), SEED, SAMPLES)
    assert blanked.shape == (len(SAMPLES), grid.num_patches, *grid.patch_size)
    (h, w), flipped = grid.patch_size, drawn.flipped(SEED, SAMPLES)
    cut = 0
    for i, sample in enumerate(SAMPLES):
        whole = square(grid, sample, side)
        cut += int(0 < whole.sum() < side * side)
        for p, patch in enumerate(blanked[i]):
            row, col = divmod(p, grid.cols)
            # Where `tile` puts the patch of a mirrored sample.
            y, x = grid.corners()[row * grid.cols + (grid.cols - 1 - col if flipped[i] else col)]
            assert np.array_equal(patch, whole[y : y + h, x : x + w])
    assert cut > 0 or side == 1
    some = [grid.num_patches - 1, 1]
    assert np.array_equal(drawn.blanked(some, SEED, SAMPLES), blanked[:, some])


def plan(weight=1.0, mode="train"):
    return Plan(StepId(0, 0), mode, 0.1, pack_samples(SAMPLES), SEED, weight)


def input_of(drawn, given, patches):
    return network_input(patches, range(drawn.grid.num_patches), given, drawn, (0.5, 0.25), (0.5, 0.125))


def joined(drawn, patches_NChw):
    grid = drawn.grid
    patches_BPChw = patches_NChw.reshape(len(SAMPLES), grid.num_patches, *patches_NChw.shape[1:])
    return grid.tile(patches_BPChw, torch.from_numpy(drawn.flipped(SEED, SAMPLES)))


def test_mixed_patches_join_to_mixed_images():
    drawn = augmentation(flip=True, mixup=0.4)
    patches, partners = GRID.split(images()), drawn.partners(SEED, SAMPLES)
    whole = joined(drawn, input_of(drawn, plan(), patches))
    assert torch.equal(
        joined(drawn, input_of(drawn, plan(0.75), patches)), whole * 0.75 + whole[torch.from_numpy(partners)] * 0.25
    )


def test_a_blank_is_the_mean_colour_and_only_that():
    drawn, plain = augmentation(flip=True, cutout=3), augmentation(flip=True)
    patches = GRID.split(images())
    found, whole = joined(drawn, input_of(drawn, plan(), patches)), joined(plain, input_of(plain, plan(), patches))
    for i, sample in enumerate(SAMPLES):
        blank = torch.from_numpy(square(GRID, sample, 3))
        assert torch.equal(found[i], whole[i].masked_fill(blank, 0.0))
    assert not torch.equal(found, whole)


def test_evaluation_is_not_augmented():
    drawn, patches = augmentation(flip=True, shift=2, cutout=3, mixup=0.4), GRID.split(images())
    assert torch.equal(input_of(drawn, plan(mode="evaluate"), patches), input_of(augmentation(), plan(), patches))


def test_partners_are_a_permutation_among_samples_that_are_mirrored_alike():
    drawn = augmentation(flip=True, mixup=0.4)
    partners, flipped = drawn.partners(SEED, SAMPLES), drawn.flipped(SEED, SAMPLES)
    assert sorted(partners) == list(range(len(SAMPLES)))
    assert np.array_equal(flipped[partners], flipped)
    assert 0 < flipped.sum() < len(SAMPLES)
    assert (partners != np.arange(len(SAMPLES))).sum() > len(SAMPLES) // 2
    assert not np.array_equal(partners, drawn.partners(SEED + 1, SAMPLES))
    # Without flips they are drawn from the whole batch.
    assert not np.array_equal(flipped[augmentation(mixup=0.4).partners(SEED, SAMPLES)], flipped)


def test_the_weight_is_drawn_by_step_and_follows_the_distribution():
    assert augmentation().mix_weight(0, 3) == 1.0
    weights = np.array([augmentation(mixup=2.0).mix_weight(0, step) for step in range(400)])
    assert weights.min() > 0.0 and weights.max() < 1.0
    # Beta(2, 2) has mean 1/2 and variance 1/20.
    assert weights.mean() == pytest.approx(0.5, abs=0.05)
    assert weights.var() == pytest.approx(0.05, abs=0.01)
    assert augmentation(mixup=2.0).mix_weight(1, 0) != weights[0]
    assert augmentation(mixup=1e-3).mix_weight(0, 0) in (pytest.approx(0.0, abs=1e-3), pytest.approx(1.0, abs=1e-3))


def test_patches_are_dropped_as_often_as_asked_and_never_all():
    samples = np.arange(5000)
    dropped = augmentation(patch_dropout=0.3).dropped(SEED, samples, 4)
    assert dropped.shape == (5000, 4)
    # Once in 0.3**4 all four would go; then one stays.
    assert dropped.mean(axis=0) == pytest.approx([0.3 - 0.3**4 / 4] * 4, abs=0.02)
    assert not dropped.all(axis=1).any()
    assert dropped.any(axis=1).mean() == pytest.approx(1 - 0.7**4, abs=0.02)
    # Each Upper's draws are its own: both of a pair go in 9 % of the samples.
    assert (dropped[:, 0] & dropped[:, 1]).mean() == pytest.approx(0.09, abs=0.015)
    assert augmentation().dropped(SEED, samples, 4) is None
    some = samples[::7]
    assert np.array_equal(augmentation(patch_dropout=0.3).dropped(SEED, some, 4), dropped[::7])


def test_the_one_whose_patches_stay_is_not_absent():
    dropped = augmentation(patch_dropout=0.99).dropped(SEED, SAMPLES, 3, absent={0, 2})
    assert dropped.tolist() == [[True, False, True]] * len(SAMPLES)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cutout": 16}, "cutout: a square of 16 pixels may blank whole images of 16x16; choose less, such as 8"),
        ({"shift": 8}, "shift: 8 pixels would empty patches of 8x8; choose 0 to 7"),
    ],
)
def test_what_leaves_nothing_of_the_images_is_refused(plain, settings, message):
    with pytest.raises(ConfigError, match=message):
        Blueprint(RunConfig.of(**settings), plain.description).task(plain.labels)
