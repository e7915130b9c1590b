"""Measures how often colluding nodes find a patch's neighbour by its border; `python -m simulations.seams`."""

from __future__ import annotations

import statistics
import sys
from dataclasses import dataclass

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from psl_flower.config import fields, size_text
from psl_flower.config.fields import parse_size, setting
from psl_flower.data.options import SourceOptions
from psl_flower.data.sources import open_dataset
from psl_flower.errors import ConfigError
from psl_flower.leakage.seams import Seam, match_seams
from psl_flower.patches import PatchGrid
from psl_flower.patches.cutting import half_of
from psl_flower.text import counted
from simulations import kept
from simulations.kept import Study
from simulations.options import several
from simulations.reports import Cells, Row
from simulations.tables import dataset_name

# Half the image each way: 2x2 patches.
_HALF = "half"


def _size(text: str) -> str:
    return text if text == _HALF else size_text(parse_size("patch-sizes", text))


@dataclass(frozen=True, kw_only=True)
class Options(fields.Settings):
    """Which images are cut, and how."""

    dataset: str = setting("digits", "digits, a hub name or a folder, such as ../shared/data/cifar10")
    images: int = setting(1000, "training images, drawn at random; candidates in each store", least=2, most=20_000)
    patch_sizes: tuple[str, ...] = several((_HALF,), f"HEIGHTxWIDTH in pixels, or {_HALF}: 2x2 patches", _size)
    margin: int | None = setting(None, "pixels around each patch that both stores hold; 0 unless given", least=0)
    seed: int = setting(0, "draws the images", least=0, most=2**32 - 1)


class Cut(msgspec.Struct, frozen=True, kw_only=True):
    """What was matched of images cut in one way."""

    patch_size: tuple[int, int]  #: (height, width) in pixels.
    rows: int
    cols: int
    seams: tuple[Seam, ...]  #: All neighbouring positions.


class Report(kept.Report, frozen=True, kw_only=True):
    """A result file."""

    benchmark: str = "seams"
    version: int = 1
    settings: Options
    measurements: tuple[Cut, ...]

    @property
    def title(self) -> str:
        """One line: what was measured, and where."""
        asked = self.settings
        margin = f", patches with a margin of {counted(asked.margin, 'pixel')}" if asked.margin else ""
        return (
            f"Neighbouring patches found by their borders: {dataset_name(asked.dataset)}, {asked.images} images{margin}"
        )

    @property
    def tables(self) -> tuple[Cells, ...]:
        """A row for each way to cut, then one for each pair of neighbours."""
        rows: list[Row] = []
        for cut in self.measurements:
            shares = [100 * seam.matched.mean for seam in cut.seams]
            rows.append((
                f"{cut.rows}x{cut.cols}", size_text(cut.patch_size), str(self.settings.images),
                f"{statistics.fmean(shares):.1f}", f"{min(shares):.1f}", f"{max(shares):.1f}",
            ))  # fmt: skip
        pairs: list[Row] = [
            (
                f"{cut.rows}x{cut.cols}", f"{seam.first} and {seam.second}", seam.side,
                f"{100 * seam.matched.mean:.1f} ({100 * seam.matched.low:.1f} to {100 * seam.matched.high:.1f})",
            )
            for cut in self.measurements
            for seam in cut.seams
        ]  # fmt: skip
        return (
            (("grid", "patch", "candidates", "matched, %", "worst pair, %", "best pair, %"), rows),
            (("grid", "positions", "second lies", "matched, % (95 %)"), pairs),
        )

    @property
    def notes(self) -> str:
        """How to read the tables."""
        shared = (
            "pixels that both stores hold. "
            if self.settings.margin
            else "two rows of pixels on each side of the border (Mahalanobis gradient compatibility, Gallagher, CVPR "
            "2012). "
        )
        return (
            "Matched: patches whose best, of all candidates at the neighbouring position, is of the same image, by the "
            f"{shared}"
            "By chance it would be one in as many as there are candidates. Each pair of positions is matched alone, "
            "and nothing is learnt: colluding nodes may do better."
        )


def _measure(study: Study[Options, Report]) -> None:
    images_NCHW = _images(study.options)
    for size in study.options.patch_sizes[len(study.report.measurements) :]:
        study.keep(_cut(images_NCHW, size, study.options.margin or 0))


def _images(options: Options) -> NDArray[np.uint8]:
    source = open_dataset(options.dataset, SourceOptions(max_train=options.images, seed=options.seed))
    images = [np.atleast_3d(image) for image, _ in source.samples("train")]
    if len({image.shape for image in images}) > 1:
        raise ConfigError(
            f"dataset: {options.dataset} has images of several sizes; choose one whose images have one size"
        )
    return np.stack(images).transpose(0, 3, 1, 2)


def _cut(images_NCHW: NDArray[np.uint8], size: str, margin: int) -> Cut:
    height, width = images_NCHW.shape[2:]
    patch = half_of((height, width)) if size == _HALF else parse_size("patch-sizes", size)
    grid = PatchGrid(image_size=(height, width), patch_size=patch, stride=patch, margin=margin)
    patches_NPChw = grid.split(torch.from_numpy(images_NCHW)).numpy()
    seams = match_seams(grid, patches_NPChw, range(grid.num_patches))
    return Cut(patch_size=patch, rows=grid.rows, cols=grid.cols, seams=seams)


_ABOUT = "Cut images into patches and find neighbours again by the pixels of their borders."
main = kept.command("seams", _ABOUT, Options, Report, _measure)

if __name__ == "__main__":
    sys.exit(main())
