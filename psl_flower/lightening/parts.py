"""The parts of a network that are exported apart: cut, Upper, join, Lower.

Shape suffixes: B batch, P patches, K positions of one Upper, N = B*K, C channels, H and W pixels, h and w of a patch.
"""

from __future__ import annotations

import torch
from torch import nn

from psl_flower.engine.inputs import channel_column
from psl_flower.models import PatchSplitNet
from psl_flower.models.split import Lower, Upper
from psl_flower.patches.description import StoreSetDescription


class OfPatches(nn.Module):
    """An Upper with its normalisation inside."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, upper: Upper, description: StoreSetDescription) -> None:
        super().__init__()
        self.upper = upper
        self.register_buffer("mean", channel_column(description.mean))
        self.register_buffer("std", channel_column([s or 1.0 for s in description.std]))

    def forward(self, patches_NChw: torch.Tensor) -> torch.Tensor:
        """Return smashed data (N, C', h', w') of patches (N, C, h, w), float32 pixels in 0..1."""
        smashed: torch.Tensor = self.upper((patches_NChw - self.mean) / self.std)
        return smashed


class Tail(nn.Module):
    """The Lower without the choice of mirrored samples."""

    def __init__(self, lower: Lower) -> None:
        super().__init__()
        self.lower = lower

    def forward(self, smashed_BPChw: torch.Tensor) -> torch.Tensor:
        """Return logits (B, classes)."""
        logits: torch.Tensor = self.lower(smashed_BPChw)
        return logits


class Cut(nn.Module):
    """Images to the patches of every Upper (B*K, C, h, w)."""

    def __init__(self, net: PatchSplitNet, description: StoreSetDescription) -> None:
        super().__init__()
        self._grid = net.grid
        self._positions = [list(description.positions_of(m)) for m in range(description.num_uppers)]

    def forward(self, images_BCHW: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the patches of every Upper, in the images' dtype."""
        patches_BPChw = self._grid.split(images_BCHW)
        return tuple(
            torch.stack([patches_BPChw[:, p] for p in positions], 1).flatten(0, 1) for positions in self._positions
        )


class Join(nn.Module):
    """The smashed data of every Upper (B*K, C', h', w') to those of all positions (B, P, C', h', w')."""

    def __init__(self, net: PatchSplitNet, description: StoreSetDescription) -> None:
        super().__init__()
        self._positions = [list(description.positions_of(m)) for m in range(description.num_uppers)]
        self._num_patches = len(net.assignment)

    def forward(self, *smashed: torch.Tensor) -> torch.Tensor:
        """Return the smashed data of all positions, in their dtype."""
        by_position: dict[int, torch.Tensor] = {}
        for maps_NChw, positions in zip(smashed, self._positions, strict=True):
            maps_BKChw = maps_NChw.reshape(-1, len(positions), *maps_NChw.shape[1:])
            by_position |= {p: maps_BKChw[:, k] for k, p in enumerate(positions)}
        return torch.stack([by_position[p] for p in range(self._num_patches)], 1)
