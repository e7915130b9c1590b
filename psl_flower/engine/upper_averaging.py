"""Averaging the Uppers' weights: at regular intervals all Uppers continue from the mean of their weights.

What an Upper shares are its weights and BatchNorm's running statistics; its momentum stays its own. So McMahan et al.
(AISTATS 2017) average clients' whole networks; here it is the Uppers alone, whose patches are of different positions.

Shape suffixes: N numbers that one Upper shares.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True, slots=True, kw_only=True)
class Averaging:
    """When Uppers are averaged, and how many numbers each shares then."""

    every: int  #: Steps from one averaging to the next, counted over the whole run, 1 or more.
    weight_count: int  #: Length of what `weight_vector` returns of any of the Uppers.

    def is_due(self, step: int) -> bool:
        """Return True if the Uppers are averaged after this many steps."""
        return step % self.every == 0


def weight_count(model: nn.Module) -> int:
    """Return the length of an Upper's `weight_vector`."""
    return sum(tensor.numel() for tensor in _tensors(model))


@torch.no_grad()
def weight_vector(model: nn.Module) -> torch.Tensor:
    """Return a copy of an Upper's weights as one vector (N,), on the CPU, in the model's dtype."""
    return torch.cat([tensor.flatten().cpu() for tensor in _tensors(model)])


@torch.no_grad()
def load_weights(model: nn.Module, mean_N: torch.Tensor) -> None:
    """Replace the model's weights by a vector (N,) as `weight_vector` returns it.

    Raises
    ------
    RuntimeError
        If the vector has another length; nothing is changed then.
    """
    tensors = _tensors(model)
    parts = torch.split(mean_N, [tensor.numel() for tensor in tensors])
    for tensor, part in zip(tensors, parts, strict=True):
        tensor.copy_(part.view(tensor.shape))


def mean(rows: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the mean (N,) of one or more vectors (N,), summed in order, so that all machines get the same bits."""
    total_N = rows[0].clone()
    for row_N in rows[1:]:
        total_N += row_N
    return total_N.div_(len(rows))


def _tensors(model: nn.Module) -> list[torch.Tensor]:
    # BatchNorm's count of batches is a whole number, and the same wherever an Upper was not absent.
    return [*model.parameters(), *(buffer for buffer in model.buffers() if buffer.is_floating_point())]
