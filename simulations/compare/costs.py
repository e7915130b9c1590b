"""Computes machine-independent costs of methods: floating point operations, counted by torch, and weights."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from psl_flower.config import RunConfig
from psl_flower.engine.build import Blueprint
from psl_flower.stores.store_set import StoreSet
from simulations.compare.federated import parts
from simulations.compare.results import AVERAGING, PATCHES, Cost, Method

# BatchNorm needs two.
_BATCH = 2


def cost(method: Method, config: RunConfig, stores: StoreSet) -> Cost:
    """Return a method's cost; `config` and `stores` are those of its runs, of whole images but for patch-split."""
    description = stores.description
    blueprint = Blueprint(config, description)
    samples_N = description.samples_of("train")
    if method.kind == PATCHES:
        return _split(blueprint, len(samples_N))
    net = blueprint.network()
    images = torch.zeros(_BATCH, description.channels, *description.image_size)
    node_images = len(samples_N)
    if method.kind == AVERAGING:
        node_images = max(map(len, parts(config, method.own, stores)))
    weights = _weights(net)
    return Cost(
        node_flops=_flops(lambda: net(images)), server_flops=0.0, node_images=node_images, node_weights=weights,
        weights=weights,
    )  # fmt: skip


def _split(blueprint: Blueprint, num_images: int) -> Cost:
    description, shapes = blueprint.description, blueprint.smashed_shapes()
    busiest = max(shapes, key=lambda m: shapes[m][0])
    upper, lower, adaptation = blueprint.upper(busiest), blueprint.lower(), blueprint.adaptation()
    K, h, w, C = shapes[busiest]
    patches = torch.zeros(_BATCH * K, *blueprint.input_shape)
    smashed = torch.zeros(_BATCH, description.grid().num_patches, C, h, w, requires_grad=True)

    def serve() -> torch.Tensor:
        logits: torch.Tensor = lower(smashed)
        return logits.sum() + adaptation.for_all_patches(smashed).sum() if adaptation else logits

    return Cost(
        node_flops=_flops(lambda: upper(patches)),
        server_flops=_flops(serve),
        node_images=num_images,
        node_weights=_weights(upper),
        weights=_weights(lower) + description.num_uppers * _weights(upper),
    )


def _flops(forward: Callable[[], torch.Tensor]) -> float:
    """Return the operations of a forward and a backward pass, for one image."""
    with FlopCounterMode(display=False) as counter:
        forward().sum().backward()
    return float(counter.get_total_flops()) / _BATCH


def _weights(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
