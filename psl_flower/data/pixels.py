"""Converts image files and arrays of pixels to 8-bit grey or RGB, and notes what had to be changed.

Shape suffixes: H and W pixels, C channels.
"""

from __future__ import annotations

import math
import struct
import warnings
import zlib
from collections.abc import Callable
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from psl_flower.config.data import BY_DATASET, parse_background, parse_pixel_range
from psl_flower.data.account import Notes
from psl_flower.data.depth import (
    BEYOND,
    COLOURS_16,
    FLOATS,
    NUMBERS,
    WHITE,
    PixelKind,
    deep_values,
    has_deep_colour,
    hidden_pixels,
    is_deep,
    likely_range,
    mend_transparency,
    remedy,
)
from psl_flower.data.files import decodable
from psl_flower.data.heif import can_read_heif, is_heif
from psl_flower.data.metadata import without_metadata
from psl_flower.errors import CorruptImage, DataError
from psl_flower.text import counted

# Pillow documents no list: its decoders raise any of these on damaged input.
_DECODER_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    ZeroDivisionError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
# EXIF orientation -> (whether axes change places, quarter turns to the left after that, whether the rows are mirrored).
_UPRIGHT = {
    2: (False, 0, True), 3: (False, 2, False), 4: (False, 2, True), 5: (True, 0, False),
    6: (False, 3, False), 7: (True, 2, False), 8: (False, 1, False),
}  # fmt: skip
# Images that do not reach a quarter of white are nearly black: fewer bits were stored than the format has, perhaps.
_DARK = 0x40
_DARK_NOTE = "no pixel is above a quarter of what the format can hold, so it may hold fewer bits"
_MORE_FRAMES = "several pages or frames are in the file, of which the first was taken"
_BROKEN_METADATA = "broken metadata were ignored, an orientation in them too"

Pixels = NDArray[np.uint8]


