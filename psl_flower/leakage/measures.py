"""The similarity of two images, and the uncertainty of a mean.

Shape suffixes: B images, C channels, H and W pixels, N and M images compared with each other.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

# Constants of Wang et al., Image Quality Assessment, IEEE TIP 2004, for pixels in 0..1.
_C1, _C2 = 0.01**2, 0.03**2
WINDOW = 7
_RESAMPLES = 1000


class Interval(NamedTuple):
    """A mean over images with its 95 % interval, from resampling the images."""

    #: Values in the unit of the averaged quantity.
    mean: float
    low: float
    high: float


def ssim(first_BCHW: torch.Tensor, second_BCHW: torch.Tensor) -> torch.Tensor:
    """Return the structural similarity (B,) of images with pixels in 0..1, at most 1; differentiable.

    Means and sample covariances over windows of 7x7 pixels (or of the largest odd size that fits) that lie wholly
    inside, averaged over windows and channels.
    """
    side = min(WINDOW, *first_BCHW.shape[2:])
    side -= 1 - side % 2
    unbiased = side**2 / max(side**2 - 1, 1)

    def mean(values_BCHW: torch.Tensor) -> torch.Tensor:
        return F.avg_pool2d(values_BCHW, side, stride=1)

    a, b = mean(first_BCHW), mean(second_BCHW)
    var_a = unbiased * (mean(first_BCHW * first_BCHW) - a * a)
    var_b = unbiased * (mean(second_BCHW * second_BCHW) - b * b)
    covariance = unbiased * (mean(first_BCHW * second_BCHW) - a * b)
    above = (2 * a * b + _C1) * (2 * covariance + _C2)
    below = (a * a + b * b + _C1) * (var_a + var_b + _C2)
    similarity_B: torch.Tensor = (above / below).mean((1, 2, 3))
    return similarity_B


def psnr(first_BCHW: torch.Tensor, second_BCHW: torch.Tensor) -> torch.Tensor:
    """Return the peak signal-to-noise ratio (B,) in dB of images with pixels in 0..1; 100 at most, for equal images."""
    error_B = (first_BCHW - second_BCHW).square().mean((1, 2, 3))
    return -10 * error_B.clamp_min(1e-10).log10()


def ranks(
    found_NCHW: torch.Tensor, true_NCHW: torch.Tensor, others_MCHW: torch.Tensor | None = None
) -> NDArray[np.int64]:
    """Return, for each reconstruction (N,), the rank of its true image by mean squared error, from 1.

    Among all N true images and the M others. An image that is just as near counts before the true one.
    """
    candidates = true_NCHW if others_MCHW is None else torch.cat([true_NCHW, others_MCHW])
    distance_NM = torch.cdist(found_NCHW.flatten(1), candidates.flatten(1))
    rank_N: NDArray[np.int64] = (distance_NM <= distance_NM.diagonal()[:, None]).sum(1).numpy()
    return rank_N


def interval(values_N: NDArray[np.floating]) -> Interval:
    """Return the mean of values (N,) with its interval; the same for the same values."""
    draws = np.random.default_rng(0).integers(len(values_N), size=(_RESAMPLES, len(values_N)))
    means = values_N[draws].mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(float(values_N.mean()), float(low), float(high))
