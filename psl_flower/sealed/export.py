"""Restored images as files: one PNG each, contact sheets, and a table. They appear all or not at all.

Shape suffixes: B images, C channels, H and W pixels.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from psl_flower.system.files import disk_errors
from psl_flower.system.folders import NewFolder
from psl_flower.text import cell

if TYPE_CHECKING:
    from PIL import Image

_PER_SHEET = 100


@dataclass(frozen=True, slots=True)
class Caption:
    """An image's number, its split and number in it, its class, and a run's prediction."""

    image: int
    split: str
    number: int
    label: str = ""
    predicted: str = ""
    confidence: float | None = None

    @property
    def file(self) -> str:
        """Name of its PNG."""
        return f"{self.split}-{self.number:06d}.png"


def export(release: Callable[[], Iterable[NDArray[np.uint8]]], captions: Sequence[Caption], out: Path) -> list[Path]:
    """Write images (B, C, H, W) at a time, with their captions in order; returns the contact sheets.

    One and three channels become grey and RGB PNGs; of other numbers, the channels stand under each other in
    grey.

    Parameters
    ----------
    release : callable
        Yields the images. Called once the new folder can be written to: images that cannot be kept must not be
        logged as restored.
    captions : Sequence[Caption]
        One for each image.
    out : Path
        The new folder.

    Raises
    ------
    StoreExists
        If `out` is not a new or an empty folder.
    StoreUnreachable
        If the disk refuses.
    """
    from psl_flower.data.sheet import sheet, tile, to_picture  # loads Pillow, and commands import captions alone

    sheets: list[str] = []
    with NewFolder(out) as folder:
        images = release()
        with disk_errors(out, "written"):
            tiles: list[Image.Image] = []
            done = 0
            for batch_BCHW in images:
                for image_CHW in batch_BCHW:
                    picture = to_picture(image_CHW)
                    picture.save(folder / captions[done].file)
                    tiles.append(tile(picture, _lines(captions[done])))
                    done += 1
                    if len(tiles) == _PER_SHEET or done == len(captions):
                        sheets.append(f"sheet-{len(sheets) + 1:04d}.png")
                        sheet(tiles).save(folder / sheets[-1])
                        tiles.clear()
            _table(folder / "images.csv", captions)
    return [out / name for name in sheets]


def _lines(caption: Caption) -> list[str]:
    lines = [f"{caption.split}:{caption.number}", caption.label]
    if caption.predicted:
        sure = "" if caption.confidence is None else f" {caption.confidence:.0%}"
        lines.append(f"> {caption.predicted}{sure}")
    return lines


def _table(path: Path, captions: Sequence[Caption]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["image", "split", "number", "file", "label", "predicted", "confidence"])
        for c in captions:
            sure = "" if c.confidence is None else f"{c.confidence:.6f}"
            table.writerow([c.image, c.split, c.number, c.file, cell(c.label), cell(c.predicted), sure])
