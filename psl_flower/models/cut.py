"""The cut: one pair of modules, on the Upper before the wire and on the Lower after it.

The pair is the one place for narrowing, codes and other protections of smashed data (`psl_flower.protection`). Both
work on maps of single patches.

Shape suffixes: N patches of a batch, K positions of one Upper, B batch, C channels, h and w of a feature map.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from psl_flower.wire.codecs import wire_roundtrip


@dataclass(frozen=True, slots=True)
class CutPair:
    """The two halves of a protection and the channels between them."""

    upper: nn.Module  #: (N, C, h, w) -> (N, wire_channels, h', w'), on the Upper before the wire.
    lower: nn.Module  #: (N, wire_channels, h', w') -> (N, C, h", w"), on the Lower after it.
    wire_channels: int  #: Channels that cross the wire.
    #: (B, C, H, W) -> (B, C, H, W), on the Lower after the maps of an image's patches are joined.
    joined: nn.Module = field(default_factory=nn.Identity)


# Changes a gradient before it is sent.
Corrected = Callable[[torch.Tensor], torch.Tensor]
# Makes a pair for a number of channels at the cut; `psl_flower.protection` has those that people can choose.
MakePair = Callable[[int], CutPair]


def unprotected(channels: int) -> CutPair:
    """Return the pair that leaves smashed data as they are."""
    return CutPair(nn.Identity(), nn.Identity(), channels)


class _Boundary(torch.autograd.Function):
    """Codec round trips, forward and backward; the gradient leaves in channels-last order."""

    @staticmethod
    def forward(
        ctx: Any, features_NChw: torch.Tensor, activations: str, gradients: str, corrected: Corrected | None
    ) -> torch.Tensor:
        """Return the features as the Lower sees them."""
        ctx.gradients, ctx.corrected = gradients, corrected
        return _as_received(features_NChw, activations)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        """Return the gradient as the Upper sees it."""
        sent = gradients[0] if ctx.corrected is None else ctx.corrected(gradients[0])
        return _as_received(sent, ctx.gradients).to(gradients[0].dtype), None, None, None


def boundary(
    features_NChw: torch.Tensor,
    activations: str = "float32",
    gradients: str = "float32",
    corrected: Corrected | None = None,
) -> torch.Tensor:
    """Pass the features of one Upper through the wire's effects without a wire, for a network in one process.

    The codecs round what passes, in either direction. Also with the exact codec the memory order in which the gradient
    enters the Upper is fixed: kernels sum in an order that depends on it, so a network in one process is bit-equal to
    the federated one only if gradients enter its Uppers in the order that the wire gives them.

    `features_NChw` are smashed data (B*K, C, h, w) of one Upper. Given the gradient (B*K, C, h, w), `corrected` returns
    the one to round instead.
    """
    result: torch.Tensor = _Boundary.apply(features_NChw, activations, gradients, corrected)
    return result


class _Entry(torch.autograd.Function):
    """A dummy scalar whose backward pass starts with a given gradient."""

    @staticmethod
    def forward(ctx: Any, features_NChw: torch.Tensor, gradient_NChw: torch.Tensor) -> torch.Tensor:
        """Keep the gradient; return 0."""
        ctx.save_for_backward(gradient_NChw)
        return features_NChw.new_zeros(())

    @staticmethod
    def backward(ctx: Any, *_: torch.Tensor) -> tuple[torch.Tensor, None]:
        """Return the gradient that was given."""
        (gradient_NChw,) = ctx.saved_tensors
        return gradient_NChw, None


def backward_from(features_NChw: torch.Tensor, gradient_NChw: torch.Tensor) -> None:
    """Run the backward pass of one Upper from the gradient of its smashed data; both (N, C, h, w), of one dtype.

    Does what ``features.backward(gradient)`` does. That call loads torch's symbolic shapes and sympy, which costs every
    node's process about a second and 50 MB.
    """
    _Entry.apply(features_NChw, gradient_NChw).backward()


def _as_received(values_NChw: torch.Tensor, codec: str) -> torch.Tensor:
    # A codec's channels are its last axis, wherever the axes before it end.
    received_NhwC = values_NChw.detach().permute(0, 2, 3, 1)
    # No wire carries float64; a network in one process and double precision has the exact codec's effect: none.
    if not (codec == "float32" and values_NChw.dtype == torch.float64):
        received_NhwC = wire_roundtrip(received_NhwC, codec).to(values_NChw.dtype)
    received_NChw = received_NhwC.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
    return received_NChw.view_as(received_NChw)


def to_wire(features_NChw: torch.Tensor, num_positions: int) -> torch.Tensor:
    """Return maps (B*K, C, h, w) as the wire carries them: (B, K, h, w, C), contiguous; no copy if channels last."""
    features_NhwC = features_NChw.permute(0, 2, 3, 1).contiguous()
    return features_NhwC.reshape(-1, num_positions, *features_NhwC.shape[1:])


def from_wire(features_BKhwC: torch.Tensor) -> torch.Tensor:
    """Return a wire tensor (B, K, h, w, C) as maps (B*K, C, h, w) in channels-last order; no copy."""
    return features_BKhwC.flatten(0, 1).permute(0, 3, 1, 2)
