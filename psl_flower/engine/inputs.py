"""From stored pixels to a network's input.

Shape suffixes: B batch, K patches of one Upper, N = B*K, C channels, H and W pixels of a patch as stored, with its
margin, h and w of a patch as the network takes it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from psl_flower.engine.augment import Augmentation
from psl_flower.wire.plan import Plan


def normalise(
    pixels_NChw: torch.Tensor | NDArray[np.uint8],
    mean: Sequence[float],
    std: Sequence[float],
    device: torch.device | str = "cpu",
) -> torch.Tensor:
    """Return (pixels / 255 - mean) / std, float32, channels last, on `device`.

    Parameters
    ----------
    pixels_NChw : torch.Tensor or ndarray
        uint8 (N, C, h, w).
    mean, std : sequence of float
        Per channel, of pixels scaled to 0..1; a standard deviation of 0 (a channel that never changes) counts as 1.
    device : torch.device
        Of the result.
    """
    pixels = torch.from_numpy(pixels_NChw) if isinstance(pixels_NChw, np.ndarray) else pixels_NChw
    scaled = pixels.to(device).to(torch.float32, memory_format=torch.channels_last) / 255.0
    return scaled.sub_(channel_column(mean, device)).div_(channel_column([s or 1.0 for s in std], device))


def channel_column(values: Sequence[float], device: torch.device | str = "cpu") -> torch.Tensor:
    """Return one float32 value for each channel as (C, 1, 1)."""
    return torch.tensor(values, dtype=torch.float32, device=device)[:, None, None]


def network_input(
    stored_BKCHW: NDArray[np.uint8],
    positions: Sequence[int],
    plan: Plan,
    augmentation: Augmentation,
    mean: Sequence[float],
    std: Sequence[float],
    device: torch.device | str = "cpu",
) -> torch.Tensor:
    """Return the stored patches (B, K, C, H, W) of a plan's samples as (B*K, C, h, w), normalised.

    Unless the plan evaluates, they are augmented.

    Parameters
    ----------
    stored_BKCHW : ndarray
        uint8, of the plan's samples at K positions of the grid.
    positions : sequence of int
        These positions.
    plan : Plan
        The step.
    augmentation : Augmentation
        What is drawn in training, and how the stores are cut.
    mean, std, device
        As in `normalise`.
    """
    given_BKCHW, K = torch.from_numpy(stored_BKCHW).to(device), stored_BKCHW.shape[1]
    if plan.mode == "evaluate":
        return normalise(augmentation.unmoved(given_BKCHW).flatten(0, 1), mean, std, device)
    samples_B, seed = plan.sample_indices(), plan.augment_seed
    patches_NChw = normalise(augmentation.apply(given_BKCHW, seed, samples_B).flatten(0, 1), mean, std, device)
    h, w = patches_NChw.shape[2:]
    blanked_BKhw = augmentation.blanked(positions, seed, samples_B)
    if blanked_BKhw is not None:
        # After normalisation 0 is the mean colour.
        patches_NChw.masked_fill_(torch.from_numpy(blanked_BKhw.reshape(-1, 1, h, w)).to(device), 0.0)
    if plan.mix_weight < 1.0:
        partners_B1 = augmentation.partners(seed, samples_B)[:, None]
        partners_N = torch.from_numpy((partners_B1 * K + np.arange(K)).reshape(-1)).to(device)
        # Separate operations: a fused one rounds differently depending on the position in memory.
        others_NChw = patches_NChw[partners_N].mul_(1.0 - plan.mix_weight)
        patches_NChw = patches_NChw.mul_(plan.mix_weight).add_(others_NChw)
    return patches_NChw
