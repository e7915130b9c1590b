"""Distillation: a network learns another network's answers as well as the labels (Hinton, Vinyals, Dean, 2015).

Shape suffixes: B batch, P patches, K classes, C channels, h and w pixels of a patch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from psl_flower.models import PatchSplitNet
from psl_flower.system.devices import autocast

# Above 1, so that the loss also compares the probabilities of wrong classes.
TEMPERATURE = 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Teacher:
    """The teacher of a student that is trained in one process."""

    net: PatchSplitNet  #: Network in eval mode, on the student's device; sees the same augmented patches.
    share: float  #: 0..1: the weight of its answers in the loss; the rest is the labels'.

    def loss(
        self,
        labels_loss: torch.Tensor,
        logits_BK: torch.Tensor,
        patches_BPChw: torch.Tensor,
        flipped_B: torch.Tensor | None,
        *,
        activations: str = "float32",
        use_autocast: bool = False,
    ) -> torch.Tensor:
        """Return the loss of a student, scalar; see `shared_loss`.

        Parameters
        ----------
        labels_loss : torch.Tensor
            Scalar.
        logits_BK : torch.Tensor
            The student's, any float dtype.
        patches_BPChw : torch.Tensor
            Normalised patches that the student saw.
        flipped_B : torch.Tensor or None
            Which samples are mirrored; see `PatchGrid.tile`.
        activations : str
            Codec that its smashed data pass, as the student's do (`psl_flower.models.cut.boundary`).
        use_autocast : bool
            Whether it runs under bfloat16 autocast, as the student does.
        """
        with torch.no_grad(), autocast(logits_BK.device, use_autocast):
            smashed_BPChw = self.net.smash_patches(patches_BPChw, activations)
            taught_BK = self.net.join(smashed_BPChw, flipped_B)
        return shared_loss(labels_loss, logits_BK, taught_BK, self.share)


@dataclass(frozen=True, slots=True, kw_only=True)
class LowerTeacher:
    """The Lower's half of a teacher, beside the student's Lower; its Uppers are beside the student's, on the nodes."""

    lower: nn.Module  #: Lower in eval mode, on the student's device.
    share: float  #: 0..1: the weight of its answers in the loss; the rest is the labels'.
    channels: int  #: C of its smashed data, the last of those that come up.


def shared_loss(
    labels_loss: torch.Tensor, logits_BK: torch.Tensor, taught_BK: torch.Tensor, share: float
) -> torch.Tensor:
    """Return (1 - share) * labels_loss + share * divergence(logits, taught), scalar."""
    return (1 - share) * labels_loss + share * divergence(logits_BK, taught_BK)


def divergence(logits_BK: torch.Tensor, taught_BK: torch.Tensor) -> torch.Tensor:
    """Return T^2 * KL(teacher || student) of the softmax at temperature T, mean over the batch, scalar, in float32."""
    student_BK = F.log_softmax(logits_BK.float() / TEMPERATURE, 1)
    teacher_BK = F.log_softmax(taught_BK.float() / TEMPERATURE, 1)
    return F.kl_div(student_BK, teacher_BK, reduction="batchmean", log_target=True) * TEMPERATURE**2
