"""The parts of an exported network before the Uppers, and between them and the Lower; without weights.

Shape suffixes: B batch, P patches, K positions of one Upper, N = B*K, C channels, H and W pixels, h and w of a patch.
"""

from __future__ import annotations

import torch
from torch import nn

from psl_flower.patches import PatchGrid
from psl_flower.patches.assignment import positions_by_upper
from psl_flower.patches.description import StoreSetDescription


class Cut(nn.Module):
    """Images to the patches of every Upper (B*K, C, h, w), cut by the network's grid."""

    def __init__(self, description: StoreSetDescription, grid: PatchGrid) -> None:
        super().__init__()
        self._grid = grid
        self._positions = [list(positions) for positions in positions_by_upper(description.assignment)]

    def forward(self, images_BCHW: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the patches of every Upper, in the images' dtype."""
        patches_BPChw = self._grid.split(images_BCHW)
        return tuple(
            torch.stack([patches_BPChw[:, p] for p in positions], 1).flatten(0, 1) for positions in self._positions
        )


class Join(nn.Module):
    """The smashed data of every Upper (B*K, C', h', w') to those of all positions (B, P, C', h', w')."""

    def __init__(self, description: StoreSetDescription) -> None:
        super().__init__()
        self._positions = [list(positions) for positions in positions_by_upper(description.assignment)]

    def forward(self, *smashed: torch.Tensor) -> torch.Tensor:
        """Return the smashed data of all positions, in their dtype."""
        by_position: dict[int, torch.Tensor] = {}
        for maps_NChw, positions in zip(smashed, self._positions, strict=True):
            maps_BKChw = maps_NChw.reshape(-1, len(positions), *maps_NChw.shape[1:])
            by_position |= {p: maps_BKChw[:, k] for k, p in enumerate(positions)}
        return torch.stack([by_position[p] for p in range(len(by_position))], 1)
