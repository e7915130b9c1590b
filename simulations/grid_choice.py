"""Measures what `grid="auto"` chooses for images of different kinds; `python -m simulations.grid_choice`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from psl_flower.cli.output import exit_status
from psl_flower.config import size_text
from psl_flower.data.sources import open_dataset
from psl_flower.patches.complexity import GridChoice, choose_grid
from psl_flower.stores.grid_choice import choose_for
from simulations import reports
from simulations.command_line import check_out, deliver, new_parser
from simulations.machine import circumstances
from simulations.reports import Cells, Row
from simulations.tables import again, dataset_name

# Rows of the photographs that are used: what patches of many sizes tile.
_ROWS = 416


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status, see `exit_status`."""
    parser = new_parser(
        "grid_choice",
        "Choose the patch grid (grid=auto) for datasets, two photographs and views of them; say why.",
    )
    parser.add_argument("--dataset", action="append", help="digits, a hub name or a folder; again for more [digits]")
    return exit_status(lambda: _choose(parser.parse_args(arguments)))


def _choose(given: argparse.Namespace) -> None:
    check_out(given.out)
    began, datasets = circumstances(), tuple(given.dataset or ["digits"])
    found = [_chosen(name, choose_for(open_dataset(name), (0, 0), "exact", 0)) for name in datasets]
    found += [
        _chosen(f"photograph {name}, {_ROWS} of its rows", choose_grid([image_HWC], image_HWC.shape[:2]))
        for name, image_HWC in photographs()
    ]
    views = [view for _, image_HWC in photographs() for view in views_of(image_HWC)]
    found.append(_chosen(f"{len(views)} views of the two photographs", choose_grid(views, views[0].shape[:2])))
    deliver(given, Report(**began, datasets=datasets, measurements=tuple(found)))


class Chosen(msgspec.Struct, frozen=True, kw_only=True):
    """The grid for a set of images."""

    name: str  #: Name of the images.
    #: (height, width) in pixels.
    image_size: tuple[int, int]
    patch_size: tuple[int, int]
    stride: tuple[int, int]
    rows: int
    cols: int
    num_images: int  #: Images that were looked at.
    turns: float  #: Turns of brightness along a line of an image; see `psl_flower.patches.complexity`.
    reason: str  #: Reason that a run prints for the choice.


class Report(reports.Report, frozen=True, kw_only=True):
    """A result file: the choice for each dataset asked for, two large photographs, and a set of views of these."""

    benchmark: str = "grid_choice"
    version: int = 1
    datasets: tuple[str, ...]
    measurements: tuple[Chosen, ...]

    @property
    def title(self) -> str:
        """One line: what was measured, and where."""
        return f"The patch grid that grid=auto chooses; {self.place}"

    @property
    def tables(self) -> tuple[Cells, ...]:
        """The choices."""
        head = ("images", "image size", "looked at", "turns of brightness", "patches", "patch size", "stride")
        rows: list[Row] = [
            (
                dataset_name(found.name),
                size_text(found.image_size),
                str(found.num_images),
                f"{found.turns:.1f}",
                f"{found.rows}x{found.cols}",
                size_text(found.patch_size),
                "-" if found.stride == found.patch_size else size_text(found.stride),
            )
            for found in self.measurements
        ]
        return ((head, rows),)

    @property
    def notes(self) -> str:
        """How to read the table, with what a run says of each choice."""
        said = " ".join(f'{dataset_name(found.name)}: "{found.reason}".' for found in self.measurements)
        return (
            "How often brightness turns along a line of an image, on average, decides: from 2, 4 and 8 turns on the "
            "patches overlap or are finer, as far as the images' size allows. The photographs come with scikit-learn. "
            "Busier images get finer patches by the method's rule; that is no claim on accuracy. What a run says: "
            f"{said}"
        )

    @property
    def command(self) -> str:
        """The command line that measures the same again."""
        return again("grid_choice", [("dataset", name) for name in self.datasets], {})


def photographs() -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """Yield name and pixels (H, W, 3) of scikit-learn's two photographs, without their last rows."""
    from sklearn.datasets import load_sample_image

    for name in ("flower.jpg", "china.jpg"):
        yield name, load_sample_image(name)[:_ROWS]


def views_of(image_HWC: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    """Return nine views (H / 2, W / 2, 3) of a photograph, which overlap by half: a set of large images from few."""
    height, width = image_HWC.shape[0] // 2, image_HWC.shape[1] // 2
    corners = [(top, left) for top in (0, height // 2, height) for left in (0, width // 2, width)]
    return [image_HWC[top : top + height, left : left + width] for top, left in corners]


def _chosen(name: str, choice: GridChoice) -> Chosen:
    grid = choice.grid
    return Chosen(
        name=name, image_size=grid.image_size, patch_size=grid.patch_size, stride=grid.stride, rows=grid.rows,
        cols=grid.cols, num_images=choice.num_images, turns=choice.turns, reason=choice.reason,
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
