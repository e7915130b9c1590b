"""The patch grid chosen from how busy the images are: `grid="auto"`.

Measured is how often brightness turns, from rising to falling or back, along a line of an image from edge to edge. A
turn counts once brightness has moved by a tenth of its whole range, so that noise and slow shades do not. A figure on
an even ground makes one turn. Plain images are cut simply; each doubling of turns takes the next pattern of a ladder,
which overlaps or divides more finely, since a patch of a busy image shows more of its content:

    below 2 turns   2x2 patches
    2 to 4          3x3 patches of the same size, overlapping by half
    4 to 8          4x4 patches
    8 and more      7x7 patches of that size, overlapping by half

Where a pattern does not fit the image's size it is the nearest that does; with padding a row or column may be less.

Shape suffixes: H and W pixels of an image, C channels, L lines, D pixels along them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from psl_flower.errors import DataError
from psl_flower.patches.grid import LARGE_IMAGE, Fit, PatchGrid
from psl_flower.text import counted, dims

# Change it with anything that changes the choice made from the same images.
VERSION = 1
# A step in brightness that counts, of 0..255.
STEP = 25
# Rows, and columns, that are looked at in an image, evenly spaced.
MAX_LINES = 64
# Images of a dataset that are looked at.
MAX_IMAGES = 256
# Least turns, parts that a side is divided into, strides to a patch.
_LADDER = ((0.0, 2, 1), (2.0, 2, 2), (4.0, 4, 1), (8.0, 4, 2))
# Least pixels a side of a patch; where images are large, the network's stem takes every fourth pixel.
_LEAST_SIDE, _LEAST_SIDE_LARGE = 8, 32


@dataclass(frozen=True, slots=True, kw_only=True)
class GridChoice:
    """A grid and why it was chosen."""

    grid: PatchGrid
    turns: float  #: Measured turns; see the module.
    num_images: int  #: Images that were looked at.
    reason: str  #: One line for people.


def count_turns(image_HWC: NDArray[np.uint8]) -> float:
    """Return the mean number of turns of brightness along an image's rows and columns; uint8 (H, W, 1) or (H, W, 3)."""
    rows = np.linspace(0, image_HWC.shape[0] - 1, min(image_HWC.shape[0], MAX_LINES)).astype(int)
    cols = np.linspace(0, image_HWC.shape[1] - 1, min(image_HWC.shape[1], MAX_LINES)).astype(int)
    along_rows = _turns(_brightness(image_HWC[rows]))
    along_cols = _turns(_brightness(image_HWC[:, cols]).T)
    return float(along_rows.mean() + along_cols.mean()) / 2


def choose_grid(
    images: Iterable[NDArray[np.uint8]], image_size: tuple[int, int], fit: Fit = "exact", num_uppers: int = 0
) -> GridChoice:
    """Return the grid for images with this much detail.

    Parameters
    ----------
    images : iterable
        uint8 (H, W, C), one or more, as they are when patches are cut.
    image_size : tuple[int, int]
        Their (height, width) in pixels.
    fit : {"exact", "pad"}
        As in `PatchGrid`; with "exact" only grids that tile the image are chosen from.
    num_uppers : int
        Uppers that the patches are to suffice for; 0: any number.

    Raises
    ------
    DataError
        If there are no images.
    GridError
        If no pattern fits the images.
    """
    found = [count_turns(image) for image in images]
    if not found:
        raise DataError("there are no images to choose a patch grid from")
    turns = float(np.mean(found))
    wanted = max(i for i, (least, _, _) in enumerate(_LADDER) if turns >= least)
    fitting = {
        i: grid for i in range(len(_LADDER)) if (grid := _grid(i, image_size, fit)) and grid.num_patches >= num_uppers
    }
    if not fitting:
        half = (-(-image_size[0] // 2), -(-image_size[1] // 2))
        # Refuses wrong sizes; if they are right, there are too many Uppers, which `assign` refuses.
        fitting = {0: PatchGrid(image_size=image_size, patch_size=half, stride=half, fit=fit)}
    taken = min(fitting, key=lambda i: (abs(i - wanted), i))
    reason = _reason(fitting[taken], turns, len(found), taken - wanted)
    return GridChoice(grid=fitting[taken], turns=turns, num_images=len(found), reason=reason)


def _brightness(pixels: NDArray[np.uint8]) -> NDArray[np.int32]:
    """Return luma (ITU-R BT.601), 0..255, of (..., 1) or (..., 3); in whole numbers, so that all machines agree."""
    if pixels.shape[-1] == 1:
        return pixels[..., 0].astype(np.int32)
    luma: NDArray[np.int32] = (pixels.astype(np.int32) @ np.array([299, 587, 114], np.int32)) // 1000
    return luma


def _turns(lines_LD: NDArray[np.int32]) -> NDArray[np.int64]:
    """Return (L,): how often each line turns by more than `STEP` back from its last peak or trough."""
    highest_L, lowest_L = lines_LD[:, 0].copy(), lines_LD[:, 0].copy()
    direction_L, turns_L = np.zeros(len(lines_LD), np.int64), np.zeros(len(lines_LD), np.int64)
    for here_L in lines_LD.T:
        np.maximum(highest_L, here_L, out=highest_L)
        np.minimum(lowest_L, here_L, out=lowest_L)
        falls_L = (direction_L >= 0) & (highest_L - here_L > STEP)
        rises_L = (direction_L <= 0) & (here_L - lowest_L > STEP)
        turned_L = falls_L | rises_L
        turns_L += turned_L & (direction_L != 0)  # the first move is no turn
        direction_L = np.where(rises_L, 1, np.where(falls_L, -1, direction_L))
        highest_L[turned_L] = lowest_L[turned_L] = here_L[turned_L]
    return turns_L


def _grid(rung: int, image_size: tuple[int, int], fit: Fit) -> PatchGrid | None:
    """Return the grid of a rung of the ladder, if it fits."""
    _, parts, strides = _LADDER[rung]
    least = _LEAST_SIDE_LARGE if max(image_size) >= LARGE_IMAGE else _LEAST_SIDE
    exact = all(size % (parts * strides) == 0 for size in image_size)
    patch = (-(-image_size[0] // parts), -(-image_size[1] // parts))
    if min(patch) < least or (fit == "exact" and not exact):
        return None
    stride = (-(-patch[0] // strides), -(-patch[1] // strides))
    return PatchGrid(image_size=image_size, patch_size=patch, stride=stride, fit=fit)


def _reason(grid: PatchGrid, turns: float, num_images: int, aside: int) -> str:
    pattern = f"{grid.rows}x{grid.cols} patches of {dims(grid.patch_size)}"
    if grid.stride != grid.patch_size:
        pattern += f", overlapping (stride {dims(grid.stride)})"
    if aside:
        pattern += f", the nearest {'coarser' if aside < 0 else 'finer'} pattern that fits image and Uppers"
    return (
        f"grid: brightness turns {turns:.1f} times along a line of an image (mean of "
        f"{counted(num_images, 'image')}; below 2 is plain, 8 and more is busy), so auto chose {pattern}"
    )
