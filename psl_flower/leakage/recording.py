"""Records what crosses the cut in a training: all that the Lower receives of some images, and a node's gradients.

Shape suffixes: L looks, N images, B batch, K positions of one Upper, P positions, C channels, h and w of a patch's
smashed data, D numbers of a gradient.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

from psl_flower.engine.task import Task
from psl_flower.models import PatchSplitNet

# Height and width that a node's gradients are averaged to.
_POOLED = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedLooks:
    """What was recorded."""

    smashed_LNPChw: torch.Tensor  #: float32, as the Lower received them; zeros where an epoch left an image out.
    flipped_LN: torch.Tensor  #: bool, whether the image was mirrored in that look; the Lower knows it.
    #: float32, what the node received for its own smashed data, averaged to at most 2x2 for each channel.
    gradient_LND: torch.Tensor
    positions: tuple[int, ...]  #: Positions of that node.
    shown: int  #: Different looks that the Lower had in the training, an epoch each; L of them were recorded.

    @property
    def joined(self) -> int:
        """Looks that were recorded, L."""
        return len(self.smashed_LNPChw)


def side_by_side(smashed_LNPChw: torch.Tensor, flipped_LN: torch.Tensor, *, apart: bool) -> torch.Tensor:
    """Return all looks (N, P, C', h, w), one after the other along the channels.

    Parameters
    ----------
    smashed_LNPChw : torch.Tensor
        The looks.
    flipped_LN : torch.Tensor
        bool, whether an image was mirrored in a look.
    apart : bool
        Each look takes 2 C channels: those of mirrored images, maps turned back, are apart from the others, with zeros
        in the place of the one that is not there. For looks of which any is mirrored.
    """
    if apart:
        flipped = flipped_LN[:, :, None, None, None, None].to(smashed_LNPChw.dtype)
        smashed_LNPChw = torch.cat([smashed_LNPChw * (1 - flipped), smashed_LNPChw.flip(-1) * flipped], dim=3)
    return smashed_LNPChw.permute(1, 2, 0, 3, 4, 5).flatten(2, 3)


class Recorder:
    """Listens to a network in training, in one process, and keeps what passes of some images.

    Patches that the Lower leaves out by patch dropout count as not received. A look that repeats an earlier one, as
    with frozen Uppers, is kept once.

    Parameters
    ----------
    net : PatchSplitNet
        What is trained, from its first step on.
    task : Task
        Of the training.
    samples_N : ndarray
        Of the images to record, int64, no image twice.
    most : int
        Looks to keep at most, 1 or more: spread over the training, the last epoch among them.
    steps : int
        That are trained.
    node : int
        Whose gradients are recorded.
    """

    def __init__(
        self, net: PatchSplitNet, task: Task, samples_N: NDArray[np.int64], *, most: int, steps: int, node: int = 0
    ) -> None:
        self._task, self._step = task, 0
        epochs = task.order.epoch_of(steps - 1) + 1
        self._look_of = {int(epoch): look for look, epoch in enumerate(spread(epochs, most))}
        # Tells looks apart, also those that are not kept.
        self._marks_EN = np.zeros((epochs, len(samples_N)), np.int64)
        self._place_of = {int(sample): n for n, sample in enumerate(samples_N)}
        self._positions = tuple(p for p, m in enumerate(net.assignment) if m == node)
        self._smashed, self._gradient = torch.empty(0), torch.empty(0)
        self._flipped_LN = torch.zeros(len(self._look_of), len(samples_N), dtype=torch.bool)
        self._handles = [
            net.lower.register_forward_pre_hook(self._received), net.uppers[node].register_forward_hook(self._sent),
        ]  # fmt: skip

    def finish(self) -> RecordedLooks:
        """Stop listening and return what was recorded."""
        for handle in self._handles:
            handle.remove()
        _, firsts = np.unique(self._marks_EN[list(self._look_of)], axis=0, return_index=True)
        kept = torch.from_numpy(np.sort(firsts))
        return RecordedLooks(
            smashed_LNPChw=self._smashed[kept], flipped_LN=self._flipped_LN[kept],
            gradient_LND=self._gradient[kept] if self._gradient.numel() else self._gradient,
            positions=self._positions, shown=len(np.unique(self._marks_EN, axis=0)),
        )  # fmt: skip

    def _received(self, lower: nn.Module, given: tuple[Any, ...]) -> None:
        """Keep what the Lower receives in a step of training."""
        if not lower.training:
            return
        epoch, places, found = self._wanted(self._step)
        self._step += 1
        if not places:
            return
        smashed_BPChw, flipped_B = given[0].detach()[found].float().cpu(), torch.zeros(len(found), dtype=torch.bool)
        if len(given) > 1 and given[1] is not None:
            flipped_B = given[1].cpu()[found]
        self._marks_EN[epoch, places] = [
            hash((one.numpy().tobytes(), bool(flipped))) for one, flipped in zip(smashed_BPChw, flipped_B, strict=True)
        ]
        if (look := self._look_of.get(epoch)) is None:
            return
        if not self._smashed.numel():
            self._smashed = torch.zeros(*self._flipped_LN.shape, *smashed_BPChw.shape[1:])
        self._smashed[look, places] = smashed_BPChw
        self._flipped_LN[look, places] = flipped_B

    def _sent(self, upper: nn.Module, given: tuple[Any, ...], sent_NChw: torch.Tensor) -> None:
        """Wait for the gradient of what the node sends in a step of training."""
        if not upper.training or not sent_NChw.requires_grad:
            return
        epoch, places, found = self._wanted(self._step)
        look = self._look_of.get(epoch)

        def keep(gradient_NChw: torch.Tensor) -> None:
            pooled = min(_POOLED, gradient_NChw.shape[2]), min(_POOLED, gradient_NChw.shape[3])
            gradient_BD = F.adaptive_avg_pool2d(gradient_NChw.float(), pooled).reshape(
                len(gradient_NChw) // len(self._positions), -1
            )
            if not self._gradient.numel():
                self._gradient = torch.zeros(*self._flipped_LN.shape, gradient_BD.shape[1])
            self._gradient[look, places] = gradient_BD[found].cpu()

        if look is not None and places:
            sent_NChw.register_hook(keep)

    def _wanted(self, step: int) -> tuple[int, list[int], list[int]]:
        """Return the epoch of a step and the images of it that are recorded: their places, and where in the batch."""
        pairs = [
            (n, b)
            for b, sample in enumerate(self._task.order.samples(step).tolist())
            if (n := self._place_of.get(sample)) is not None
        ]
        return self._task.order.epoch_of(step), [n for n, _ in pairs], [b for _, b in pairs]


def spread(count: int, most: int) -> NDArray[np.int64]:
    """Return at most `most` of the numbers 0 to count - 1, at even distances, the last among them."""
    chosen: NDArray[np.int64] = np.unique(count - 1 - np.arange(min(most, count)) * count // min(most, count))
    return chosen
