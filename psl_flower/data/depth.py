"""Pixels of other depths than 8 bits: the values that a file stores, and which of them is white.

Shape suffixes: H and W pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from psl_flower.data.metadata import PNG

WHITE = 0xFF
# TIFF tags, and a value of two of them.
_BITS_PER_SAMPLE, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339
_WHITE_IS_ZERO, _TIFF_SIGNED = 0, 2
# Where a PNG says its bits for each channel.
_PNG_BITS = 24


@dataclass(frozen=True, slots=True)
class PixelKind:
    """A kind of pixels."""

    name: str  #: Name of such pixels, in errors.
    white: int = 0  #: The value that is white; 0 if nothing says it.
    note: str = ""  #: Note in the account on such images.
    negative: bool = False  #: Whether 0 is white, and the highest value black.


GREY_16 = PixelKind("16-bit pixels", 0xFFFF, "of 16-bit grey the upper 8 bits were taken: 0..65535 became 0..255")
COLOURS_16 = PixelKind("16-bit colours", WHITE, "of 16-bit colours the upper 8 bits were taken")
NUMBERS = PixelKind("numbers", WHITE)
BEYOND = PixelKind("numbers beyond 0..255")
FLOATS = PixelKind("floating point pixels")
_BITS_32 = PixelKind("32-bit pixels")
_SIGNED = PixelKind("signed pixels")


def is_deep(image: Image.Image) -> bool:
    """Check if an image has grey values of more than 8 bits, or with signs."""
    return image.mode.startswith(("I", "F")) or _is_signed(image)


def deep_values(image: Image.Image) -> tuple[NDArray[Any], PixelKind]:
    """Return an image's grey values (H, W) of more than 8 bits, or with signs, and of which kind they are."""
    values_HW, kind = _stored_values(image)
    # Pillow inverts the 8-bit images whose white is 0, and only these.
    if image.format == "TIFF" and getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        return values_HW, replace(kind, note=kind.note.replace("0..65535", "65535..0"), negative=True)
    return values_HW, kind


def _stored_values(image: Image.Image) -> tuple[NDArray[Any], PixelKind]:
    values_HW = np.asarray(image)
    if image.mode == "F":
        return values_HW, FLOATS
    if _is_signed(image):
        return values_HW.view(np.int8) if image.mode == "L" else values_HW, _SIGNED
    if image.mode.startswith("I;16") or image.format in ("PNG", "PPM"):
        return values_HW, GREY_16
    # Pillow reads 32 unsigned bits as signed ones.
    return values_HW.astype(np.int64) & 0xFFFFFFFF, _BITS_32


def _is_signed(image: Image.Image) -> bool:
    if image.format != "TIFF" or image.mode not in ("L", "I"):
        return False
    return _TIFF_SIGNED in getattr(image, "tag_v2", {}).get(_SAMPLE_FORMAT, ())


def has_deep_colour(image: Image.Image, encoded: bytes) -> bool:
    """Check if Pillow has cut colours of 16 bits to their upper 8, which it does silently."""
    if encoded.startswith(PNG):
        return image.mode.startswith(("RGB", "LA")) and encoded[_PNG_BITS] == 16
    if image.format == "TIFF" and image.mode.startswith("RGB"):
        return bool(max(getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE, (8,))) > 8)
    return False


def mend_transparency(image: Image.Image, encoded: bytes) -> None:
    """Scale the grey level that a PNG of 2 or 4 bits calls transparent as Pillow scales its pixels, to 0..255."""
    level = image.info.get("transparency")
    if encoded.startswith(PNG) and image.mode == "L" and isinstance(level, int) and encoded[_PNG_BITS] in (2, 4):
        image.info["transparency"] = level * WHITE // (2 ** encoded[_PNG_BITS] - 1)


def hidden_pixels(image: Image.Image, values_HW: NDArray[Any]) -> NDArray[np.bool_] | None:
    """Return a mask (H, W) of pixels with the grey value that the file declares transparent, or None."""
    level = image.info.get("transparency")
    hidden_HW = values_HW == level if isinstance(level, int) else np.zeros(0, np.bool_)
    return hidden_HW if hidden_HW.any() else None


def remedy(kind: PixelKind, brightest: int) -> str:
    """Return advice on images whose brightest pixel is this one of 255."""
    if kind is COLOURS_16:
        return "convert these images to 8 bits"
    levels = (brightest + 1) * (kind.white + 1) // (WHITE + 1)
    return (
        "set pixel-range=dataset, or the values that become black and white, such as "
        f"pixel-range=0..{2 ** math.ceil(math.log2(levels)) - 1}; if the images are right as they are, "
        f"pixel-range=0..{kind.white}"
    )


def likely_range(low: float, high: float) -> str:
    """Return the range of whole powers of two that values may have been meant to fill, 8 bits of it at least."""
    if low < 0:
        half = 2 ** math.ceil(math.log2(max(-low, high + 1, 1)))
        return f"-{half}..{half - 1}"
    if 0 < high <= 1:
        return "0..1"
    return f"0..{2 ** max(8, math.ceil(math.log2(max(2.0, high + 1)))) - 1}"
