"""Patch grids of any size: covered or refused, cut and put together again, joined as the slow way joins."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from psl_flower.errors import GridError
from psl_flower.patches import PatchGrid

# The machine may be busy: no deadline for an example.
many = settings(deadline=None, max_examples=60)

sizes = st.tuples(st.integers(1, 12), st.integers(1, 12))
FLOATS = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
DTYPES = [np.uint8, np.int64, np.float32, np.float64, np.bool_]


@st.composite
def grids(draw, fit=None):
    """Draw a grid that fits, or is padded to fit."""
    fit = fit or draw(st.sampled_from(["exact", "pad"]))
    image, patch, stride = [], [], []
    for _ in range(2):
        p = draw(st.integers(1, 5))
        s = draw(st.integers(1, p))
        exact = p + s * draw(st.integers(0, 3))
        patch.append(p)
        stride.append(s)
        image.append(exact if fit == "exact" else max(p, exact - draw(st.integers(0, s))))
    return PatchGrid(image_size=tuple(image), patch_size=tuple(patch), stride=tuple(stride), fit=fit)


@many
@given(sizes, sizes, sizes, st.sampled_from(["exact", "pad"]))
def test_every_pixel_is_covered_or_the_grid_is_refused(image, patch, stride, fit):
    possible = all(s <= p <= i for i, p, s in zip(image, patch, stride, strict=True))
    exact = all((i - p) % s == 0 for i, p, s in zip(image, patch, stride, strict=True))
    if not possible or (fit == "exact" and not exact):
        with pytest.raises(GridError):
            PatchGrid(image_size=image, patch_size=patch, stride=stride, fit=fit)
        return
    grid = PatchGrid(image_size=image, patch_size=patch, stride=stride, fit=fit)
    pixels = np.arange(image[0] * image[1]).reshape(1, 1, *image)
    patches = grid.split(pixels)
    assert patches.shape == (1, grid.num_patches, 1, *patch)
    assert set(patches.flatten().tolist()) == set(pixels.flatten().tolist())
    # Not a row or column of patches more than needed.
    assert all(padded - i < s for padded, i, s in zip(grid.padded_size, image, stride, strict=True))


@many
@given(grids(), st.integers(0, 3), st.integers(1, 5), st.sampled_from(DTYPES), st.booleans(), st.integers(0, 2**32 - 1))
def test_merge_undoes_split(grid, batch, channels, dtype, use_torch, seed):
    shape = (batch, channels, *grid.image_size)
    images = np.random.default_rng(seed).integers(0, 200, shape).astype(dtype)
    given_images = torch.from_numpy(images) if use_torch else images
    patches = grid.split(given_images)
    assert type(patches) is type(given_images)
    assert tuple(patches.shape) == (batch, grid.num_patches, channels, *grid.patch_size)
    merged = grid.merge(patches)
    assert merged.dtype == given_images.dtype
    assert np.array_equal(np.asarray(merged), images)


@many
@given(grids(), st.integers(0, 2**32 - 1))
def test_torch_and_numpy_cut_alike(grid, seed):
    images = np.random.default_rng(seed).integers(0, 256, (2, 3, *grid.image_size), np.uint8)
    assert np.array_equal(grid.split(torch.from_numpy(images)).numpy(), grid.split(images))


def slow_tile(grid, features, flipped):
    B, _, C, h, w = features.shape
    joined = torch.empty(B, C, grid.rows * h, grid.cols * w, dtype=features.dtype)
    for b in range(B):
        for r in range(grid.rows):
            for c in range(grid.cols):
                column = grid.cols - 1 - c if flipped is not None and flipped[b] else c
                joined[b, :, r * h : (r + 1) * h, column * w : (column + 1) * w] = features[b, r * grid.cols + c]
    return joined


@many
@given(
    grids(),
    st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 3), st.integers(1, 3)),
    st.sampled_from(FLOATS),
    st.booleans(),
    st.integers(0, 2**31),
)
def test_tile_joins_as_the_slow_way_does(grid, shape, dtype, flips, seed):
    batch, channels, h, w = shape
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(batch, grid.num_patches, channels, h, w, generator=generator).to(dtype)
    flipped = torch.rand(batch, generator=generator) < 0.5 if flips else None
    assert torch.equal(grid.tile(features, flipped), slow_tile(grid, features, flipped))


@many
@given(grids("exact"), st.integers(0, 2**32 - 1))
def test_mirroring_patches_and_grid_mirrors_the_image(grid, seed):
    """Also where patches overlap: the grid of a mirrored image is the mirrored grid."""
    images = torch.from_numpy(np.random.default_rng(seed).random((3, 2, *grid.image_size), np.float32))
    flipped = torch.tensor([True, False, True])
    mirrored = torch.where(flipped[:, None, None, None], images.flip(3), images)
    own = torch.where(flipped[:, None, None, None, None], grid.split(images).flip(4), grid.split(images))
    assert torch.equal(grid.tile(own, flipped), grid.tile(grid.split(mirrored)))
