"""Assigns grid positions to Uppers if there are fewer Uppers than patches."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from psl_flower.errors import ConfigError
from psl_flower.patches.grid import PatchGrid

Method = Literal["scatter", "round-robin"]

# Neighbours on one node leak most, so a pair's cost falls steeply with its distance.
_DISTANCE_POWER = 4
_MAX_SWAPS = 10_000


def assign(grid: PatchGrid, num_uppers: int, method: str = "scatter") -> tuple[int, ...]:
    """Return, for each grid position p, the index m of the Upper that takes it.

    Every Upper takes floor(P/M) or ceil(P/M) positions. "round-robin" is p mod M; "scatter" keeps the positions of
    one Upper as far apart as a local search can, deterministically.

    Raises
    ------
    ConfigError
        If num_uppers is not in 1..P or the method is unknown.
    """
    if not 1 <= num_uppers <= grid.num_patches:
        raise ConfigError(
            f"uppers: {num_uppers} Upper nodes cannot share {grid.num_patches} patches; "
            f"choose 1 to {grid.num_patches} (0 means one for each patch)"
        )
    round_robin = np.arange(grid.num_patches) % num_uppers
    if method == "round-robin":
        return tuple(int(m) for m in round_robin)
    if method != "scatter":
        raise ConfigError(f'assignment: expected "scatter" or "round-robin", got {method!r}')
    cost = _pair_cost(grid)
    starts = [round_robin, *_lattices(grid, num_uppers)]
    candidates = [_renumber(groups) for start in starts for groups in (start, _swap_down(start, cost))]
    # The closest pair decides; the energy, which a swap lowers, may fall although that pair gets closer.
    return min(candidates, key=lambda groups: (-min_distance(grid, groups), _energy(np.array(groups), cost)))


def positions_by_upper(assignment: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """Return the positions of each Upper, ascending."""
    return tuple(tuple(p for p, m in enumerate(assignment) if m == upper) for upper in range(max(assignment) + 1))


def absent_positions(assignment: Sequence[int], present: Collection[int]) -> list[int]:
    """Return the positions of all Uppers but the present ones, ascending."""
    return [p for p, owner in enumerate(assignment) if owner not in present]


def min_distance(grid: PatchGrid, assignment: tuple[int, ...]) -> float:
    """Return the smallest distance, in grid steps, between two positions of one Upper; infinity if there is no pair."""
    same = np.asarray(assignment)[:, None] == np.asarray(assignment)[None, :]
    np.fill_diagonal(same, False)
    return float(_distance(grid)[same].min(initial=np.inf))


def _distance(grid: PatchGrid) -> NDArray[np.float64]:
    rows, cols = np.divmod(np.arange(grid.num_patches), grid.cols)
    distance: NDArray[np.float64] = np.hypot(rows[:, None] - rows[None, :], cols[:, None] - cols[None, :])
    return distance


def _pair_cost(grid: PatchGrid) -> NDArray[np.float64]:
    distance = _distance(grid)
    np.fill_diagonal(distance, np.inf)
    return distance**-_DISTANCE_POWER


def _lattices(grid: PatchGrid, num_uppers: int) -> list[NDArray[np.int64]]:
    """Balanced colourings (a*row + col) mod M: good starting points, since equal colours form a lattice."""
    rows, cols = np.divmod(np.arange(grid.num_patches), grid.cols)
    colourings = [(a * rows + cols) % num_uppers for a in range(min(num_uppers, 64))]
    sizes = [np.bincount(groups, minlength=num_uppers) for groups in colourings]
    return [groups for groups, size in zip(colourings, sizes, strict=True) if size.max() - size.min() <= 1]


def _energy(groups: NDArray[np.int64], cost: NDArray[np.float64]) -> float:
    return float(cost[groups[:, None] == groups[None, :]].sum())


def _swap_down(groups: NDArray[np.int64], cost: NDArray[np.float64]) -> NDArray[np.int64]:
    """Swap the pair of positions that lowers the energy most, until none does."""
    groups = groups.copy()
    for _ in range(_MAX_SWAPS):
        member = np.eye(groups.max() + 1)[groups]
        to_group = cost @ member  # (P, M): cost of position p beside the positions of group m
        own = to_group[np.arange(len(groups)), groups]
        other = to_group[:, groups]  # (P, P): cost of p in the group of q
        change = other + other.T - own[:, None] - own[None, :] - 2 * cost
        change[groups[:, None] == groups[None, :]] = 0.0
        p, q = np.unravel_index(int(change.argmin()), change.shape)
        if change[p, q] > -1e-9:
            break
        groups[p], groups[q] = groups[q], groups[p]
    return groups


def _renumber(groups: NDArray[np.int64]) -> tuple[int, ...]:
    """Renumber the groups by first occurrence, so that M = P gives position p to Upper p."""
    order: dict[int, int] = {}
    return tuple(order.setdefault(int(m), len(order)) for m in groups)
