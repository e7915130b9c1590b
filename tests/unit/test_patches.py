"""PatchGrid: counts, cuts and joins computed by hand; every grid that does not fit is refused with what would."""

import numpy as np
import pytest
import torch

from psl_flower.errors import GridError
from psl_flower.patches import PatchGrid


def grid(image, patch, stride=None, fit="exact"):
    return PatchGrid(image_size=image, patch_size=patch, stride=stride or patch, fit=fit)


SIMPLE = grid((4, 6), (2, 3))
OVERLAP = grid((4, 4), (2, 2), (1, 1))

# image, patch, stride -> rows, columns; the first four are the usual ones.
COUNTS = [
    ((32, 32), (16, 16), (16, 16), (2, 2)),
    ((32, 32), (8, 8), (8, 8), (4, 4)),
    ((32, 32), (16, 16), (8, 8), (3, 3)),
    ((32, 32), (8, 8), (4, 4), (7, 7)),
    ((48, 32), (16, 8), (16, 4), (3, 7)),
    ((5, 7), (5, 7), (5, 7), (1, 1)),
    ((1, 1), (1, 1), (1, 1), (1, 1)),
]


def test_sizes_by_position_are_those_by_name():
    assert PatchGrid((4, 6), (2, 3), (2, 3)) == SIMPLE


def test_lists_are_not_empty():
    assert COUNTS
    assert REFUSED
    assert PADDED


@pytest.mark.parametrize(("image", "patch", "stride", "expected"), COUNTS)
def test_counts(image, patch, stride, expected):
    made = grid(image, patch, stride)
    assert (made.rows, made.cols) == expected
    assert made.num_patches == expected[0] * expected[1]
    assert made.padded_size == image


def test_split_is_row_major():
    image = np.arange(24).reshape(1, 1, 4, 6)
    patches = SIMPLE.split(image)
    assert patches.shape == (1, 4, 1, 2, 3)
    assert patches[0, 1, 0].tolist() == [[3, 4, 5], [9, 10, 11]]
    assert patches[0, 2, 0].tolist() == [[12, 13, 14], [18, 19, 20]]


def test_overlapping_patches_share_pixels():
    patches = OVERLAP.split(torch.arange(16).reshape(1, 1, 4, 4))
    assert patches.shape == (1, 9, 1, 2, 2)
    assert patches[0, 4, 0].tolist() == [[5, 6], [9, 10]]
    assert patches[0, 8, 0].tolist() == [[10, 11], [14, 15]]


# image, patch, stride -> padded size and the index of the source row that each padded row repeats.
PADDED = [
    ((5, 1), (2, 1), (2, 1), (6, 1), [0, 1, 2, 3, 4, 4]),
    ((5, 1), (4, 1), (4, 1), (8, 1), [0, 0, 1, 2, 3, 4, 4, 4]),
    ((5, 1), (3, 1), (1, 1), (5, 1), [0, 1, 2, 3, 4]),
]


@pytest.mark.parametrize(("image", "patch", "stride", "size", "rows"), PADDED)
@pytest.mark.parametrize("library", [np.asarray, torch.tensor], ids=["numpy", "torch"])
def test_padding_repeats_the_border(image, patch, stride, size, rows, library):
    made = grid(image, patch, stride, "pad")
    assert made.padded_size == size
    patches = made.split(library([[[[10 * r] for r in range(5)]]]))
    starts = range(0, size[0] - patch[0] + 1, stride[0])
    assert patches[0, :, 0, :, 0].tolist() == [[10 * rows[s + i] for i in range(patch[0])] for s in starts]
    assert made.merge(patches)[0, 0, :, 0].tolist() == [0, 10, 20, 30, 40]


def test_merge_gives_overlaps_to_the_higher_number():
    patches = torch.arange(9.0).reshape(1, 9, 1, 1, 1).expand(1, 9, 1, 2, 2)
    assert OVERLAP.merge(patches)[0, 0].tolist() == [[0, 1, 2, 2], [3, 4, 5, 5], [6, 7, 8, 8], [6, 7, 8, 8]]


