"""Messages to parties that the server asks in the middle of a step, and their answers.

One is the Adaptation Net on a separate node, `Adapt` and `Adapted`. The other is the party that has the labels, where
the server has none: `Judge`, and `Judged` in training or `Scored` in an evaluation. Both save when `Keep` says so.
Shape suffix B: batch.
"""

from __future__ import annotations

import math
from typing import Annotated

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from psl_flower.wire.message_base import BaseMessage, Name, OfStep
from psl_flower.wire.plan import Count, Packed, Plan, StepId, Weight, check_finite, check_packed, unpack_samples

ClassWeights = Annotated[tuple[Annotated[float, Meta(ge=0)], ...], Meta(max_length=65_536)]
Positions = Annotated[tuple[Count, ...], Meta(max_length=65_536)]
Figures = Annotated[dict[Name, float], Meta(max_length=256)]


class Adapt(OfStep, frozen=True, tag="adapt", omit_defaults=True):
    """The Adaptation Net's turn: the frame's one tensor is the smashed data of all positions, zeros for absent ones.

    `id` is the training step.
    """

    carries = "joined"
    lr: float  #: Learning rate of its update, finite, at least 0.
    classes: Packed  #: Classes of the mini-batch's samples, little-endian int64, at most 65,536; see `pack_samples`.
    absent: Positions = ()  #: Positions that are left out.
    others: Packed = b""  #: Classes of the samples mixed in, if samples are mixed in pairs; else empty.
    weight: Weight = 1.0  #: Weight, 0..1, of `classes`; that of `others` is what it lacks to 1.
    #: Weight of every class in the loss, finite, at least 0; empty if all weigh the same.
    class_weights: ClassWeights = ()

    def __post_init__(self) -> None:
        """Refuse a learning rate or weights that are not finite or below 0, and ragged lists of classes."""
        check_finite(lr=self.lr, weight=self.weight, class_weights=sum(self.class_weights))
        check_packed(classes=self.classes, others=self.others)

    @property
    def answered_by(self) -> type[Adapted]:
        """The gradient at the smashed data, and the loss."""
        return Adapted

    @property
    def answer_of(self) -> StepId:
        """The step."""
        return self.id

    @property
    def changes_state(self) -> bool:
        """Always: the net is updated."""
        return True

    def class_indices(self) -> NDArray[np.int64]:
        """Return the classes (B,) int64, read-only."""
        return unpack_samples(self.classes)

    def other_indices(self) -> NDArray[np.int64] | None:
        """Return the classes (B,) int64 of the samples mixed in, read-only; None without mixing."""
        return unpack_samples(self.others) if self.others else None

    def __repr__(self) -> str:
        """Return a short form without classes."""
        return f"Adapt({self.id}, lr={self.lr:g}, {len(self.classes) // 8} classes, absent={self.absent})"


class Adapted(OfStep, frozen=True, tag="adapted"):
    """Answer to `Adapt`: the frame's one tensor is the gradient of alpha times the loss at the smashed data.

    `loss` is `psl_flower.losses.LossParts.uppers`, not finite where training diverges.
    """

    goes_up = True
    carries = "joined gradient"
    loss: float


class Judge(BaseMessage, frozen=True, tag="judge"):
    """The label holder's turn: the frame's one tensor is what the server's model returns for the samples of `plan`.

    In training the holder updates its head and answers with `Judged`; in an evaluation it answers with `Scored`.
    """

    carries = "outputs"
    plan: Plan

    @property
    def tensor_of(self) -> StepId:
        """The plan's step."""
        return self.plan.id

    @property
    def num_samples(self) -> int:
        """Those of the plan."""
        return self.plan.num_samples

    @property
    def answered_by(self) -> type[Judged | Scored]:
        """`Judged` in training, else `Scored`."""
        return Judged if self.plan.mode == "train" else Scored

    @property
    def answer_of(self) -> StepId:
        """The plan's step."""
        return self.plan.id

    @property
    def changes_state(self) -> bool:
        """True in training: the head is updated."""
        return self.plan.mode == "train"


class Judged(OfStep, frozen=True, tag="judged"):
    """Answer to `Judge` in training: the frame's one tensor is the loss's gradient at what the server's model returned.

    `loss` is the batch's, finite: a holder stops at another.
    """

    goes_up = True
    carries = "outputs gradient"
    loss: float

    def __post_init__(self) -> None:
        """Refuse a loss that is not finite."""
        if not math.isfinite(self.loss):
            raise ValueError(f"loss: expected a finite number, got {self.loss}")


class Scored(BaseMessage, frozen=True, tag="scored"):
    """Answer to `Judge` in an evaluation: loss and metrics over all of its samples, by name."""

    goes_up = True
    figures: Figures
