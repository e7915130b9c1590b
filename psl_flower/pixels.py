"""From stored pixels to a network's input.

Shape suffixes: B batch, K patches of one Upper, N = B*K, C channels, h and w pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray


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
        Where the result is to be.
    """
    pixels = torch.from_numpy(pixels_NChw) if isinstance(pixels_NChw, np.ndarray) else pixels_NChw
    scaled = pixels.to(device).to(torch.float32, memory_format=torch.channels_last) / 255.0
    return scaled.sub_(channel_column(mean, device)).div_(channel_column([s or 1.0 for s in std], device))


def channel_column(values: Sequence[float], device: torch.device | str = "cpu") -> torch.Tensor:
    """Return one float32 value for each channel as (C, 1, 1)."""
    return torch.tensor(values, dtype=torch.float32, device=device)[:, None, None]
