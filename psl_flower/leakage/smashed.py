"""Smashed data as an attacker has them: computed, scaled, and what stands in their place for the floors.

Shape suffixes: N images, P positions, C channels, h and w of a patch's smashed data, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from psl_flower.engine.inputs import channel_column, normalise
from psl_flower.leakage.attack import Pairs
from psl_flower.models import PatchSplitNet
from psl_flower.models.split import Upper
from psl_flower.patches.description import StoreSetDescription
from psl_flower.protection.codes import Narrowing
from psl_flower.seeds import derive

_BATCH = 256


@torch.no_grad()
def smash(nets: Sequence[PatchSplitNet], description: StoreSetDescription, images_NCHW: torch.Tensor) -> torch.Tensor:
    """Return the smashed data (N, P, C * looks, h, w) of images uint8, from networks in eval mode.

    Where nodes add noise, each image and look has its own draws.
    """
    parts, generator = [], torch.Generator().manual_seed(derive(len(images_NCHW), "noise of an audit"))
    for images in images_NCHW.split(_BATCH):
        pixels = normalise(images, description.mean, description.std, torch.device("cpu"))
        parts.append(
            torch.cat([net.eval().smash(pixels, normal_for(net, len(pixels), generator)) for net in nets], dim=2)
        )
    return torch.cat(parts)


def normal_for(net: PatchSplitNet, num_images: int, generator: torch.Generator) -> dict[int, torch.Tensor]:
    """Return new standard normal numbers for the Uppers' noise, as `PatchSplitNet.smash` takes them; {} without noise.

    Nodes draw theirs from secrets. An attacker does not have these, but knows the distribution.
    """
    drawn = {}
    for m, upper in enumerate(net.uppers):
        assert isinstance(upper, Upper)
        if isinstance(upper.protection, Narrowing) and upper.protection.deviation:
            rows = num_images * net.assignment.count(m)
            drawn[m] = torch.randn(rows, upper.smashed_channels, generator=generator)
    return drawn


def normalised(pixels_NCHW: torch.Tensor, description: StoreSetDescription) -> torch.Tensor:
    """Return pixels in 0..1 as a network takes them; differentiable."""
    mean, std = channel_column(description.mean), channel_column([s or 1.0 for s in description.std])
    return ((pixels_NCHW - mean) / std).contiguous(memory_format=torch.channels_last)


def smashed_bytes(net: PatchSplitNet, description: StoreSetDescription) -> int:
    """Return the bytes of an image's smashed data in one look, as float32."""
    images = torch.zeros(1, description.channels, *description.image_size, dtype=torch.uint8)
    return smash([net], description, images).numel() * 4


def in_place_of_smashed(values_NK: torch.Tensor, num_patches: int) -> torch.Tensor:
    """Return K numbers of each image as (N, P, K, 1, 1), the same at every position."""
    return values_NK[:, None, :, None, None].expand(-1, num_patches, -1, 1, 1)


def one_hot(labels_N: NDArray[np.int64], num_classes: int) -> torch.Tensor:
    """Return classes as float32 (N, K) of 0 and 1."""
    return torch.nn.functional.one_hot(torch.from_numpy(labels_N), num_classes).float()


@torch.no_grad()
def logits(net: PatchSplitNet, smashed_NPChw: torch.Tensor) -> torch.Tensor:
    """Return the logits (N, K) that the Lower makes of smashed data of one look."""
    return torch.cat([net.eval().join(part) for part in smashed_NPChw.split(_BATCH)])


class Scaling(NamedTuple):
    """To mean 0 and deviation 1 of each channel and position."""

    #: float32 (1, P, C, 1, 1).
    mean_PC: torch.Tensor
    std_PC: torch.Tensor

    @classmethod
    def of(cls, smashed_NPChw: torch.Tensor) -> Scaling:
        """Return the scaling of these smashed data, two images or more."""
        mean_PC, std_PC = (part((0, 3, 4), keepdim=True) for part in (smashed_NPChw.mean, smashed_NPChw.std))
        # A channel that hardly ever changes must not outweigh all others.
        return cls(mean_PC, std_PC.clamp_min(max(1e-3, 0.02 * float(std_PC.mean()))))

    def __call__(self, pairs: Pairs) -> Pairs:
        """Return the images with smashed data that are scaled."""
        return pairs._replace(smashed_NPChw=self.scaled(pairs.smashed_NPChw))

    def scaled(self, smashed_NPChw: torch.Tensor) -> torch.Tensor:
        """Return smashed data that are scaled."""
        return (smashed_NPChw - self.mean_PC) / self.std_PC


def unique_share(smashed_NPChw: torch.Tensor) -> float:
    """Return the share of images whose smashed data no other of them has."""
    _, inverse_N, counts = smashed_NPChw.flatten(1).unique(dim=0, return_inverse=True, return_counts=True)
    return float((counts[inverse_N] == 1).float().mean())
