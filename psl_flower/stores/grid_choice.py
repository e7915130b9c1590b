"""The grid of a set of patch stores: as its request says, or chosen from the images and kept beside the stores."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from psl_flower.data.images import resize_image
from psl_flower.data.sources import ImageSource
from psl_flower.patches import PatchGrid
from psl_flower.patches.complexity import MAX_IMAGES, GridChoice, choose_grid
from psl_flower.patches.cutting import explain_sizes, first_image
from psl_flower.patches.grid import Fit
from psl_flower.stores.store_set import StoreRequest
from psl_flower.system.files import read_file, write_file

REASON_FILE = "grid.txt"


def request_grid(folder: Path, request: StoreRequest, source: ImageSource) -> PatchGrid:
    """Return the grid on a source's images; if it is chosen from them, why is written to the set's folder.

    The set's folder is made if missing.

    Raises
    ------
    GridError
        If no grid fits the images.
    CorruptImage, DataError
        If an image cannot be read.
    """
    grid, reason = grid_for(request, source)
    if reason:
        write_file(folder / REASON_FILE, reason.encode(), parents=True)
    return grid


def grid_for(request: StoreRequest, source: ImageSource) -> tuple[PatchGrid, str]:
    """Return the grid on a source's images, and why it was chosen; empty if the request names the grid."""
    if request.pattern != "auto":
        return request.grid_of(source), ""
    choice = choose_for(source, request.image_size, request.fit, request.num_uppers)
    return choice.grid.with_margin(request.margin), choice.reason


def choose_for(source: ImageSource, image_size: tuple[int, int], fit: Fit, num_uppers: int) -> GridChoice:
    """Choose the grid for a source's images, brought to `image_size` unless it is (0, 0); see `choose_grid`."""
    height, width = first_image(source).shape[:2] if image_size == (0, 0) else image_size

    def images() -> Iterator[NDArray[np.uint8]]:
        for image_HWC in source.spread("train", MAX_IMAGES):
            yield image_HWC if image_size == (0, 0) else resize_image(image_HWC, image_size)

    with explain_sizes(source):
        return choose_grid(images(), (height, width), fit, num_uppers)


def grid_reason(folder: Path, request: StoreRequest) -> str:
    """Return in one line why the grid of a finished set was chosen; empty if the request names the grid.

    Raises
    ------
    StoreError
        If the file cannot be read; if it is lost, what `request_grid` raises.
    """
    if request.pattern != "auto":
        return ""
    path = folder / REASON_FILE
    if not path.exists():
        request_grid(folder, request, request.open_source())
    return read_file(path).decode("utf-8", errors="replace")
