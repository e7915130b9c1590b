"""Reports of training steps, and their form in checkpoints, so that a recovered round reports all its steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class StepLoss:
    """Losses of one step; means over the batch."""

    #: Losses as in `psl_flower.losses.LossParts`.
    full: float
    lower: float
    uppers: float
    #: Samples that the Lower's logits classify correctly, by their own classes where samples are mixed; 0 if there
    #: are no classes.
    correct: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StepReport:
    """Report of one training step."""

    step: int  #: Steps applied when it is done, so 1 for the first.
    epoch: int  #: Counted from 0.
    loss: StepLoss  #: Losses, means over the batch.
    num_samples: int  #: Samples in the batch.
    #: Time of the step, of its slowest Upper, of the Lower (with what it waits for an Adaptation Net elsewhere), and of
    #: the rest: moving bytes and waiting.
    seconds: float
    upper_s: float
    lower_s: float
    wire_s: float


def packed(steps: Sequence[StepReport]) -> torch.Tensor:
    """Return reports as a tensor (steps, 11) of float64, which holds their integers exactly, too."""
    rows = [
        (
            step.step, step.epoch, step.num_samples, step.seconds, step.upper_s, step.lower_s, step.wire_s,
            step.loss.full, step.loss.lower, step.loss.uppers, step.loss.correct,
        )
        for step in steps
    ]  # fmt: skip
    return torch.tensor(rows, dtype=torch.float64).reshape(len(rows), 11)


def unpacked(rows_S11: torch.Tensor) -> list[StepReport]:
    """Return the reports that `packed` made a tensor of."""
    return [_unpacked(row) for row in rows_S11.tolist()]


def _unpacked(row: Sequence[float]) -> StepReport:
    step, epoch, num_samples, seconds, upper_s, lower_s, wire_s, full, lower, uppers, correct = row
    return StepReport(
        step=int(step),
        epoch=int(epoch),
        loss=StepLoss(full=full, lower=lower, uppers=uppers, correct=int(correct)),
        num_samples=int(num_samples),
        seconds=seconds,
        upper_s=upper_s,
        lower_s=lower_s,
        wire_s=wire_s,
    )
