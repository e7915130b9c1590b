"""Images as they come from any source: one split's labels and images, decoding, resizing.

Shape suffixes: N images of a split, R rows asked for, H and W pixels, C channels.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from psl_flower.errors import CorruptImage, DataError
from psl_flower.patches.cutting import Source

# Pillow documents no list: its decoders raise any of these on damaged input.
_DECODER_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    TypeError,
    OverflowError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
_SIXTEEN_BIT_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N")
_GREY_MODES = ("1", "LA")


@dataclass(frozen=True, slots=True, kw_only=True)
class RawSplit:
    """One split of a dataset, before any selection.

    Attributes
    ----------
    name : str
        As the dataset calls it.
    labels_N : NDArray[np.int64]
        Index into the class names; -1 where there is no label.
    images : Callable
        Takes row numbers (R,) and yields their images, uint8 (H, W, C), one at a time; raises CorruptImage.
    """

    name: str
    labels_N: NDArray[np.int64]
    images: Callable[[NDArray[np.int64]], Iterator[NDArray[np.uint8]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class RawDataset:
    """A dataset's classes and its splits; `test` is None where the training images must be divided."""

    class_names: tuple[str, ...]
    train: RawSplit
    test: RawSplit | None


def choose_splits(dataset: str, names: Collection[str]) -> tuple[str, str | None]:
    """Return the names of the splits to train on and to test on (None: divide the training split).

    Raises
    ------
    DataError
        If there are several splits and none is called "train".
    """
    if "train" in names:
        return "train", next((name for name in ("test", "validation") if name in names), None)
    if len(names) == 1:
        return next(iter(names)), None
    raise DataError(f'{dataset}: no split is called "train"; the dataset has {", ".join(sorted(names)) or "none"}')


def decode_image(encoded: bytes, where: str) -> NDArray[np.uint8]:
    """Decode one image file to uint8 (H, W, 1) grey or (H, W, 3) RGB, turned upright by its EXIF orientation.

    Transparency is dropped, palettes and other colour spaces become RGB, 16-bit grey keeps its upper 8 bits;
    of an animation the first frame is taken.

    Parameters
    ----------
    encoded : bytes
        The file's content, in any format that Pillow reads.
    where : str
        Names the image in errors.

    Raises
    ------
    CorruptImage
        If the content is not a whole image.
    DataError
        If the pixels are floating point numbers, whose range nobody knows.
    """
    try:
        with Image.open(BytesIO(encoded)) as image:
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
            return image_to_array(image, where)
    except _DECODER_ERRORS as error:
        raise CorruptImage(
            f"{where}: cannot be decoded ({type(error).__name__}); replace the image or leave it out"
        ) from error


def convert_channels(image_HWC: NDArray[np.uint8], channels: int, where: str) -> NDArray[np.uint8]:
    """Return the image with so many channels: grey becomes RGB by repetition, RGB becomes grey by luma.

    Raises
    ------
    DataError
        If there is no such conversion.
    """
    found = image_HWC.shape[2]
    if found == channels:
        return image_HWC
    if (found, channels) == (1, 3):
        return np.repeat(image_HWC, 3, axis=2)
    if (found, channels) == (3, 1):
        return np.asarray(Image.fromarray(image_HWC).convert("L"), np.uint8)[:, :, np.newaxis]
    raise DataError(f"{where}: has {found} channels, expected {channels}")


def resize_image(image_HWC: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Return the image at (height, width): antialiased resize until it covers them, then centre crop."""
    if image_HWC.shape[:2] == size:
        return image_HWC
    channels = image_HWC.shape[2]
    image = Image.fromarray(image_HWC[:, :, 0] if channels == 1 else image_HWC)
    fitted = ImageOps.fit(image, (size[1], size[0]), method=Image.Resampling.BILINEAR)
    return np.asarray(fitted, np.uint8).reshape(*size, channels)


def image_to_array(image: Image.Image, where: str) -> NDArray[np.uint8]:
    """Return a decoded image as uint8 (H, W, 1) grey or (H, W, 3) RGB; see `decode_image`.

    Raises
    ------
    DataError
        If the pixels are floating point numbers, whose range nobody knows.
    """
    if image.mode in _SIXTEEN_BIT_MODES:
        # Pillow's own conversion to 8 bits clips at 255 instead of scaling.
        wide = np.clip(np.asarray(image).astype(np.int64), 0, 0xFFFF)
        return (wide >> 8).astype(np.uint8)[:, :, np.newaxis]
    if image.mode == "F":
        raise DataError(f"{where}: floating point pixels have no known range; convert the images to 8 bits")
    if image.mode in _GREY_MODES:
        image = image.convert("L")
    elif image.mode not in ("L", "RGB"):
        image = image.convert("RGB")
    pixels = np.array(image, np.uint8)
    return pixels[:, :, np.newaxis] if pixels.ndim == 2 else pixels


class Resized:
    """A source whose images are all brought to one size, antialiased and cropped."""

    def __init__(self, source: Source, size: tuple[int, int]) -> None:
        self._source, self._size = source, size
        self.name, self.class_names = source.name, source.class_names
        self.fingerprint = f"{source.fingerprint}@{size[0]}x{size[1]}"

    def num_samples(self, split: str) -> int:
        """See Source."""
        return self._source.num_samples(split)

    def samples(self, split: str, start: int = 0) -> Iterator[tuple[NDArray[np.uint8], int]]:
        """See Source."""
        for image_HWC, label in self._source.samples(split, start):
            yield resize_image(image_HWC, self._size), label
