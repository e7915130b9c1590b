"""The full loss: the Lower's own, plus one for each Upper through the Adaptation Net."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch.nn import functional as F

from psl_flower.errors import ConfigError


class LossParts(NamedTuple):
    """The full loss and what it is made of; scalars.

    Attributes
    ----------
    full : torch.Tensor
        lower + alpha * uppers.
    lower : torch.Tensor
        Cross entropy of the Lower's logits, mean over the batch.
    uppers : torch.Tensor
        Sum over Uppers of Upper_Loss_m / (P / M), before alpha; 0 without an Adaptation Net.
    """

    full: torch.Tensor
    lower: torch.Tensor
    uppers: torch.Tensor


def loss_parts(
    logits_BK: torch.Tensor,
    upper_logits_BPK: torch.Tensor | None,
    y_B: torch.Tensor,
    assignment: Sequence[int],
    alpha: float,
    *,
    num_absent: int = 0,
) -> LossParts:
    """Return the full loss with its parts (DESIGN.md section 3; Mabuchi and Ishikawa, WACV 2023).

    Full_Loss = Lower_Loss + alpha * sum over Uppers m of [Upper_Loss_m / (P / M)], where Upper_Loss_m is the sum over
    its patches of the cross entropy of the Adaptation Net's logits, mean over the batch.

    Parameters
    ----------
    logits_BK : torch.Tensor
        The Lower's logits (B, classes), any float dtype; the loss is computed in float32 or better.
    upper_logits_BPK : torch.Tensor or None
        The Adaptation Net's logits (B, P, classes), without those of absent patches; None without one.
    y_B : torch.Tensor
        Classes (B,), int64.
    assignment : sequence of int
        assignment[p] is the Upper of position p; P entries, Uppers 0..M-1.
    alpha : float
        Weight of the Uppers' losses, 0 or more.
    num_absent : int
        Patches that are absent from the whole batch; they add nothing, and the weight P/M stays.

    Raises
    ------
    ConfigError
        If the number of patches is not that of the assignment.
    """
    lower = lower_loss(logits_BK, y_B)
    if upper_logits_BPK is None:
        return LossParts(lower, lower, torch.zeros_like(lower))
    uppers = uppers_loss(upper_logits_BPK, y_B, assignment, num_absent=num_absent)
    return LossParts(lower + alpha * uppers, lower, uppers)


def lower_loss(logits_BK: torch.Tensor, y_B: torch.Tensor) -> torch.Tensor:
    """Return the Lower's own loss, `LossParts.lower`."""
    return F.cross_entropy(_at_least_float32(logits_BK), y_B)


def uppers_loss(
    upper_logits_BPK: torch.Tensor, y_B: torch.Tensor, assignment: Sequence[int], *, num_absent: int = 0
) -> torch.Tensor:
    """Return the Uppers' own losses together, `LossParts.uppers`; parameters and errors as of `loss_parts`."""
    P, M = len(assignment), len(set(assignment))
    present = P - num_absent
    if upper_logits_BPK.shape[1] != present:
        raise ConfigError(
            f"full_loss: the assignment has {P} patches{f', {num_absent} absent' if num_absent else ''}, "
            f"the Uppers' logits {upper_logits_BPK.shape[1]}"
        )
    logits_NK = _at_least_float32(upper_logits_BPK).flatten(0, 1)
    # The same weight P/M for every Upper, so the sums over Uppers and over their patches are one sum over patches.
    per_patch = F.cross_entropy(logits_NK, y_B.repeat_interleave(present)) * present
    return per_patch / (P / M)


def full_loss(
    logits_BK: torch.Tensor,
    upper_logits_BPK: torch.Tensor | None,
    y_B: torch.Tensor,
    assignment: Sequence[int],
    alpha: float,
) -> torch.Tensor:
    """Return the scalar full loss; see `loss_parts`."""
    return loss_parts(logits_BK, upper_logits_BPK, y_B, assignment, alpha).full


def _at_least_float32(logits: torch.Tensor) -> torch.Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()
