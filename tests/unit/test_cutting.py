"""Cutting a source chunk by chunk: order, resumption, room, exact pixel sums, and images that do not fit."""

from __future__ import annotations

import numpy as np
import pytest

from psl_flower.errors import DataError
from psl_flower.patches import PatchGrid
from psl_flower.patches.assignment import positions_by_upper
from psl_flower.patches.cutting import PixelSums, cut, first_image, half_of
from tests.vectors.sealed_support import ArraySource

GRID = PatchGrid(image_size=(4, 4), patch_size=(2, 2), stride=(1, 1))


def test_all_samples_in_order_with_their_labels() -> None:
    source = ArraySource(train=5, test=2)
    chunks = list(cut(source, GRID, 1))
    assert [chunk.split for chunk in chunks] == ["train", "test"]
    patches = np.concatenate([chunk.patches_BPChw for chunk in chunks])
    np.testing.assert_array_equal(GRID.merge(patches), source.all_NCHW)
    assert np.concatenate([chunk.labels_B for chunk in chunks]).tolist() == source.all_labels


@pytest.mark.parametrize("start", range(8))
def test_it_goes_on_from_any_sample_within_the_room(start: int) -> None:
    source, calls = ArraySource(train=5, test=2), []
    room = iter([2, 1] * 7)
    chunks = list(cut(source, GRID, 1, start=start, room=lambda: next(room), progress=lambda *call: calls.append(call)))
    images = np.concatenate([source.all_NCHW[:0], *(GRID.merge(chunk.patches_BPChw) for chunk in chunks)])
    np.testing.assert_array_equal(images, source.all_NCHW[start:])
    assert max((len(chunk.labels_B) for chunk in chunks), default=0) <= 2
    assert [call[0] for call in calls] == [chunk.split for chunk in chunks]
    assert start == 7 or calls[-1] == ("test", 2, 2)


def test_pixel_sums_are_exact_and_of_the_training_images_alone() -> None:
    source = ArraySource(train=7, test=3, shape=(4, 4, 3))
    sums = sum((chunk.pixels for chunk in cut(source, GRID, 3, room=lambda: 2)), PixelSums.zero(3))
    pixels = source.images["train"].astype(object).reshape(-1, 3)
    assert sums.count == len(pixels) == 112
    assert sums.sums == tuple(pixels.sum(0)) and sums.squares == tuple((pixels**2).sum(0))
    units = source.images["train"].astype(np.float64) / 255
    np.testing.assert_allclose(sums.mean, units.mean((0, 1, 2)), rtol=1e-14)
    np.testing.assert_allclose(sums.std, units.std((0, 1, 2)), rtol=1e-12)


def test_of_no_pixels_the_mean_is_0() -> None:
    assert PixelSums.zero(2).mean == PixelSums.zero(2).std == (0.0, 0.0)


@pytest.mark.parametrize(
    ("sums", "sound"),
    [
        (PixelSums(count=2, sums=(3,), squares=(5,)), True),
        (PixelSums(count=2, sums=(3,), squares=(4,)), False),  # the standard deviation would be imaginary
        (PixelSums(count=2, sums=(3, 3), squares=(5, 5)), False),
        (PixelSums(count=2, sums=(3,), squares=(5, 5)), False),
    ],
)
def test_sums_that_cannot_be(sums: PixelSums, sound: bool) -> None:
    assert sums.is_sound(1) is sound


@pytest.mark.parametrize("shape", [(4, 5, 1), (5, 4, 1), (4, 4, 3)])
def test_an_image_that_is_not_as_the_first_is_named(shape: tuple[int, int, int]) -> None:
    source = ArraySource(train=2, test=2)
    source.images["test"] = np.zeros((2, *shape), np.uint8)
    with pytest.raises(
        DataError, match=rf"image test:0 is {'x'.join(map(str, shape))} .* 4x4x1 like image train:0; set image-size"
    ):
        list(cut(source, GRID, 1))


def test_the_first_image_and_half_of_it() -> None:
    assert first_image(ArraySource(shape=(5, 4, 1))).shape == (5, 4, 1)
    assert half_of((5, 4)) == (3, 2)
    with pytest.raises(DataError, match="no training image"):
        first_image(ArraySource(train=0))


def test_positions_by_upper() -> None:
    assert positions_by_upper((0, 1, 1, 0, 2)) == ((0, 3), (1, 2), (4,))
