"""From an image file, or an array of pixels, to 8-bit grey or RGB, saying what could not be taken as it is.

Shape suffixes: H and W pixels, C channels.
"""

from __future__ import annotations

import math
import struct
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from psl_flower.config.data import BY_DATASET, parse_background, parse_pixel_range
from psl_flower.data.account import Notes
from psl_flower.data.files import decodable
from psl_flower.data.heif import can_read_heif, is_heif
from psl_flower.data.metadata import PNG, without_metadata
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
# TIFF tags, and a value of the second.
_BITS_PER_SAMPLE, _SAMPLE_FORMAT, _TIFF_SIGNED = 258, 339, 2
_WHITE = 0xFF
# Images none of which reaches a quarter of white would be nearly black: fewer bits were stored than the format has.
_DARK = 0x40
# Where a PNG says its bits for each channel.
_PNG_BITS = 24
_BROKEN_METADATA = "broken metadata were ignored, an orientation in them too"

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class _Kind:
    """Pixels that are not simply 8-bit ones: their name, the value that is white (0: unknown), what is noted."""

    name: str
    white: int = 0
    note: str = ""


_GREY_16 = _Kind("16-bit pixels", 0xFFFF, "of 16-bit grey the upper 8 bits were taken: 0..65535 became 0..255")
_COLOURS_16 = _Kind("16-bit colours", _WHITE, "of 16-bit colours the upper 8 bits were taken")
_NUMBERS = _Kind("numbers", _WHITE)
_BEYOND = _Kind("numbers beyond 0..255")
_BITS_32 = _Kind("32-bit pixels")
_SIGNED = _Kind("signed pixels")
_FLOATS = _Kind("floating point pixels")


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
        What was done to images that people should know of.
    pixel_range : tuple[float, float], optional
        The values that become 0 and 255, where it is not the format that says so; None before they are known.
    background : str
        As given.
    """

    def __init__(
        self, pixel_range: str = "", background: str = "white", survey: Callable[[Survey], None] | None = None
    ) -> None:
        self.notes = Notes()
        self.pixel_range = parse_pixel_range(pixel_range)
        self._by_dataset = pixel_range == BY_DATASET
        self.background, self._colour = background, parse_background(background)
        self._survey = survey
        self._seen_white = survey is None
        self._format: str | None = None

    def file(self, encoded: bytes, where: str) -> Pixels:
        """Decode one image file to uint8 (H, W, 1) grey or (H, W, 3) RGB, turned upright by its EXIF orientation.

        Palettes and other colour spaces become RGB; transparent images are put on the background; of an animation the
        first frame is taken.

        Parameters
        ----------
        encoded : bytes
            The file's content, in any format that Pillow reads.
        where : str
            Names the image in errors and notes.

        Raises
        ------
        CorruptImage
            If the content is not a whole image.
        DataError
            If nothing says which of its pixel values are black and white.
        """
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
            raise CorruptImage(
                f"{where}: cannot be decoded ({type(error).__name__}); replace the image or leave it out"
            ) from error

    def image(self, image: Image.Image, where: str) -> Pixels:
        """Return an image of Pillow's as uint8 (H, W, 1) grey or (H, W, 3) RGB; see `file`.

        Raises
        ------
        DataError
            As of `file`.
        """
        return self._pixels(image, where, deep_colour=False)

    def array(self, values: NDArray[Any], where: str) -> Pixels:
        """Return an array of pixels, (H, W), (H, W, C) or (C, H, W) with 1 or 3 channels, as uint8 (H, W, C).

        Whole numbers are taken as they are, 255 being white, unless there is a pixel range.

        Raises
        ------
        CorruptImage
            If it has no such shape, or does not hold numbers.
        DataError
            As of `file`.
        """
        if values.dtype.kind not in "biuf":
            raise CorruptImage(f"{where}: expected numbers, found {values.dtype}")
        values_HWC = channels_last(values, where)
        if values.dtype.kind == "f":
            return self._finish(values_HWC, _FLOATS, where)
        beyond = values_HWC.min() < 0 or values_HWC.max() > _WHITE
        return self._finish(values_HWC, _BEYOND if beyond else _NUMBERS, where)

    def _decode(self, encoded: bytes, where: str) -> Pixels:
        if is_heif(encoded):
            can_read_heif()
        with warnings.catch_warnings():
            # What is wrong with metadata is said in notes.
            warnings.simplefilter("ignore", UserWarning)
            with self._open(encoded) as image:
                image.load()
                pixels_HWC = self._pixels(image, where, deep_colour=_has_deep_colour(image, encoded))
                turn = _UPRIGHT.get(self._orientation(image, where))
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
        if image.mode.startswith(("I", "F")) or _is_signed(image):
            values_HW, kind = _deep_values(image)
            return self._finish(values_HW[:, :, np.newaxis], kind, where)
        if image.has_transparency_data:
            image = self._composed(image, where)
        if image.mode in ("1", "LA"):
            image = image.convert("L")
        elif image.mode not in ("L", "RGB"):
            image = image.convert("RGB")
        # As numpy.array(image) does, at half the cost for a small image.
        pixels_HWC = np.frombuffer(image.tobytes(), np.uint8).reshape(image.height, image.width, -1).copy()
        return self._finish(pixels_HWC, _COLOURS_16, where) if deep_colour else pixels_HWC

    def _composed(self, image: Image.Image, where: str) -> Image.Image:
        """Return an image without its transparency, grey if it was."""
        grey = image.mode in ("1", "L", "LA", "La")
        visible = image.convert("RGBA")
        if visible.getchannel("A").getextrema() != (_WHITE, _WHITE):
            self.notes.add(f"transparent pixels were put on {self.background}", where)
            ground = Image.new("RGBA", image.size, (*self._colour, _WHITE))
            ground.alpha_composite(visible)
            visible = ground
        return visible.convert("RGB").convert("L") if grey else visible.convert("RGB")

    def _finish(self, values_HWC: NDArray[Any], kind: _Kind, where: str) -> Pixels:
        """Return values that are not simply those of an 8-bit image as 8 bits."""
        ranged = self.pixel_range is not None or self._by_dataset
        if kind is _COLOURS_16 and ranged:
            raise DataError(f"{where}: pixel-range cannot map colours of 16 bits; convert these images to 8 bits")
        if ranged or not kind.white:
            return self._mapped(values_HWC, kind, where)
        pixels_HWC = (values_HWC.astype(np.int64) * (_WHITE + 1) // (kind.white + 1)).astype(np.uint8)
        self._look_for_white(int(pixels_HWC.max()), where)
        if kind.note:
            self.notes.add(kind.note, where)
        return pixels_HWC

    def _mapped(self, values_HWC: NDArray[Any], kind: _Kind, where: str) -> Pixels:
        """Return values mapped by the pixel range."""
        low, high = float(values_HWC.min()), float(values_HWC.max())
        if not math.isfinite(low) or not math.isfinite(high):
            raise DataError(f"{where}: has pixels that are no numbers; replace the image or leave it out")
        if self.pixel_range is None and self._survey is not None and self._by_dataset:
            self.pixel_range = self._looked_through(self._survey).range(where)
        if self.pixel_range is None:
            top = 1 if 0 < high <= 1 else 2 ** max(8, math.ceil(math.log2(max(2.0, high + 1)))) - 1
            raise DataError(
                f"{where}: {kind.name} have no known range: nothing says which values are black and white; set "
                f"pixel-range=dataset, or state them, such as pixel-range=0..{top}"
            )
        black, white = self.pixel_range
        self.notes.add(f"pixel values {black:g}..{white:g} became 0..255", where)
        if low < black or high > white:
            self.notes.add("pixels outside pixel-range became black or white", where)
        scaled_HWC = np.clip((values_HWC.astype(np.float64) - black) / (white - black), 0, 1)
        return np.rint(scaled_HWC * _WHITE).astype(np.uint8)

    def _look_for_white(self, brightest: int, where: str) -> None:
        """Refuse images that are nearly black, as all of their dataset: fewer bits were stored than the format has."""
        if self._seen_white or brightest >= _DARK:
            self._seen_white = True
            return
        assert self._survey is not None
        found = self._looked_through(self._survey)
        if found.brightest < _DARK:
            raise DataError(
                f"{where}: is nearly black, as are {counted(found.count, 'image')} that were looked at: no pixel is "
                f"above {found.brightest} of 255 when mapped to 8 bits, so fewer bits were stored than the format has; "
                "set pixel-range=dataset, or the values that become black and white, such as pixel-range=0..4095"
            )
        self._seen_white = True

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
    brightest : int
        The brightest pixel as 8 bits, 0..255, where the format says what is white.
    """

    def __init__(self) -> None:
        super().__init__()
        self.count = self.brightest = 0
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

    def _finish(self, values_HWC: NDArray[Any], kind: _Kind, where: str) -> Pixels:
        self.count += 1
        low, high = float(values_HWC.min()), float(values_HWC.max())
        # A pixel that is no number is for the decoding to refuse.
        self._low, self._high = min(self._low, low), max(self._high, high)
        self.brightest = max(self.brightest, int(high) * (_WHITE + 1) // (kind.white + 1) if kind.white else 0)
        return np.zeros(values_HWC.shape, np.uint8)


def _deep_values(image: Image.Image) -> tuple[NDArray[Any], _Kind]:
    """Return an image's grey values (H, W) of more than 8 bits, or with signs, and of which kind they are."""
    values_HW = np.asarray(image)
    if image.mode == "F":
        return values_HW, _FLOATS
    if _is_signed(image):
        return values_HW.view(np.int8) if image.mode == "L" else values_HW, _SIGNED
    if image.mode.startswith("I;16") or image.format in ("PNG", "PPM"):
        return values_HW, _GREY_16
    # Pillow reads 32 unsigned bits as signed ones.
    return values_HW.astype(np.int64) & 0xFFFFFFFF, _BITS_32


def _is_signed(image: Image.Image) -> bool:
    tags = getattr(image, "tag_v2", {}) if image.format == "TIFF" else {}
    return bool(set(tags.get(_SAMPLE_FORMAT, ())) & {_TIFF_SIGNED}) and image.mode in ("L", "I")


def _has_deep_colour(image: Image.Image, encoded: bytes) -> bool:
    """Check if Pillow has cut colours of 16 bits to their upper 8, which it does silently."""
    if encoded.startswith(PNG):
        return image.mode.startswith(("RGB", "LA")) and encoded[_PNG_BITS] == 16
    if image.format == "TIFF" and image.mode.startswith("RGB"):
        return bool(max(getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE, (8,))) > 8)
    return False


def channels_last(values: NDArray[Any], where: str) -> NDArray[Any]:
    """Return (H, W, C) of (H, W), (H, W, C) or (C, H, W); raises CorruptImage where it is none or two of these."""
    shape = values.shape
    if len(shape) == 2 and values.size:
        return values[:, :, np.newaxis]
    last, first = (len(shape) == 3 and values.size and shape[axis] in (1, 3) for axis in (2, 0))
    if last == first:
        reason = "in either order of its axes" if last else "of 1 or 3 channels"
        raise CorruptImage(f"{where}: an array of shape {shape} is no image {reason}; expected (H, W) or (H, W, C)")
    return values if last else values.transpose(1, 2, 0)
