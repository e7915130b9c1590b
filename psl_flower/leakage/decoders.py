"""Decoders: networks that make an image of what crosses the cut, each of another build.

All take smashed data (B, P, C, h, w) of any size and return images (B, channels, H, W) with pixels in 0..1.

Shape suffixes: B batch, P positions, C channels, h and w of a patch's smashed data, H and W pixels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from psl_flower.patches import PatchGrid

# Numbers that the dense decoder reads at most; larger maps are averaged first.
_MOST_DENSE = 8192
_HIDDEN = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """What a decoder is made for."""

    grid: PatchGrid  #: Grid that images are cut by.
    smashed: tuple[int, int, int]  #: (C, h, w) of a patch's smashed data.
    channels: int  #: Channels of the images.


class AttackDecoder(nn.Module, ABC):
    """A network from smashed data to images, whose first step is linear."""

    @abstractmethod
    def begin_with(self, alone: nn.Module, shares: Sequence[float]) -> bool:
        """Become, for several looks side by side along channels, the decoder `alone` of their weighted sum.

        `alone` is of the same build; `shares` are the weights of the looks. Return whether that is possible; else this
        decoder is left as it is.
        """

    def _take(self, alone: nn.Module, name: str, first: torch.Tensor) -> None:
        """Take over all weights of another decoder, but those of this name."""
        self.load_state_dict(alone.state_dict() | {name: first})


class Dense(AttackDecoder):
    """All numbers of an image through two hidden layers to a coarse map, which convolutions refine."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        P, (C, h, w) = sizes.grid.num_patches, sizes.smashed
        while P * C * h * w > _MOST_DENSE and h * w > 1:
            h, w = -(-h // 2), -(-w // 2)
        self._given, self._size = (P, C, h, w), sizes.grid.image_size
        self._coarse = (-(-self._size[0] // 4), -(-self._size[1] // 4))
        self.numbers = nn.Sequential(
            nn.AdaptiveAvgPool2d((h, w)),
            nn.Flatten(),
            nn.Linear(P * C * h * w, _HIDDEN),
            nn.BatchNorm1d(_HIDDEN),
            nn.ReLU(inplace=True),
            nn.Linear(_HIDDEN, 32 * self._coarse[0] * self._coarse[1]),
        )
        self.refine = nn.Sequential(_conv(32, 32), _Upsampled(2), _conv(32, 32), _Upsampled(2), _conv(32, 24))
        self.last = nn.Conv2d(24, sizes.channels, 3, padding=1)

    def forward(self, smashed_BPChw: torch.Tensor) -> torch.Tensor:
        """Return the images."""
        coarse = self.numbers(smashed_BPChw.flatten(1, 2)).unflatten(1, (32, *self._coarse))
        return torch.sigmoid(self.last(_fitted(self.refine(coarse), self._size)))

    def begin_with(self, alone: nn.Module, shares: Sequence[float]) -> bool:
        """See `AttackDecoder`; not where many looks are averaged more coarsely than one."""
        assert isinstance(alone, Dense)
        P, C, h, w = alone._given
        if self._given != (P, C * len(shares), h, w):
            return False
        name = "numbers.2.weight"
        its = alone.state_dict()[name].unflatten(1, (P, C, h, w))
        self._take(alone, name, torch.cat([share * its for share in shares], dim=2).flatten(1))
        return True


class Convolutional(AttackDecoder):
    """A mixing of channels for each position, the map of all positions, and residual convolutions up to the image."""

    def __init__(self, sizes: Sizes, width: int = 32) -> None:
        super().__init__()
        P, (C, h, w) = sizes.grid.num_patches, sizes.smashed
        self._grid, self._size = sizes.grid, sizes.grid.image_size
        self.mix = nn.Parameter(torch.randn(P, C, width) / C**0.5)
        steps: list[nn.Module] = [_Residual(width)]
        height, across = sizes.grid.rows * h, sizes.grid.cols * w
        while height * 2 <= self._size[0] and across * 2 <= self._size[1]:
            steps += [_Upsampled(2), _Residual(width)]
            height, across = height * 2, across * 2
        self.steps = nn.Sequential(*steps)
        self.last = nn.Conv2d(width, sizes.channels, 3, padding=1)

    def forward(self, smashed_BPChw: torch.Tensor) -> torch.Tensor:
        """Return the images."""
        mixed = torch.einsum("bpchw,pcd->bpdhw", smashed_BPChw, self.mix)
        features = _fitted(self.steps(self._grid.tile(mixed)), self._size)
        return torch.sigmoid(self.last(features))

    def begin_with(self, alone: nn.Module, shares: Sequence[float]) -> bool:
        """See `AttackDecoder`."""
        assert isinstance(alone, Convolutional)
        self._take(alone, "mix", torch.cat([share * alone.mix.detach() for share in shares], dim=1))
        return True


DECODERS: dict[str, Callable[[Sizes], AttackDecoder]] = {"dense": Dense, "convolutional": Convolutional}


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(_conv(width, width), nn.Conv2d(width, width, 3, padding=1))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = features + self.body(features)
        return result


class _Upsampled(nn.Module):
    def __init__(self, times: int) -> None:
        super().__init__()
        self._times = times

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return F.interpolate(features, scale_factor=self._times, mode="nearest")


def _conv(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


def _fitted(features: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Return a map of the image's size: overlapping patches make it larger, odd sizes smaller or larger."""
    if tuple(features.shape[2:]) == size:
        return features
    return F.interpolate(features, size=size, mode="bilinear", align_corners=False)
