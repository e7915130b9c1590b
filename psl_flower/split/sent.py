"""Describes what a party's model returns for one sample, and packs it for the wire. Shape suffix B: batch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import msgspec
import torch

from psl_flower.errors import ConfigError
from psl_flower.wire.frames import MAX_RANK

Outputs = torch.Tensor | tuple[torch.Tensor, ...]


class Sent(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The shapes, without the batch, of the tensors that a model returns: one, or several as a tuple.

    On the wire several are one tensor, flat and side by side.
    """

    shapes: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, given: int | Sequence[int] | Sequence[Sequence[int]], name: str) -> Sent:
        """Return a party's declaration: a shape, or a list of shapes.

        Raises
        ------
        ConfigError
            If a shape has too many sizes, or one that is not a positive number.
        """
        parts: list[int | Sequence[int]] = [given] if isinstance(given, int) else list(given)
        sizes = tuple(part for part in parts if isinstance(part, int))
        # Of one shape the parts are numbers, of several they are shapes.
        shapes = (sizes,) if len(sizes) == len(parts) else tuple(map(_shape, parts))
        for shape in shapes:
            if len(shape) >= MAX_RANK or not all(isinstance(size, int) and size > 0 for size in shape):
                raise ConfigError(
                    f"parties: {name}: expected a shape of up to {MAX_RANK - 1} positive sizes, got {given!r}"
                )
        return cls(shapes)

    @property
    def wire_shape(self) -> tuple[int, ...]:
        """The shape on the wire, without the batch."""
        return self.shapes[0] if len(self.shapes) == 1 else (sum(map(math.prod, self.shapes)),)

    def packed(self, output: object, num_samples: int, whose: str) -> torch.Tensor:
        """Return a model's output as one tensor, (B, *wire_shape).

        Raises
        ------
        ConfigError
            If it is not what the training expects of B samples, or not float32.
        """
        parts = output if isinstance(output, tuple) else (output,)
        kinds = [part.dtype if isinstance(part, torch.Tensor) else type(part).__name__ for part in parts]
        if any(kind != torch.float32 for kind in kinds):
            raise ConfigError(f"{whose}: expected its net to return float32 numbers, got {_listed(kinds)}")
        found = [tuple(part.shape) for part in parts if isinstance(part, torch.Tensor)]
        expected = [(num_samples, *shape) for shape in self.shapes]
        if found != expected:
            raise ConfigError(
                f"{whose}: for {num_samples} samples its net returned {_listed(found)}, the training expects "
                f"{_listed(expected)}; change the net, or the shape in the training's parties"
            )
        tensors = [part for part in parts if isinstance(part, torch.Tensor)]
        if len(tensors) == 1:
            return tensors[0]
        whole: list[torch.Tensor] = [_ContiguousGradient.apply(tensor) for tensor in tensors]
        return torch.cat([tensor.flatten(1) if tensor.dim() > 1 else tensor[:, None] for tensor in whole], 1)

    def unpacked(self, tensor: torch.Tensor) -> Outputs:
        """Return the tensors of one that has come, (B, *wire_shape), each contiguous."""
        if len(self.shapes) == 1:
            return tensor
        parts = tensor.split([math.prod(shape) for shape in self.shapes], 1)
        shaped = (part.reshape(len(tensor), *shape) for part, shape in zip(parts, self.shapes, strict=True))
        return tuple(part.contiguous() for part in shaped)


class _ContiguousGradient(torch.autograd.Function):
    """The identity. Its gradient is contiguous, as where tensors do not cross the wire side by side.

    Kernels add up in another order over one that is a slice, which would change the last bits.
    """

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor) -> torch.Tensor:
        """Return the tensor."""
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        """Return the gradient, contiguous."""
        return gradients[0].contiguous()


def _shape(given: int | Sequence[int]) -> tuple[int, ...]:
    return (given,) if isinstance(given, int) else tuple(given)


def _listed(values: Sequence[object]) -> str:
    return ", ".join(map(str, values))
