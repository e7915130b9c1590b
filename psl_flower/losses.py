"""The full loss: the Lower's own, plus one for each Upper through the Adaptation Net."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch.nn import functional as F

from psl_flower.errors import ConfigError


class Targets(NamedTuple):
    """The right answers for a mini-batch."""

    y_B: torch.Tensor  #: Classes (B,), int64.
    #: Classes (B,) of the samples mixed in, if samples are mixed in pairs (Zhang et al., mixup, ICLR 2018).
    other_B: torch.Tensor | None = None
    weight: float = 1.0  #: Weight of the loss against `y_B`; that of `other_B` is what it lacks to 1.
    #: Weight of every class (K,), float32, as for torch's `cross_entropy`: the mean over samples is weighted by their
    #: classes' weights, and so is each class's share of a smoothed label. Of a mixed pair each of the two losses is
    #: such a mean. None: all classes weigh the same.
    class_weights_K: torch.Tensor | None = None

    def to(self, device: torch.device) -> Targets:
        """Return the same on a device."""
        other_B = None if self.other_B is None else self.other_B.to(device)
        weights_K = None if self.class_weights_K is None else self.class_weights_K.to(device)
        return Targets(self.y_B.to(device), other_B, self.weight, weights_K)


class LossParts(NamedTuple):
    """The full loss and its parts; scalars."""

    full: torch.Tensor  #: lower + alpha * uppers.
    lower: torch.Tensor  #: Cross entropy of the Lower's logits, mean over the batch.
    uppers: torch.Tensor  #: Sum over Uppers of Upper_Loss_m / (P / M), before alpha; 0 without an Adaptation Net.


def loss_parts(
    logits_BK: torch.Tensor,
    upper_logits_BPK: torch.Tensor | None,
    targets: Targets,
    assignment: Sequence[int],
    alpha: float,
    *,
    num_absent: int = 0,
    label_smoothing: float = 0.0,
) -> LossParts:
    """Return the full loss with its parts (Mabuchi and Ishikawa, WACV 2023).

    Full_Loss = Lower_Loss + alpha * sum over Uppers m of [Upper_Loss_m / (P / M)], where Upper_Loss_m is the sum over
    its patches of the cross entropy of the Adaptation Net's logits, mean over the batch.

    Parameters
    ----------
    logits_BK : torch.Tensor
        The Lower's logits (B, classes), any float dtype; the loss is computed in float32 or better.
    upper_logits_BPK : torch.Tensor or None
        The Adaptation Net's logits (B, P, classes), without those of absent patches; None without one.
    targets : Targets
        What is right.
    assignment : sequence of int
        assignment[p] is the Upper of position p; P entries, Uppers 0..M-1.
    alpha : float
        Weight of the Uppers' losses, 0 or more.
    num_absent : int
        Patches that are absent from the whole batch; they add nothing, and the weight P/M stays.
    label_smoothing : float
        Share of a label, 0 to below 1, that is spread evenly over all classes, in all losses.

    Raises
    ------
    ConfigError
        If the number of patches is not that of the assignment.
    """
    lower = lower_loss(logits_BK, targets, label_smoothing=label_smoothing)
    if upper_logits_BPK is None:
        return LossParts(lower, lower, torch.zeros_like(lower))
    uppers = adaptation_loss(
        upper_logits_BPK, targets, assignment, num_absent=num_absent, label_smoothing=label_smoothing
    )
    return LossParts(lower + alpha * uppers, lower, uppers)


def lower_loss(logits_BK: torch.Tensor, targets: Targets, *, label_smoothing: float = 0.0) -> torch.Tensor:
    """Return the Lower's own loss, `LossParts.lower`; parameters are those of `loss_parts`."""
    return _cross_entropy(logits_BK, targets, label_smoothing)


def adaptation_loss(
    upper_logits_BPK: torch.Tensor,
    targets: Targets,
    assignment: Sequence[int],
    *,
    num_absent: int = 0,
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """Return the sum of the Uppers' auxiliary losses, `LossParts.uppers`; parameters and raises what `loss_parts`."""
    P, M = len(assignment), len(set(assignment))
    present = P - num_absent
    if upper_logits_BPK.shape[1] != present:
        raise ConfigError(
            f"full_loss: the assignment has {P} patches{f', {num_absent} absent' if num_absent else ''}, "
            f"the Uppers' logits {upper_logits_BPK.shape[1]}"
        )
    other_B = targets.other_B
    of_patches = Targets(
        targets.y_B.repeat_interleave(present),
        None if other_B is None else other_B.repeat_interleave(present),
        targets.weight,
        targets.class_weights_K,
    )
    # The same weight P/M for every Upper, so the sums over Uppers and over their patches are one sum over patches.
    per_patch = _cross_entropy(upper_logits_BPK.flatten(0, 1), of_patches, label_smoothing) * present
    return per_patch / (P / M)


def full_loss(
    logits_BK: torch.Tensor,
    upper_logits_BPK: torch.Tensor | None,
    y_B: torch.Tensor,
    assignment: Sequence[int],
    alpha: float,
) -> torch.Tensor:
    """Return the scalar full loss of samples of the classes `y_B` (B,), int64; see `loss_parts`."""
    return loss_parts(logits_BK, upper_logits_BPK, Targets(y_B), assignment, alpha).full


def _cross_entropy(logits_NK: torch.Tensor, targets: Targets, smoothing: float) -> torch.Tensor:
    if logits_NK.dtype != torch.float64:
        logits_NK = logits_NK.float()
    weights_K = targets.class_weights_K
    if weights_K is not None:
        weights_K = weights_K.to(logits_NK.dtype)
    loss = F.cross_entropy(logits_NK, targets.y_B, weights_K, label_smoothing=smoothing)
    if targets.other_B is None:
        return loss
    other = F.cross_entropy(logits_NK, targets.other_B, weights_K, label_smoothing=smoothing)
    return targets.weight * loss + (1.0 - targets.weight) * other
