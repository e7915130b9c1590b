"""Distillation: a network learns another one's answers beside the labels (Hinton, Vinyals, Dean, 2015).

Shape suffixes: B batch, P patches, K classes, C channels, h and w pixels of a patch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from psl_flower.models import PatchSplitNet

# At which the answers of both are compared: higher ones also tell how the wrong classes differ.
TEMPERATURE = 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Teacher:
    """Whose answers are learnt.

    Attributes
    ----------
    net : PatchSplitNet
        In eval mode, on the student's device; sees the same augmented patches.
    share : float
        0..1: the weight of its answers in the loss; the rest is the labels'.
    """

    net: PatchSplitNet
    share: float

    def loss(
        self,
        labels_loss: torch.Tensor,
        logits_BK: torch.Tensor,
        patches_BPChw: torch.Tensor,
        flipped_B: torch.Tensor | None,
    ) -> torch.Tensor:
        """Return (1 - share) * labels_loss + share * T^2 * KL(teacher || student), scalar.

        The divergence is that of the softmax at temperature T, mean over the batch.

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
        """
        with torch.no_grad():
            taught_BK = self.net.join(self.net.smash_patches(patches_BPChw), flipped_B)
        return (1 - self.share) * labels_loss + self.share * divergence(logits_BK, taught_BK)


def divergence(logits_BK: torch.Tensor, taught_BK: torch.Tensor) -> torch.Tensor:
    """Return T^2 * KL(teacher || student) of logits (B, K), scalar, in float32."""
    student_BK = F.log_softmax(logits_BK.float() / TEMPERATURE, 1)
    teacher_BK = F.log_softmax(taught_BK.float() / TEMPERATURE, 1)
    return F.kl_div(student_BK, teacher_BK, reduction="batchmean", log_target=True) * TEMPERATURE**2