def test_tile_keeps_whole_maps_and_mirrors_the_grid_of_flipped_samples():
    # One channel, maps of 1x2: position p holds [10p, 10p + 1].
    features = (
        torch.tensor([[10 * p, 10 * p + 1] for p in range(4)]).float().reshape(1, 4, 1, 1, 2).repeat(2, 1, 1, 1, 1)
    )
    made = grid((2, 2), (1, 1))
    tiled = made.tile(features, torch.tensor([False, True]))
    assert tiled[0, 0].tolist() == [[0, 1, 10, 11], [20, 21, 30, 31]]
    # The maps themselves are mirrored by the Upper: the grid only changes their places.
    assert tiled[1, 0].tolist() == [[10, 11, 0, 1], [30, 31, 20, 21]]
    assert torch.equal(made.tile(features), made.tile(features, torch.tensor([False, False])))
    assert tiled.is_contiguous(memory_format=torch.channels_last)


def test_tile_passes_gradients_back():
    features = torch.ones(2, 4, 3, 2, 2, requires_grad=True)
    weight = torch.arange(2 * 3 * 4 * 4.0).reshape(2, 3, 4, 4)
    made = grid((4, 4), (2, 2))
    (made.tile(features, torch.tensor([False, True])) * weight).sum().backward()
    assert features.grad[0, 3, 0].tolist() == [[10, 11], [14, 15]]
    assert features.grad[1, 2, 0].tolist() == [[48 + 10, 48 + 11], [48 + 14, 48 + 15]]


def test_the_grid_keeps_plain_integers():
    made = PatchGrid(image_size=[np.int64(4), 4], patch_size=np.array([2, 2]), stride=torch.Size([2, 2]))
    assert made == grid((4, 4), (2, 2))
    assert all(type(n) is int for n in (*made.image_size, *made.patch_size, *made.stride))


# Arguments -> what the message must say.
REFUSED = [
    (((4, 4), (0, 2), (2, 2)), "patch_size: both sizes must be 1 or more, got 0x2"),
    (((-4, 4), (2, 2), (2, 2)), "image_size: both sizes must be 1 or more, got -4x4"),
    (((4, 4), (2, 2), (2, 0)), "stride: both sizes must be 1 or more, got 2x0"),
    (((4, 4), (8, 2), (2, 2)), "a patch of 8x2 is larger than the image of 4x4"),
    (((4, 4), (2, 2), (3, 2)), "a stride of 3x2 is larger than the patch of 2x2: pixels between patches would be lost"),
    (((4, 4), (2.0, 2), (2, 2)), "expected two whole numbers"),
    (((4, 4), (True, 2), (2, 2)), "expected two whole numbers"),
    ((4, (2, 2), (2, 2)), r"image_size: expected two whole numbers \(height, width\), got 4"),
    (((4, 4, 3), (2, 2), (2, 2)), "expected two whole numbers"),
    (((4, 4), (2, 2), (2, 2), "crop"), 'fit: expected "exact" or "pad", got \'crop\''),
    (
        ((32, 32), (12, 12), (12, 12)),
        "nearest that do: patch 12x12 with stride 10x10; patch and stride 16x16; images of 36x36",
    ),
    (((32, 30), (16, 16), (16, 16)), r'pad the image \(fit="pad"\)'),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSED)
def test_what_does_not_fit_is_refused(arguments, message):
    with pytest.raises(GridError, match=message):
        grid(*arguments)


def test_the_alternatives_offered_do_fit():
    for image, patch, stride in [
        ((32, 32), (12, 12), (12, 12)),
        ((30, 20), (16, 16), (8, 8)),
        ((7, 11), (3, 4), (2, 3)),
    ]:
        with pytest.raises(GridError) as caught:
            grid(image, patch, stride)
        _, _, strides, patches, images, _ = str(caught.value).replace(":", ";").split(";")
        size = lambda text: tuple(int(n) for n in text.split()[-1].split("x"))  # noqa: E731
        assert grid(image, patch, size(strides)).padded_size == image
        assert grid(image, size(patches)).padded_size == image
        assert grid(size(images), patch, stride).padded_size == size(images)


def test_wrong_shapes_are_refused():
    with pytest.raises(GridError, match=r"expected images \(B, C, 4, 6\), got \(1, 1, 6, 4\)"):
        SIMPLE.split(torch.zeros(1, 1, 6, 4))
    with pytest.raises(GridError, match="expected images"):
        SIMPLE.split(np.zeros((1, 4, 6)))
    with pytest.raises(GridError, match=r"expected patches \(B, 4, C, 2, 3\), got \(1, 3, 1, 2, 3\)"):
        SIMPLE.merge(torch.zeros(1, 3, 1, 2, 3))
    with pytest.raises(GridError, match=r"expected features \(B, 4, C, h, w\), got \(1, 5, 1, 2, 3\)"):
        SIMPLE.tile(torch.zeros(1, 5, 1, 2, 3))
