"""BatchNorm where a party has one sample of a batch alone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

# Added to the error of a party's net that raises there nevertheless.
REFUSED = (
    "its net has one sample of this batch alone and does not take it; use larger batches, missing='drop', or in place "
    "of BatchNorm a layer without statistics of the batch, such as LayerNorm. It"
)


@contextlib.contextmanager
def lone_sample(net: nn.Module) -> Iterator[None]:
    """Let BatchNorm take one value per channel inside the with-block, which torch refuses in training.

    Such a layer normalises by its running statistics, as in evaluation, and does not move them; its weight and bias
    learn. A layer that gets several values of the one sample, such as the pixels of a map, works as it always does.
    """
    layers = [each for each in net.modules() if isinstance(each, _BatchNorm) and each.running_mean is not None]
    modes: dict[nn.Module, bool] = {each: each.training for each in layers}

    def choose(layer: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        one_value = inputs[0].dim() > 1 and inputs[0].numel() == inputs[0].shape[1]
        layer.training = modes[layer] and not one_value

    hooks = [each.register_forward_pre_hook(choose) for each in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for each, mode in modes.items():
            each.training = mode
