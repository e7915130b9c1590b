"""The command: from its arguments to the report."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from psl_flower.data.sources import open_dataset
from psl_flower.patches.complexity import GridChoice, choose_grid
from psl_flower.stores.grid_choice import choose_for
from simulations.command_line import check_out, deliver, exit_status, new_parser
from simulations.grid_choice.results import Chosen, Report
from simulations.grid_choice.table import present
from simulations.machine import circumstances

# Rows of the photographs that are used: what patches of many sizes tile.
_ROWS = 416


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status, see `exit_status`."""
    parser = make_parser()
    return exit_status(lambda: _choose(parser.parse_args(arguments)))


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command's arguments."""
    parser = new_parser(
        "grid_choice",
        "Choose the patch grid (grid=auto) for datasets, two photographs and views of them; say why.",
    )
    parser.add_argument("--dataset", action="append", help="digits, a hub name or a folder; again for more [digits]")
    return parser


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
    report = Report(**began, datasets=datasets, measurements=tuple(found))
    deliver(given, report, present(report))


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
