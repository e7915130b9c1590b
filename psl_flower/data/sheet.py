"""Contact sheets: small pictures in rows, each with lines of text beneath it."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

_COLUMNS = 10
_TILE, _CAPTION = 96, 34
_MARGIN = 6
_LETTERS = 17
_DEJAVU, _FONT_SIZE = "mpl-data/fonts/ttf/DejaVuSans.ttf", 9


def to_picture(image_CHW: NDArray[np.uint8]) -> Image.Image:
    """Return an image whose pixels are exactly these; other channels than 1 or 3 stand under each other in grey."""
    if image_CHW.shape[0] == 3:
        return Image.fromarray(np.ascontiguousarray(image_CHW.transpose(1, 2, 0)))
    return Image.fromarray(np.ascontiguousarray(image_CHW.reshape(-1, image_CHW.shape[2])))


def tile(picture: Image.Image | None, lines: Sequence[str]) -> Image.Image:
    """Return a small picture with up to three lines beneath it, the third in red; None leaves its place crossed out."""
    whole = Image.new("RGB", (_TILE + 2 * _MARGIN, _TILE + _CAPTION + 2 * _MARGIN), "white")
    draw = ImageDraw.Draw(whole)
    if picture is None:
        corners = (_MARGIN, _MARGIN, _MARGIN + _TILE, _MARGIN + _TILE)
        draw.line(corners, fill="darkred")
        draw.line((corners[0], corners[3], corners[2], corners[1]), fill="darkred")
    else:
        scale = _TILE / max(picture.size)
        size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        shown = picture.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BILINEAR)
        whole.paste(shown.convert("RGB"), (_MARGIN + (_TILE - size[0]) // 2, _MARGIN + (_TILE - size[1]) // 2))
    for k, line in enumerate(lines):
        place = (_MARGIN, _MARGIN + _TILE + 1 + 11 * k)
        draw.text(place, _short(line), fill="darkred" if k == 2 else "black", font=_font())
    return whole


def sheet(tiles: Sequence[Image.Image], columns: int = _COLUMNS) -> Image.Image:
    """Return tiles, one or more, in rows."""
    width, height = tiles[0].size
    columns = min(columns, len(tiles))
    whole = Image.new("RGB", (columns * width, -(-len(tiles) // columns) * height), "white")
    for k, one in enumerate(tiles):
        whole.paste(one, (k % columns * width, k // columns * height))
    return whole


@functools.cache
def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return a font with the letters of most alphabets, if matplotlib brings one; else Pillow's of Latin-1.

    Pillow's default font has no letter beyond ASCII.
    """
    found = importlib.util.find_spec("matplotlib")
    for place in (found.submodule_search_locations if found else None) or ():
        with contextlib.suppress(OSError):
            return ImageFont.truetype(Path(place) / _DEJAVU, _FONT_SIZE)
    return ImageFont.load_default_imagefont()


def _short(text: str) -> str:
    """Return as much of a text as fits, with "?" for letters that the font lacks."""
    font = _font()
    if isinstance(font, ImageFont.ImageFont):
        return text.encode("latin-1", errors="replace").decode("latin-1")[:_LETTERS]
    lacking = bytes(font.getmask("\uffff"))
    return "".join(c if c.isascii() or bytes(font.getmask(c)) != lacking else "?" for c in text[:_LETTERS])
