"""Quantisation-aware training: numbers are rounded as the int8 artefact will round them.

BatchNorm is folded into the convolutions first, since the artefact has none. Then the weights of every convolution and
of the classifier are rounded for each output channel (symmetric), and what enters it as a whole (asymmetric, 8 bits,
from the smallest to the largest number, averaged over steps). Gradients pass the rounding as they are. The operators
are torch's own (`torch.fake_quantize_per_channel_affine`), the artefact is made by onnxruntime
(`psl_flower.lightening.artefacts`).
"""

from __future__ import annotations

import copy
from typing import Any, TypeVar, cast

import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.fusion import fuse_conv_bn_eval

from psl_flower.lightening.settings import LARGEST_WEIGHT
from psl_flower.models import PatchSplitNet
from psl_flower.models.resnet import BasicBlock, Bottleneck
from psl_flower.models.split import Lower, Upper

Part = TypeVar("Part", PatchSplitNet, Upper, Lower)

_ACTIVATION_MAX = 255
_MOMENTUM = 0.05


class RoundedWeights(nn.Module):
    """Rounds weights (out, ...) to whole multiples of a scale for each output channel."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        self._largest = LARGEST_WEIGHT[bits]

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """Return the rounded weights."""
        largest = weight.detach().flatten(1).abs().amax(1)
        scale = (largest / self._largest).clamp_min(torch.finfo(torch.float32).tiny * 256)
        zeros = torch.zeros_like(scale, dtype=torch.int32)
        rounded: torch.Tensor = torch.fake_quantize_per_channel_affine(
            weight, scale, zeros, 0, -self._largest, self._largest
        )
        return rounded


class RoundedInput(nn.Module):
    """Rounds what enters a layer to 8 bits, over a range that it learns in train mode."""

    low: torch.Tensor
    high: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        # 0 to 0 until values were seen: checkpoints refuse numbers that are not finite.
        self.register_buffer("low", torch.tensor(0.0))
        self.register_buffer("high", torch.tensor(0.0))

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Return the rounded values."""
        if self.training:
            # 0 is always representable: convolutions pad with it.
            low, high = values.detach().min().clamp_max(0.0), values.detach().max().clamp_min(0.0)
            unseen = self.low == self.high
            self.low.copy_(torch.where(unseen, low, self.low.lerp(low, _MOMENTUM)))
            self.high.copy_(torch.where(unseen, high, self.high.lerp(high, _MOMENTUM)))
        scale = ((self.high - self.low) / _ACTIVATION_MAX).clamp_min(torch.finfo(torch.float32).eps)
        zero_point = (-self.low / scale).round().clamp(0, _ACTIVATION_MAX).to(torch.int32)
        rounded: torch.Tensor = torch.fake_quantize_per_tensor_affine(values, scale, zero_point, 0, _ACTIVATION_MAX)
        return rounded


def folded(net: Part) -> Part:
    """Return a copy without BatchNorm, with the same answers as the network, or part of one, in eval mode."""
    result = copy.deepcopy(net).eval()
    for part in [module for module in result.modules() if isinstance(module, Upper | Lower)]:
        if hasattr(part, "conv1"):
            _fold(part, "conv1", "bn1")
    for block in [module for module in result.modules() if isinstance(module, BasicBlock | Bottleneck)]:
        for number in (1, 2, 3) if isinstance(block, Bottleneck) else (1, 2):
            _fold(block, f"conv{number}", f"bn{number}")
        if block.downsample is not None:
            _fold(block.downsample, "0", "1")
    return result


def with_rounding(net: Part, weight_bits: int) -> Part:
    """Return a copy of a folded network, or part of one, that rounds its layers' weights and inputs; see the module."""
    # Folding makes biases that are not trained, as the convolutions had none.
    result = copy.deepcopy(net).requires_grad_(True)
    for layer in [module for module in result.modules() if isinstance(module, nn.Conv2d | nn.Linear)]:
        parametrize.register_parametrization(layer, "weight", RoundedWeights(weight_bits))
        layer.add_module("rounded_input", RoundedInput())
        layer.register_forward_pre_hook(_round_input)
    return result


def without_rounding(net: PatchSplitNet) -> dict[str, torch.Tensor]:
    """Return the weights that were trained under rounding, not rounded, by the names of the folded network."""
    weights = {}
    for name, tensor in net.state_dict().items():
        if ".rounded_input." not in name:
            weights[name.replace("parametrizations.weight.original", "weight")] = tensor
    return weights


def _fold(owner: nn.Module, conv: str, norm: str) -> None:
    layers = cast(nn.Conv2d, owner.get_submodule(conv)), cast(nn.BatchNorm2d, owner.get_submodule(norm))
    fused = fuse_conv_bn_eval(*layers)
    setattr(owner, conv, fused)
    setattr(owner, norm, nn.Identity())


def _round_input(layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return (layer.get_submodule("rounded_input")(inputs[0]), *inputs[1:])
