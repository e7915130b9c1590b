"""The samples and the schedule of a training: which make up a step, and with which learning rate."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from psl_flower.engine.batches import BatchOrder
from psl_flower.wire.plan import Plan, StepId, pack_samples


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitLessons:
    """Implements `psl_flower.engine.task.Lessons`; a round is an epoch."""

    order: BatchOrder  #: Samples of each step.
    valid: NDArray[np.int64]  #: Samples of the evaluation, int64; may be empty.
    lr: Callable[[int], float]  #: Learning rate by step.
    epochs: int  #: Passes through the training samples.
    evaluate_batch_size: int  #: Samples in an evaluation batch.

    @property
    def steps_per_round(self) -> int:
        """Steps of an epoch."""
        return self.order.steps_per_epoch

    @property
    def total_steps(self) -> int:
        """Steps of all epochs."""
        return self.epochs * self.order.steps_per_epoch

    @property
    def num_evaluated(self) -> int:
        """Samples of the evaluation."""
        return len(self.valid)

    def train_plan(self, step: int) -> Plan:
        """Return the plan of a training step."""
        return Plan(
            id=StepId(self.order.epoch_of(step), step),
            mode="train",
            lr=self.lr(step),
            samples=pack_samples(self.order.samples(step)),
            augment_seed=self.order.seed,
        )

    def evaluation_plans(self, after_step: int) -> Iterator[Plan]:
        """Yield the plans that run through `valid`, numbered by batch as attempts of step `after_step`."""
        for number, first in enumerate(range(0, len(self.valid), self.evaluate_batch_size)):
            samples_B = self.valid[first : first + self.evaluate_batch_size]
            step = StepId(self.order.epoch_of(after_step), after_step, number)
            yield Plan(id=step, mode="evaluate", lr=0.0, samples=pack_samples(samples_B), augment_seed=self.order.seed)

    def whole_evaluation(self, after_step: int) -> Plan:
        """Return the one plan for a party that has the labels: all of `valid`, after `after_step` steps."""
        step = StepId(self.order.epoch_of(after_step), after_step)
        return Plan(id=step, mode="evaluate", lr=0.0, samples=pack_samples(self.valid), augment_seed=self.order.seed)


@dataclass(frozen=True, slots=True, kw_only=True)
class OnlyEvaluated(SplitLessons):
    """A run through samples after the last step of a training, or of what there is of one; trains nothing."""

    after: int  #: Steps applied.

    @classmethod
    def of(cls, lessons: SplitLessons, samples: NDArray[np.int64], after: int) -> OnlyEvaluated:
        """Return the run through samples after this number of training steps."""
        batch = lessons.evaluate_batch_size
        return cls(order=lessons.order, valid=samples, lr=lessons.lr, epochs=0, evaluate_batch_size=batch, after=after)

    @property
    def steps_per_round(self) -> int:
        """One, so that a round ends after any step."""
        return 1

    @property
    def total_steps(self) -> int:
        """The steps applied."""
        return self.after
