"""Contact sheets: small pictures in rows, each with lines of text beneath it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

_COLUMNS = 10
_TILE, _CAPTION = 96, 34
_MARGIN = 6
_LETTERS = 17


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
        draw.text((_MARGIN, _MARGIN + _TILE + 1 + 11 * k), _short(line), fill="darkred" if k == 2 else "black")
    return whole


def sheet(tiles: Sequence[Image.Image], columns: int = _COLUMNS) -> Image.Image:
    """Return tiles, one or more, in rows."""
    width, height = tiles[0].size
    columns = min(columns, len(tiles))
    whole = Image.new("RGB", (columns * width, -(-len(tiles) // columns) * height), "white")
    for k, one in enumerate(tiles):
        whole.paste(one, (k % columns * width, k // columns * height))
    return whole


def _short(text: str) -> str:
    # The built-in font of Pillow may lack letters; a caption is no place to fail over one.
    return text.encode("latin-1", errors="replace").decode("latin-1")[:_LETTERS]
