"""Residual networks of He et al. (CVPR 2016) in stages, named and shaped as torchvision's: weights are exchangeable.

torchvision itself is not imported: its import loads torch's compiler, which doubles the start-up of every node.
Tests hold names, shapes and outputs to torchvision's.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import cast

import torch
from torch import nn
from torch.nn import functional as F

from psl_flower.models.architectures import BOTTLENECKED, BackboneSize, backbone_size, check_architecture


class ReplicatedConv2d(nn.Conv2d):
    """A convolution that repeats its input's border where nn.Conv2d pads with zeros; weights and names are the same.

    nn.Conv2d with `padding_mode="replicate"` computes the same, but its backward pass on GPUs adds in no fixed order:
    no run could be repeated bit by bit.
    """

    def _conv_forward(self, input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        padded_NChw, counts = input, cast(tuple[int, int], self.padding)
        for axis, count in zip((2, 3), counts, strict=True):
            first, last = padded_NChw.narrow(axis, 0, 1), padded_NChw.narrow(axis, padded_NChw.shape[axis] - 1, 1)
            padded_NChw = torch.cat([*[first] * count, padded_NChw, *[last] * count], axis)
        return F.conv2d(padded_NChw, weight, bias, self.stride, 0, self.dilation, self.groups)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut: (N, in, h, w) -> (N, width, h/stride, w/stride)."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int, padding: str = "zeros") -> None:
        super().__init__()
        self.conv1 = _conv(in_channels, width, 3, stride, padding)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = _conv(width, width, 3, padding=padding)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _shortcut(in_channels, width, stride)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return the block's output."""
        out = self.relu(self.bn1(self.conv1(features)))
        out = self.bn2(self.conv2(out))
        out += features if self.downsample is None else self.downsample(features)
        result: torch.Tensor = self.relu(out)
        return result


class Bottleneck(nn.Module):
    """1x1, 3x3 (strided) and 1x1 convolutions beside a shortcut: (N, in, h, w) -> (N, 4*width, h/stride, w/stride)."""

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int, padding: str = "zeros") -> None:
        super().__init__()
        self.conv1 = _conv(in_channels, width, 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _conv(width, width, 3, stride, padding)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = _conv(width, width * self.expansion, 1)
        self.bn3 = nn.BatchNorm2d(width * self.expansion)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(in_channels, width * self.expansion, stride)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return the block's output."""
        out = self.relu(self.bn1(self.conv1(features)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        out += features if self.downsample is None else self.downsample(features)
        result: torch.Tensor = self.relu(out)
        return result


def stages(
    backbone: str,
    stem: str,
    in_channels: int,
    num_classes: int,
    size: BackboneSize | None = None,
    padding: str = "zeros",
) -> dict[str, Callable[[], nn.Module]]:
    """Return the factories of the backbone's stages, by torchvision's names, in order; a party calls only its own.

    `size` is torchvision's by default, and so is the padding of convolutions; "replicate" repeats the border.

    Raises
    ------
    ConfigError
        If there is no such backbone, stem or padding.
    """
    check_architecture(backbone, stem, padding)
    block = Bottleneck if backbone in BOTTLENECKED else BasicBlock
    small = stem == "cifar"
    size = size or backbone_size(backbone)
    channels = size.widths[0]
    parts: dict[str, Callable[[], nn.Module]] = {
        "conv1": partial(_conv, in_channels, channels, *((3, 1) if small else (7, 2)), padding),
        "bn1": partial(nn.BatchNorm2d, channels),
        "relu": partial(nn.ReLU, inplace=True),
        "maxpool": nn.Identity if small else partial(nn.MaxPool2d, kernel_size=3, stride=2, padding=1),
    }
    for number, (depth, width) in enumerate(zip(size.depths, size.widths, strict=True), start=1):
        stride = 1 if number == 1 else 2
        parts[f"layer{number}"] = partial(_layer, block, depth, channels, width, stride, padding)
        channels = width * block.expansion
    parts["avgpool"] = partial(nn.AdaptiveAvgPool2d, (1, 1))
    parts["fc"] = partial(nn.Linear, channels, num_classes)
    return parts


def _layer(
    block: type[BasicBlock | Bottleneck], depth: int, in_channels: int, width: int, stride: int, padding: str
) -> nn.Sequential:
    blocks = []
    for place in range(depth):
        blocks.append(block(in_channels, width, stride if place == 0 else 1, padding))
        in_channels = width * block.expansion
    return nn.Sequential(*blocks)


def _conv(in_channels: int, out_channels: int, size: int, stride: int = 1, padding: str = "zeros") -> nn.Conv2d:
    make = ReplicatedConv2d if padding == "replicate" else nn.Conv2d
    return make(in_channels, out_channels, size, stride, padding=size // 2, bias=False)


def _shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Module | None:
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(_conv(in_channels, out_channels, 1, stride), nn.BatchNorm2d(out_channels))
