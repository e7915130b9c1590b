"""Encodes a patch's feature map as a few numbers, optionally rounded to levels; the Lower decodes them to a map.

The rounding is finite scalar quantisation (Mentzer et al., ICLR 2024): no codebook, so nothing but the weights is
learnt. Its gradient is passed straight through (Bengio, Leonard, Courville, 2013).

Shape suffixes: N patches, C channels, h and w of a feature map, d numbers of a patch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from psl_flower.models.cut import CutPair
from psl_flower.models.resnet import BasicBlock
from psl_flower.wire.codecs import rounded_to_levels


class _Round(torch.autograd.Function):
    """The nearest of some levels in -1..1; the gradient passes as it is."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, levels: int) -> torch.Tensor:
        """Return the rounded values, in the dtype of the values."""
        return _rounded(values, levels)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        """Return the gradient unchanged."""
        return gradients[0], None


class Codes(nn.Module):
    """tanh, then the nearest of `levels` numbers from -1 to 1, which the codec of codes carries exactly.

    In bfloat16 the numbers are rounded, and stay distinct.
    """

    def __init__(self, levels: int) -> None:
        super().__init__()
        self.levels = levels

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Return codes of any numbers, in the same shape and dtype."""
        bounded = torch.tanh(values)
        if not torch.is_grad_enabled():
            return _rounded(bounded, self.levels)  # an exported network knows no autograd
        result: torch.Tensor = _Round.apply(bounded, self.levels)
        return result


class Narrowing(nn.Sequential):
    """The Upper's half: from a patch's map to its numbers.

    The parts run one after the other. `deviation` is that of the noise that is added behind BatchNorm, before numbers
    are rounded to levels; 0: none.
    """

    def __init__(self, *parts: nn.Module, deviation: float = 0.0) -> None:
        super().__init__(*parts)
        self.deviation = deviation

    def forward(self, features_NChw: torch.Tensor, normal_Nd: torch.Tensor | None = None) -> torch.Tensor:
        """Return the numbers (N, d, 1, 1) of maps (N, C, h, w); standard normal numbers (N, d) make their noise."""
        values = features_NChw
        for part in self:
            values = part(values)
            if normal_Nd is not None and isinstance(part, nn.BatchNorm1d):
                values = values + (normal_Nd.to(values.device) * self.deviation).to(values.dtype)
        return values


def narrow_pair(channels: int, size: int, pool: int, levels: int, noise: float = 0.0) -> CutPair:
    """Return the pair that sends `size` numbers (N, size, 1, 1) for each patch.

    The Upper averages the map (N, C, h, w) to `pool` x `pool`, and maps that linearly to the numbers. The Lower maps
    them to `pool` x `pool` maps of C channels; a residual block joins those of neighbouring patches, since few stages
    or none may follow.

    Parameters
    ----------
    channels : int
        C.
    size : int
        Numbers of a patch.
    pool : int
        Height and width of the pooled map.
    levels : int
        Levels of every number, 2 or more; 0 leaves them as they are.
    noise : float
        Deviation of the noise on each number, in units of the number's own; 0: none. BatchNorm then has no weights:
        each number keeps deviation 1 over a batch, so no Upper can learn to outgrow the noise.
    """
    area = channels * pool * pool
    upper = [
        nn.AdaptiveAvgPool2d((pool, pool)),
        nn.Flatten(),
        nn.Linear(area, size),
        nn.BatchNorm1d(size, affine=not noise),
        *([Codes(levels)] if levels else []),
        nn.Unflatten(1, (size, 1, 1)),
    ]
    lower = [
        nn.Flatten(),
        nn.Linear(size, area),
        nn.Unflatten(1, (channels, pool, pool)),
        nn.BatchNorm2d(channels),
        nn.ReLU(inplace=True),
    ]
    return CutPair(Narrowing(*upper, deviation=noise), nn.Sequential(*lower), size, BasicBlock(channels, channels, 1))


def _rounded(values: torch.Tensor, levels: int) -> torch.Tensor:
    return rounded_to_levels(values, levels).to(values.dtype)
