"""Images as they are stored: every mode, broken files, and the size they are brought to."""

import numpy as np
import pytest
from PIL import Image

from psl_flower.data.images import resize_image
from psl_flower.data.pixels import Decoder
from psl_flower.errors import CorruptImage, DataError
from tests.unit.tiny_pictures import colour, encode

NOISE = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)


@pytest.mark.parametrize(
    ("encoded", "expected"),
    [
        (encode(np.full((2, 3), 9, np.uint8)), [9]),
        (encode(np.full((2, 3), 255, np.uint8), "1"), [255]),
        (encode(np.full((2, 3), 9, np.uint8), "LA"), [9]),
        (encode(np.full((2, 3), 0x1234, np.uint16)), [0x12]),
        (encode(np.full((2, 3), 0x1234, np.uint16), kind="TIFF"), [0x12]),
        (encode(np.full((2, 3, 3), (1, 2, 3), np.uint8)), [1, 2, 3]),
        (encode(np.full((2, 3, 4), (1, 2, 3, 255), np.uint8)), [1, 2, 3]),
        (encode(np.full((2, 3, 3), (1, 2, 3), np.uint8), "P"), None),
        (encode(np.full((2, 3, 3), (255, 0, 255), np.uint8), "CMYK", "TIFF"), [255, 0, 255]),
    ],
    ids=["L", "1", "LA", "16 bit", "16 bit tiff", "RGB", "RGBA", "P", "CMYK"],
)
def test_modes(encoded, expected):
    image = Decoder().file(encoded, "here")
    assert image.dtype == np.uint8 and image.shape == (2, 3, len(expected or [1, 2, 3]))
    if expected:
        np.testing.assert_array_equal(image, np.full_like(image, expected))


def test_exif_orientation_is_applied():
    pixels = np.zeros((2, 3), np.uint8)
    pixels[0] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Decoder().file(encode(pixels, exif=exif), "here")
    np.testing.assert_array_equal(image[:, :, 0], np.rot90(pixels, -1))


@pytest.mark.parametrize(
    "encoded",
    [b"", b"nonsense", encode(NOISE)[:-40], encode(colour(1), kind="JPEG")[:200], encode(colour(1))[:20]],
    ids=["empty", "no image", "cut png", "cut jpeg", "header only"],
)
def test_broken_images(encoded):
    with pytest.raises(CorruptImage, match="image 3 of split 'test': cannot be decoded"):
        Decoder().file(encoded, "image 3 of split 'test'")


def test_floating_point_pixels_are_refused():
    with pytest.raises(DataError, match="floating point"):
        Decoder().file(encode(np.zeros((2, 2), np.float32), kind="TIFF"), "here")


@pytest.mark.parametrize("channels", [1, 3])
def test_resize_covers_and_crops_the_centre(channels):
    image = np.zeros((8, 16, channels), np.uint8)
    image[:, 4:12] = 200
    resized = resize_image(image, (4, 4))
    assert resized.shape == (4, 4, channels)
    np.testing.assert_array_equal(resized[:, 1:3], 200)
    assert resize_image(image, (8, 16)) is image
    assert resize_image(image, (3, 31)).shape == (3, 31, channels)