class Decoder:
    """Decodes the images of one dataset, all by the same rules.

    Parameters
    ----------
    pixel_range, background : str
        The settings of these names.
    survey : callable, optional
        Given a `Survey`, decodes images of the dataset with it: all of them for a `pixel_range` of "dataset", else
        some. Called once, where pixels deeper than 8 bits are met and it matters.

    Attributes
    ----------
    notes : Notes
        Changes made to images that users should know of.
    pixel_range : tuple[float, float], optional
        The values that become 0 and 255, if it is not the format that says so; None before they are known.
    background : str
        As given.
    content : int
        A hash of the last file decoded, for this process only; 0 before, and for anything but a file.
    """

    def __init__(
        self, pixel_range: str = "", background: str = "white", survey: Callable[[Survey], None] | None = None
    ) -> None:
        self.notes = Notes()
        self.pixel_range = parse_pixel_range(pixel_range)
        self._by_dataset = pixel_range == BY_DATASET
        self.background, self._colour = background, parse_background(background)
        self._survey = survey
        self._found: Survey | None = None
        self.content = 0
        self._format: str | None = None

    def file(self, encoded: bytes, where: str) -> Pixels:
        """Decode one image file to uint8 (H, W, 1) grey or (H, W, 3) RGB, turned upright by its EXIF orientation.

        Palettes and other colour spaces become RGB; transparent images are put on the background; of an animation the
        first frame is taken. `where` names the image in errors and notes.

        Raises
        ------
        CorruptImage
            If the content is not a whole image.
        DataError
            If it is unknown which of its pixel values are black and white.
        """
        self.content = hash(encoded)
        try:
            try:
                return self._decode(encoded, where)
            except _DECODER_ERRORS:
                bare = without_metadata(encoded)
                if bare is None:
                    raise
                pixels_HWC = self._decode(bare, where)
                self.notes.add(_BROKEN_METADATA, where)
                return pixels_HWC
        except _DECODER_ERRORS as error:
            if is_heif(encoded) and not can_read_heif():
                raise CorruptImage(
                    f"{where}: is a HEIC image; to read it, install the extra: pip install 'psl-flower[heif]'"
                ) from error
            raise CorruptImage(f"{where}: {_what_is_wrong(encoded, error)}") from error

    def image(self, image: Image.Image, where: str) -> Pixels:
        """Return an image of Pillow's as uint8 (H, W, 1) grey or (H, W, 3) RGB; see `file`, also for DataError."""
        return self._pixels(image, where, deep_colour=False)

    def array(self, values: NDArray[Any], where: str) -> Pixels:
        """Return an array of pixels, (H, W), (H, W, C) or (C, H, W) with 1 or 3 channels, as uint8 (H, W, C).

        Whole numbers are taken as they are, 255 being white, unless there is a pixel range.

        Raises
        ------
        CorruptImage
            If it has no such shape, or does not hold numbers.
        DataError
            See `file`.
        """
        if values.dtype.kind not in "biuf":
            raise CorruptImage(f"{where}: expected numbers, found {values.dtype}")
        values_HWC = channels_last(values, where)
        if values.dtype.kind == "f":
            return self._finish(values_HWC, FLOATS, where)
        beyond = values_HWC.min() < 0 or values_HWC.max() > WHITE
        return self._finish(values_HWC, BEYOND if beyond else NUMBERS, where)

    def _decode(self, encoded: bytes, where: str) -> Pixels:
        if is_heif(encoded):
            can_read_heif()
        with warnings.catch_warnings():
            # Faults of metadata are reported as notes; a large image is no fault. All of them: two filters cost a
            # small image 2 % more.
            warnings.simplefilter("ignore")
            with self._open(encoded) as image:
                image.load()
                if "transparency" in image.info:
                    mend_transparency(image, encoded)
                pixels_HWC = self._pixels(image, where, deep_colour=has_deep_colour(image, encoded))
                turn = _UPRIGHT.get(self._orientation(image, where))
                if _follows_more(image):
                    self.notes.add(_MORE_FRAMES, where)
        if turn is None:
            return pixels_HWC
        transposed, quarters, mirrored = turn
        pixels_HWC = np.rot90(pixels_HWC.transpose(1, 0, 2) if transposed else pixels_HWC, quarters)
        return np.ascontiguousarray(pixels_HWC[:, ::-1] if mirrored else pixels_HWC)

    def _open(self, encoded: bytes) -> Image.Image:
        """Open an image, trying the format of the last one first: Pillow tries some forty, one after the other."""
        if self._format is not None:
            try:
                return Image.open(BytesIO(encoded), formats=(self._format,))
            except UnidentifiedImageError:
                self._format = None
        image = Image.open(BytesIO(encoded), formats=decodable())
        kind = image.format
        # A format without a test of the first bytes might be made of any file.
        self._format = kind if kind in Image.OPEN and Image.OPEN[kind][1] is not None else None
        return image

    def _orientation(self, image: Image.Image, where: str) -> int:
        try:
            orientation = image.getexif().get(ExifTags.Base.Orientation)
        except Exception:
            # It parses all of the metadata; Pillow documents no list of what that may raise.
            self.notes.add(_BROKEN_METADATA, where)
            return 1
        return orientation if isinstance(orientation, int) else 1

    def _pixels(self, image: Image.Image, where: str, *, deep_colour: bool) -> Pixels:
        if is_deep(image):
            return self._deep(image, where)
        if deep_colour and "transparency" in image.info:
            raise DataError(f"{where}: calls one of its 16-bit colours transparent; convert it to 8 bits")
        if image.has_transparency_data:
            image = self._composed(image, where)
        if image.mode in ("1", "LA"):
            image = image.convert("L")
        elif image.mode not in ("L", "RGB"):
            image = image.convert("RGB")
        # As numpy.array(image) does, at half the cost for a small image.
        pixels_HWC = np.frombuffer(image.tobytes(), np.uint8).reshape(image.height, image.width, -1).copy()
        return self._finish(pixels_HWC, COLOURS_16, where) if deep_colour else pixels_HWC

    def _deep(self, image: Image.Image, where: str) -> Pixels:
        """Return grey values of more than 8 bits, or with signs, as 8 bits; transparent ones become the background."""
        values_HW, kind = deep_values(image)
        hidden_HW = hidden_pixels(image, values_HW)
        if hidden_HW is None:
            return self._finish(values_HW[:, :, np.newaxis], kind, where)
        # Hidden values say nothing of how bright an image is.
        seen_HW = np.where(hidden_HW, 0 if hidden_HW.all() else values_HW[~hidden_HW].min(), values_HW)
        pixels_HWC = self._finish(seen_HW[:, :, np.newaxis], kind, where)
        pixels_HWC[hidden_HW] = np.asarray(Image.new("RGB", (1, 1), self._colour).convert("L"))[0, 0]
        self.notes.add(f"transparent pixels were put on {self.background}", where)
        return pixels_HWC

    def _composed(self, image: Image.Image, where: str) -> Image.Image:
        """Return an image without its transparency, grey if it was."""
        grey = image.mode in ("1", "L", "LA", "La")
        visible = image.convert("RGBA")
        if visible.getchannel("A").getextrema() != (WHITE, WHITE):
            self.notes.add(f"transparent pixels were put on {self.background}", where)
            ground = Image.new("RGBA", image.size, (*self._colour, WHITE))
            ground.alpha_composite(visible)
            visible = ground
        return visible.convert("RGB").convert("L") if grey else visible.convert("RGB")

    def _finish(self, values_HWC: NDArray[Any], kind: PixelKind, where: str) -> Pixels:
        """Return values that are not simply those of an 8-bit image as 8 bits."""
        ranged = self.pixel_range is not None or self._by_dataset
        if kind is COLOURS_16 and ranged:
            raise DataError(f"{where}: pixel-range cannot map colours of 16 bits; convert these images to 8 bits")
        if ranged or not kind.white:
            return self._mapped(values_HWC, kind, where)
        pixels_HWC = (values_HWC.astype(np.int64) * (WHITE + 1) // (kind.white + 1)).astype(np.uint8)
        self._look_for_white(int(pixels_HWC.max()), kind, where)
        if kind.note:
            self.notes.add(kind.note, where)
        return WHITE - pixels_HWC if kind.negative else pixels_HWC

    def _mapped(self, values_HWC: NDArray[Any], kind: PixelKind, where: str) -> Pixels:
        """Return values mapped by the pixel range."""
        low, high = float(values_HWC.min()), float(values_HWC.max())
        if not math.isfinite(low) or not math.isfinite(high):
            raise DataError(f"{where}: has pixels that are no numbers; replace the image or leave it out")
        if self.pixel_range is None and self._survey is not None and self._by_dataset:
            self.pixel_range = self._looked_through(self._survey).range(where)
        if self.pixel_range is None:
            raise DataError(
                f"{where}: {kind.name} have no known range: nothing says which values are black and white; set "
                f"pixel-range=dataset, or state them, such as pixel-range={likely_range(low, high)}"
            )
        black, white = self.pixel_range
        first, last = (white, black) if kind.negative else (black, white)
        self.notes.add(f"pixel values {first:g}..{last:g} became 0..255", where)
        if low < black or high > white:
            self.notes.add("pixels outside pixel-range became black or white", where)
        scaled_HWC = np.clip((values_HWC.astype(np.float64) - black) / (white - black), 0, 1)
        pixels_HWC = np.rint(scaled_HWC * WHITE).astype(np.uint8)
        return WHITE - pixels_HWC if kind.negative else pixels_HWC

    def _look_for_white(self, brightest: int, kind: PixelKind, where: str) -> None:
        """Refuse images that are nearly black, as most of their dataset: fewer bits were stored than the format has."""
        if brightest >= _DARK or self._survey is None:
            return
        found = self._found = self._found or self._looked_through(self._survey)
        if 2 * len(found.dark) > found.count:
            raise DataError(
                f"{where}: is nearly {'white' if kind.negative else 'black'} ({len(found.dark)} of "
                f"{counted(found.count, 'image')} looked at): no pixel is above {max(found.dark)} of 255 when "
                f"mapped to 8 bits, so fewer bits were stored than the format has; {remedy(kind, max(found.dark))}"
            )
        self.notes.add(_DARK_NOTE, where)

    @staticmethod
    def _looked_through(survey: Callable[[Survey], None]) -> Survey:
        found = Survey()
        survey(found)
        return found


class Survey(Decoder):
    """Looks through images of a dataset for the darkest and brightest of those pixels that have to be mapped.

    Attributes
    ----------
    count : int
        Images that have such pixels.
    dark : list[int]
        The brightest pixel as 8 bits, 0..255, of each image that is nearly black if white is what the format says.
    """

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self.dark: list[int] = []
        self._low, self._high = 0.0, -math.inf

    def range(self, where: str) -> tuple[float, float]:
        """Return the values that become black and white: 0, or the lowest where that is less, and the highest.

        Raises
        ------
        DataError
            If all pixels are equal.
        """
        if not self._low < self._high:
            raise DataError(f"{where}: pixel-range=dataset: no pixel of the dataset is above {self._high:g}")
        return self._low, self._high

    def _finish(self, values_HWC: NDArray[Any], kind: PixelKind, where: str) -> Pixels:
        self.count += 1
        low, high = float(values_HWC.min()), float(values_HWC.max())
        # A pixel that is no number is for the decoding to refuse.
        self._low, self._high = min(self._low, low), max(self._high, high)
        brightest = int(high) * (WHITE + 1) // (kind.white + 1) if kind.white else WHITE
        if brightest < _DARK:
            self.dark.append(brightest)
        return np.zeros(values_HWC.shape, np.uint8)


class NamingDecoder(Decoder):
    """Decodes nothing, and keeps the name of the last image."""

    where = ""  #: The name in errors and notes; empty before the first image.

    def file(self, encoded: bytes, where: str) -> Pixels:
        """Keep the name."""
        self.where = where
        return np.zeros((1, 1, 1), np.uint8)


class SizeDecoder(Decoder):
    """Reads the size of image files from their headers: its images have the height and width, and no pixels."""

    def _decode(self, encoded: bytes, where: str) -> Pixels:
        # Opened as by `Decoder`; not in one function, since a context manager costs the decoding of a small image 5 %.
        if is_heif(encoded):
            can_read_heif()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with self._open(encoded) as image:
                width, height = image.size
                turn = _UPRIGHT.get(self._orientation(image, where))
        if turn is not None and turn[0] != bool(turn[1] % 2):
            height, width = width, height
        return np.broadcast_to(np.uint8(0), (height, width, 1))

    def _finish(self, values_HWC: NDArray[Any], kind: PixelKind, where: str) -> Pixels:
        return np.zeros(values_HWC.shape, np.uint8)


def _what_is_wrong(encoded: bytes, error: Exception) -> str:
    if not encoded:
        return "is empty; replace the image or leave it out"
    if isinstance(error, Image.DecompressionBombError):
        return f"has more than {2 * (Image.MAX_IMAGE_PIXELS or 0) // 10**6} million pixels; reduce it, or leave it out"
    return f"cannot be decoded ({type(error).__name__}); replace the image or leave it out"


def _follows_more(image: Image.Image) -> bool:
    """Check if a file holds more pages or frames than the one taken; the layers of a PSD are composed in that."""
    try:
        return bool(getattr(image, "is_animated", False)) and image.format != "PSD"
    except _DECODER_ERRORS:
        return True  # what follows is damaged


def channels_last(values: NDArray[Any], where: str) -> NDArray[Any]:
    """Return (H, W, C) of (H, W), (H, W, C) or (C, H, W); raises CorruptImage if it fits none or two of these."""
    shape = values.shape
    if len(shape) == 2 and values.size:
        return values[:, :, np.newaxis]
    last, first = (len(shape) == 3 and values.size and shape[axis] in (1, 3) for axis in (2, 0))
    if last == first:
        reason = "in either order of its axes" if last else "of 1 or 3 channels"
        raise CorruptImage(f"{where}: an array of shape {shape} is no image {reason}; expected (H, W) or (H, W, C)")
    return values if last else values.transpose(1, 2, 0)
