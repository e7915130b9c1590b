"""The optimiser that every party uses for its own weights."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn


def make_sgd(parameters: Iterable[nn.Parameter], momentum: float, weight_decay: float) -> torch.optim.SGD:
    """Return SGD whose learning rate comes with every step (`set_lr`); 0 until then."""
    return torch.optim.SGD(parameters, lr=0.0, momentum=momentum, weight_decay=weight_decay)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of all parameter groups."""
    for group in optimizer.param_groups:
        group["lr"] = lr
