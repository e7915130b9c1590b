"""Stores with a margin: what they hold, and that a coordinated shift of their patches is that of the whole image."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from psl_flower.engine.augment import Augmentation
from psl_flower.errors import GridError
from psl_flower.patches import PatchGrid
from tests.property.test_patches_property import grids

# The machine may be busy: no deadline for an example.
many = settings(deadline=None, max_examples=60)
SAMPLES = np.arange(7, 19)


@st.composite
def with_margin(draw):
    """Draw a grid with a margin, exact or padded."""
    grid = draw(grids())
    return grid.with_margin(draw(st.integers(0, min(grid.image_size) - 1)))


def images_for(grid, channels, seed, count=12):
    return np.random.default_rng(seed).integers(0, 256, (count, channels, *grid.image_size), np.uint8)


def padded(grid, images, more=0):
    """Repeat an image's border by hand: up to the padded size, and `more` pixels on every side."""
    (H, W), (height, width) = grid.image_size, grid.padded_size
    top, left = (height - H) // 2, (width - W) // 2
    sides = (top + more, height - H - top + more), (left + more, width - W - left + more)
    return np.pad(images, ((0, 0), (0, 0), *sides), "edge")


@many
@given(with_margin(), st.integers(1, 4), st.integers(0, 2**32 - 1), st.booleans())
def test_a_field_is_the_patch_and_what_lies_around_it(grid, channels, seed, use_torch):
    images = images_for(grid, channels, seed, 3)
    given_images = torch.from_numpy(images) if use_torch else images
    (h, w), m, around = grid.patch_size, grid.margin, padded(grid, images, grid.margin)
    fields = grid.split(given_images)
    assert type(fields) is type(given_images)
    assert tuple(fields.shape) == (3, grid.num_patches, channels, h + 2 * m, w + 2 * m)
    for p, (y, x) in enumerate(grid.corners()):
        assert np.array_equal(np.asarray(fields[:, p]), around[:, :, y : y + h + 2 * m, x : x + w + 2 * m])
    inner = np.asarray(fields)[..., m : m + h, m : m + w]
    assert np.array_equal(inner, grid.with_margin(0).split(images))
    assert np.array_equal(np.asarray(grid.merge(fields)), images)
    if m:
        with pytest.raises(GridError, match="expected patches"):
            grid.merge(inner)


@many
@given(with_margin(), st.integers(1, 3), st.booleans(), st.integers(0, 2**32 - 1), st.data())
def test_shifts_within_the_margin_are_those_of_the_whole_image(grid, channels, flip, seed, data):
    """Cutting the flipped and shifted image gives, to the bit, what every store makes of its own patches."""
    shift = data.draw(st.integers(0, grid.margin))
    images, cut = images_for(grid, channels, seed), grid.with_margin(0)
    whole = padded(grid, images)
    size = grid.padded_size
    one = PatchGrid(image_size=size, patch_size=size, stride=size)
    moved = Augmentation(grid=one, flip=flip, shift=shift).apply(torch.from_numpy(whole[:, None]), seed, SAMPLES)
    exact = PatchGrid(image_size=size, patch_size=grid.patch_size, stride=grid.stride)
    expected = exact.split(moved[:, 0].numpy())
    drawn = Augmentation(grid=grid, flip=flip, shift=shift)
    found = drawn.apply(torch.from_numpy(grid.split(images)), seed, SAMPLES)
    assert found.shape[3:] == cut.patch_size
    # A mirrored sample's patch stands at the mirrored place.
    mirrored = np.arange(grid.num_patches).reshape(grid.rows, grid.cols)[:, ::-1].reshape(-1)
    for b, turned in enumerate(drawn.flipped(seed, SAMPLES)):
        assert np.array_equal(found[b].numpy(), expected[b][mirrored] if turned else expected[b])


@pytest.mark.parametrize("margin", [0, 1, 2])
def test_without_margin_patches_differ_from_the_shifted_image(margin):
    """The control: only a margin as large as the shift makes them equal."""
    grid = PatchGrid(image_size=(12, 16), patch_size=(6, 8), stride=(6, 8), margin=margin)
    images = images_for(grid, 1, 0)
    one = PatchGrid(image_size=(12, 16), patch_size=(12, 16), stride=(12, 16))
    whole = Augmentation(grid=one, shift=2).apply(torch.from_numpy(images[:, None]), 3, SAMPLES)[:, 0].numpy()
    found = Augmentation(grid=grid, shift=2).apply(torch.from_numpy(grid.split(images)), 3, SAMPLES).numpy()
    assert np.array_equal(found, grid.with_margin(0).split(whole)) == (margin == 2)


@many
@given(with_margin(), st.data())
def test_what_positions_show_of_an_image(grid, data):
    positions = data.draw(st.sets(st.integers(0, grid.num_patches - 1)))
    numbered = np.arange(np.prod(grid.image_size)).reshape(1, 1, *grid.image_size)
    held = grid.split(numbered)[:, sorted(positions)].flatten().tolist()
    assert np.array_equal(grid.shown(positions), np.isin(numbered[0, 0], held))


@pytest.mark.parametrize("margin", [-1, 6, 1.0])
def test_margins_out_of_range_are_refused(margin):
    with pytest.raises(GridError, match="margin: expected 0 to 5 pixels around patches of an image of 6x8"):
        PatchGrid(image_size=(6, 8), patch_size=(3, 4), stride=(3, 4), margin=margin)
