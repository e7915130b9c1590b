"""What colluding nodes can join: patches of one image, found in two stores by the pixels along their common border.

Shape suffixes: N and M records, P positions, C channels, h and w pixels of a patch, D pixels of a border.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from psl_flower.leakage.measures import Interval, interval
from psl_flower.patches import PatchGrid

RIGHT, BELOW = "right", "below"


class Seam(msgspec.Struct, frozen=True, kw_only=True):
    """How often two neighbouring positions are matched.

    Attributes
    ----------
    first, second : int
        The positions.
    side : {"right", "below"}
        Where the second lies.
    records : int
        Candidates in each store.
    matched : Interval
        Share of the first's records whose nearest in the second's store is of the same image.
    """

    first: int
    second: int
    side: str
    records: int
    matched: Interval


def match_seams(grid: PatchGrid, patches_NPChw: NDArray[np.uint8], assignment: Sequence[int]) -> tuple[Seam, ...]:
    """Match the records of all neighbouring positions that lie on different nodes.

    Parameters
    ----------
    grid : PatchGrid
        How images are cut.
    patches_NPChw : ndarray
        uint8, of N images.
    assignment : sequence of int
        The node of each position.
    """
    found = []
    for first, second, side in neighbours(grid):
        if assignment[first] != assignment[second]:
            right_N = matches(*borders(grid, patches_NPChw[:, first], patches_NPChw[:, second], side))
            found.append(
                Seam(
                    first=first, second=second, side=side, records=len(right_N), matched=interval(right_N.astype(float))
                )
            )
    return tuple(found)


def neighbours(grid: PatchGrid) -> list[tuple[int, int, str]]:
    """Return (first, second, side of the second) of all neighbouring positions."""
    places = [(row, col) for row in range(grid.rows) for col in range(grid.cols)]
    across = [(row * grid.cols + col, row * grid.cols + col + 1, RIGHT) for row, col in places if col + 1 < grid.cols]
    down = [(row * grid.cols + col, (row + 1) * grid.cols + col, BELOW) for row, col in places if row + 1 < grid.rows]
    return across + down


def borders(
    grid: PatchGrid, first_NChw: NDArray[np.uint8], second_NChw: NDArray[np.uint8], side: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the pixels (N, D) on each side of the border, float32; of overlapping patches those that both have."""
    axis = 3 if side == RIGHT else 2
    size, stride = grid.patch_size[axis - 2], grid.stride[axis - 2]
    shared = max(1, size - stride)
    last = np.take(first_NChw, range(size - shared, size), axis)
    begin = np.take(second_NChw, range(shared), axis)
    return torch.from_numpy(last).float().flatten(1), torch.from_numpy(begin).float().flatten(1)


def matches(first_ND: torch.Tensor, second_ND: torch.Tensor) -> NDArray[np.bool_]:
    """Return (N,) bool: for which records of the first the nearest of the second is the one of the same number.

    One that is just as near counts before it.
    """
    distance_NM = torch.cdist(first_ND, second_ND)
    right_N: NDArray[np.bool_] = ((distance_NM <= distance_NM.diagonal()[:, None]).sum(1) == 1).numpy()
    return right_N
