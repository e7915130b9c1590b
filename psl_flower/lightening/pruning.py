"""Structured pruning: whole channels are cut, so that the network is smaller on every machine.

Channels that a residual sum joins are cut together, the same ones on all Uppers, because the Lower's weights serve all
positions; channels inside a block are chosen for that block alone. The channels with the largest weights are kept,
BatchNorm folded in (Li et al., Pruning Filters for Efficient ConvNets, 2017).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn

from psl_flower.errors import ConfigError
from psl_flower.lightening.sizing import scaled
from psl_flower.models import PatchSplitNet
from psl_flower.models.architectures import BackboneSize
from psl_flower.models.resnet import BasicBlock, Bottleneck


def ladder(second: BackboneSize, max_pruned: float, num_degrees: int) -> list[BackboneSize]:
    """Return the size at each degree of lightening, from the second model's own to the most pruned.

    Each degree keeps the same share of the one before, so that multiply-adds fall by about the same factor each time;
    degrees that would give the same channels are left out. The last degree cuts a share `max_pruned` of the channels,
    between 0 and 1; there are `num_degrees` beyond 0, 1 or more.
    """
    sizes = [second]
    for degree in range(1, num_degrees + 1):
        size = scaled(second, (1 - max_pruned) ** (degree / num_degrees))
        if size.widths != sizes[-1].widths:
            sizes.append(size)
    return sizes


def check_prunable(net: PatchSplitNet) -> None:
    """Raise ConfigError if the network has weights at the cut, whose channels cannot be pruned."""
    at_cut = [net.lower.joined, *(half.get_submodule("protection") for half in (net.lower, *net.uppers))]
    if any(list(module.parameters()) for module in at_cut):
        raise ConfigError("protection: its channels cannot be pruned; lighten a run without it")


@torch.no_grad()
def prune(net: PatchSplitNet, smaller: PatchSplitNet) -> PatchSplitNet:
    """Give `smaller` the weights of the channels of `net` that matter most; return it.

    It has the same depths as `net` and is no wider. Raises ConfigError as `check_prunable`.
    """
    check_prunable(net)
    layers = [layer for part in _parts(net) for layer in part]
    kept = _channels_to_keep(layers, {layer.out: layer.conv.out_channels for p in _parts(smaller) for layer in p})
    targets = [layer for part in _parts(smaller) for layer in part]
    for source, target in zip(layers, targets, strict=True):
        out, inner = kept[source.out], kept.get(source.input)
        weight = source.conv.weight[out]
        target.conv.weight.copy_(weight if inner is None else weight[:, inner])
        for name, tensor in target.norm.state_dict(keep_vars=True).items():
            value = getattr(source.norm, name)
            tensor.copy_(value[out] if value.ndim else value)
    classifier, smaller_classifier = (cast(nn.Linear, part.lower.fc) for part in (net, smaller))
    smaller_classifier.weight.copy_(classifier.weight[:, kept[layers[-1].out]])
    smaller_classifier.bias.copy_(classifier.bias)
    return smaller


@dataclass(frozen=True, slots=True)
class _Layer:
    """A convolution with its BatchNorm, and the groups of channels that it reads and writes; "" are the image's."""

    conv: nn.Conv2d
    norm: nn.BatchNorm2d
    input: str
    out: str


def _parts(net: PatchSplitNet) -> Iterator[list[_Layer]]:
    """Yield the layers of every Upper and of the Lower, in order."""
    for m, upper in enumerate(net.uppers):
        yield list(_layers(upper, f"upper{m}"))
    yield list(_layers(net.lower, "lower"))


def _layers(part: nn.Module, owner: str) -> Iterator[_Layer]:
    stream = ""
    for name, stage in part.named_children():
        if name == "conv1":
            stream = "stem"
            yield _layer(part, "conv1", "bn1", "", stream)
        elif name.startswith("layer"):
            for number, block in enumerate(cast(Iterator[BasicBlock | Bottleneck], stage.children())):
                before = stream or _stream_before(name, block)
                stream = before if block.downsample is None else name
                yield from _block_layers(block, f"{owner}.{name}.{number}", before, stream)


def _stream_before(stage: str, first_block: nn.Module) -> str:
    """Return the group of the channels that enter the Lower at this stage."""
    if stage == "layer1":
        return "stem"
    before = f"layer{int(stage[-1]) - 1}"
    # Without a convolution on the shortcut, the first stage keeps the stem's channels.
    return "stem" if before == "layer1" and isinstance(first_block, BasicBlock) else before


def _block_layers(block: BasicBlock | Bottleneck, owner: str, before: str, after: str) -> Iterator[_Layer]:
    yield _layer(block, "conv1", "bn1", before, f"{owner}.1")
    if isinstance(block, Bottleneck):
        yield _layer(block, "conv2", "bn2", f"{owner}.1", f"{owner}.2")
        yield _layer(block, "conv3", "bn3", f"{owner}.2", after)
    else:
        yield _layer(block, "conv2", "bn2", f"{owner}.1", after)
    if block.downsample is not None:
        yield _layer(block.downsample, "0", "1", before, after)


def _layer(owner: nn.Module, conv: str, norm: str, before: str, after: str) -> _Layer:
    found = cast(nn.Conv2d, owner.get_submodule(conv)), cast(nn.BatchNorm2d, owner.get_submodule(norm))
    return _Layer(*found, before, after)


def _channels_to_keep(layers: list[_Layer], num_kept: Mapping[str, int]) -> dict[str, torch.Tensor]:
    """Return, for each group, the channels with the largest weights, ascending."""
    importance: dict[str, torch.Tensor] = {}
    for layer in layers:
        variance = cast(torch.Tensor, layer.norm.running_var)
        scale = layer.norm.weight / torch.sqrt(variance + layer.norm.eps)
        own = (layer.conv.weight * scale[:, None, None, None]).abs().sum((1, 2, 3))
        # Each layer counts the same, however large its weights are.
        own = own / own.mean().clamp_min(torch.finfo(own.dtype).tiny)
        importance[layer.out] = importance.get(layer.out, torch.zeros_like(own)) + own
    return {group: scores.topk(num_kept[group]).indices.sort().values for group, scores in importance.items()}
