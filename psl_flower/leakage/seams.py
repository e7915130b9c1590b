"""Measures how well colluding nodes join patches of one image in two stores by the pixels along their common border.

Shape suffixes: N and M records, P positions, C channels, h and w pixels of a patch with its margin, D pixels of a
border.
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
# Of a step's covariance, in squared pixel values: a flat border has none.
_FLOOR = 4.0
# Smallest distances that make up the measure of a row or column.
_FEW = 3


class Seam(msgspec.Struct, frozen=True, kw_only=True):
    """How often two neighbouring positions are matched."""

    #: The positions.
    first: int
    second: int
    side: str  #: "right" or "below": where the second lies.
    records: int  #: Candidates in each store.
    matched: Interval  #: Share of the first's records whose nearest in the second's store is of the same image.


def match_seams(grid: PatchGrid, patches_NPChw: NDArray[np.uint8], assignment: Sequence[int]) -> tuple[Seam, ...]:
    """Match the records of all neighbouring positions that lie on different nodes.

    The patches are uint8, of N images; `assignment` has the node of each position.
    """
    found = []
    for first, second, side in neighbours(grid):
        if assignment[first] != assignment[second]:
            distance_NM = distances(grid, patches_NPChw[:, first], patches_NPChw[:, second], side)
            right = interval(matches(distance_NM).astype(float))
            found.append(Seam(first=first, second=second, side=side, records=len(distance_NM), matched=right))
    return tuple(found)


def neighbours(grid: PatchGrid) -> list[tuple[int, int, str]]:
    """Return (first, second, side of the second) of all neighbouring positions."""
    places = [(row, col) for row in range(grid.rows) for col in range(grid.cols)]
    across = [(row * grid.cols + col, row * grid.cols + col + 1, RIGHT) for row, col in places if col + 1 < grid.cols]
    down = [(row * grid.cols + col, (row + 1) * grid.cols + col, BELOW) for row, col in places if row + 1 < grid.rows]
    return across + down


def distances(
    grid: PatchGrid, first_NChw: NDArray[np.uint8], second_MChw: NDArray[np.uint8], side: str
) -> torch.Tensor:
    """Return the misfit, 0 or more, of each record of the first with each of the second (N, M).

    Patches that overlap, or whose margins do, are compared by the pixels that both have; others by how well each
    border continues in the other.
    """
    first, second = (torch.from_numpy(patches).double() for patches in (first_NChw, second_MChw))
    axis = 3 if side == RIGHT else 2
    # Across the border comes last.
    first, second = first.transpose(axis, 3), second.transpose(axis, 3)
    shared = grid.field_size[axis - 2] - grid.stride[axis - 2]
    if shared > 0:
        return torch.cdist(first[..., -shared:].flatten(1), second[..., :shared].flatten(1))
    if first.shape[3] < 2:
        return torch.cdist(first[..., -1].flatten(1), second[..., 0].flatten(1))
    across = _continued(first[..., -1], first[..., -2], second[..., 0])
    return across + _continued(second[..., 0], second[..., 1], first[..., -1]).T


def matches(distance_NM: torch.Tensor) -> NDArray[np.bool_]:
    """Return (N,) bool: for which records of the first the best of the second is the one of the same number.

    A record that fits all others well, such as a plain one, is no sign of a match: distances count in proportion to
    the smallest of their row and column. One that is just as near counts before the right one.
    """
    few = min(_FEW, len(distance_NM))
    row_N1, column_1M = (
        distance_NM.topk(few, axis, largest=False).values.mean(axis, keepdim=True).clamp_min(1e-9) for axis in (1, 0)
    )
    relative_NM = distance_NM / (row_N1 * column_1M).sqrt()
    right_N: NDArray[np.bool_] = ((relative_NM <= relative_NM.diagonal()[:, None]).sum(1) == 1).numpy()
    return right_N


def _continued(border_NCD: torch.Tensor, inside_NCD: torch.Tensor, other_MCD: torch.Tensor) -> torch.Tensor:
    """Return the difference (N, M) between the step over the border and the last step before it.

    Mahalanobis gradient compatibility (Gallagher, Jigsaw Puzzles with Pieces of Unknown Orientation, CVPR 2012).
    """
    step_NCD = border_NCD - inside_NCD
    mean_NC1 = step_NCD.mean(2, keepdim=True)
    centred = step_NCD - mean_NC1
    C, D = step_NCD.shape[1:]
    covariance_NCC = torch.einsum("ncd,ned->nce", centred, centred) / max(1, D - 1) + _FLOOR * torch.eye(C).double()
    inverse_NCC = torch.linalg.inv(covariance_NCC)
    expected_NCD = border_NCD + mean_NC1
    weighed_NCD = torch.einsum("nce,ned->ncd", inverse_NCC, expected_NCD)
    # (y - t)' S (y - t), multiplied out, so that it is a product of matrices.
    own_N1 = (weighed_NCD * expected_NCD).sum((1, 2))[:, None]
    crossed_NM = torch.einsum("ncd,mcd->nm", weighed_NCD, other_MCD)
    others_NM = torch.einsum("nce,mce->nm", inverse_NCC, torch.einsum("mcd,med->mce", other_MCD, other_MCD))
    return (own_N1 - 2 * crossed_NM + others_NM).clamp_min(0)
