"""A training's samples, schedule and augmentation; a step's plan follows from its number."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Protocol

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from psl_flower.engine.augment import Augmentation
from psl_flower.engine.batches import BatchOrder
from psl_flower.engine.freezing import Freezing
from psl_flower.engine.schedule import Schedule
from psl_flower.losses import Targets
from psl_flower.wire.plan import Plan, StepId, pack_samples


class Lessons(Protocol):
    """What a driver needs of the samples and the schedule of a training."""

    @property
    def steps_per_round(self) -> int:
        """Steps of a round."""

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""

    @property
    def num_evaluated(self) -> int:
        """Samples of an evaluation."""

    def train_plan(self, step: int) -> Plan:
        """Return the plan of a training step."""

    def evaluation_plans(self, after_step: int) -> Iterator[Plan]:
        """Yield the plans of an evaluation, numbered by batch as attempts of step `after_step`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """The samples, schedule and augmentation of a training; the same for the federated run and for one process."""

    order: BatchOrder  #: Samples of each step.
    schedule: Schedule  #: Learning rate by step.
    labels: NDArray[np.int64]  #: Classes of all samples by global index, int64.
    augmentation: Augmentation  #: Augmentation drawn in training.
    test: NDArray[np.int64]  #: Global indices of the test split's samples, int64.
    evaluate_batch_size: int  #: Samples in an evaluation batch.
    steps_per_round: int  #: Steps of a round.
    class_weights_K: torch.Tensor | None = None  #: Class weights as in `psl_flower.losses.Targets`.
    #: Global indices of the training samples held back to validate on, int64; may be empty.
    valid: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    freezing: Freezing | None = None  #: Freezing of the Uppers, if they are frozen.

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        return self.schedule.total_steps

    @property
    def evaluated(self) -> NDArray[np.int64]:
        """Global indices of the samples that rounds evaluate on: to validate, if there are any, else the test split."""
        return self.valid if len(self.valid) else self.test

    @property
    def num_evaluated(self) -> int:
        """Images that rounds evaluate on."""
        return len(self.evaluated)

    def testing(self) -> Task:
        """Return the task with the test split to evaluate on."""
        return dataclasses.replace(self, valid=self.valid[:0])

    def evaluating(self, step: int) -> Task:
        """Return a task that ends after `step` steps, except for the evaluation on test samples."""
        return dataclasses.replace(
            self, schedule=dataclasses.replace(self.schedule, total_steps=step), steps_per_round=1
        )

    def party_step(self, step: int) -> int:
        """Return the steps that Uppers have applied after `step` steps of the Lower: no more once they are frozen."""
        return step if self.freezing is None else min(step, self.freezing.after)

    def train_plan(self, step: int) -> Plan:
        """Return the plan of a training step; to frozen Uppers it is an attempt of the step that they are at."""
        frozen = self.freezing is not None and self.freezing.is_frozen(step)
        at = self.party_step(step)
        return Plan(
            id=StepId(self.order.epoch_of(step), at, step - at),
            mode="look" if frozen else "train",
            lr=self.schedule.lr(step),
            samples=pack_samples(self.order.samples(step)),
            augment_seed=self.order.augment_seed(step),
            mix_weight=self.augmentation.mix_weight(self.order.seed, step),
        )

    def makes(self, plan: Plan) -> bool:
        """Return True if this training has this plan, of a step or of a look.

        Last bits of the learning rate may differ, as cosines do between machines. Of kept looks any samples are taken:
        a view of a frozen Upper is the same in every batch.
        """
        if plan.mode == "look" and self.freezing is not None and self.freezing.views:
            seeds = {self.freezing.view_seed(view) for view in range(1, self.freezing.views)}
            return plan.augment_seed in seeds and plan.mix_weight == 1.0
        step = plan.id.step + plan.id.attempt
        if step >= self.total_steps:
            return False
        own = self.train_plan(step)
        return msgspec.structs.replace(plan, lr=own.lr) == own and math.isclose(plan.lr, own.lr, rel_tol=1e-9)

    def evaluation_plans(self, after_step: int) -> Iterator[Plan]:
        """Yield the plans that run through `evaluated`, numbered by batch as attempts of step `after_step`."""
        epoch, at = self.order.epoch_of(after_step), self.party_step(after_step)
        for number, samples_B in enumerate(self._batches(self.evaluated)):
            yield Plan(
                id=StepId(epoch, at, number), mode="evaluate", lr=0.0, samples=pack_samples(samples_B), augment_seed=0
            )

    def look_plans(self) -> Iterator[Plan]:
        """Yield the plans of all looks that are kept: every view of the training samples, then the other samples.

        Validation and test samples come once, in the batches in which they are evaluated.
        """
        assert self.freezing is not None
        at, number = self.freezing.after, 0
        epoch = self.order.epoch_of(at)
        views = [self.order.pool] * self.freezing.views
        for view, samples_N in enumerate([*views, self.valid, self.test]):
            augmented = 0 < view < len(views)
            for samples_B in self._batches(samples_N):
                yield Plan(
                    id=StepId(epoch, at, number),
                    mode="look" if augmented else "evaluate",
                    lr=0.0,
                    samples=pack_samples(samples_B),
                    augment_seed=self.freezing.view_seed(view) if augmented else 0,
                )
                number += 1

    def places(self, plan: Plan) -> NDArray[np.int64]:
        """Return the places (B,) of a plan's samples among the samples of `look_plans`.

        A training step takes the view of its epoch.
        """
        assert self.freezing is not None
        samples_B, pool = plan.sample_indices(), self.order.pool
        if plan.mode != "evaluate":
            return self.freezing.chosen(plan.id.epoch, samples_B) * len(pool) + _index(pool, samples_B)
        others = np.concatenate([self.valid, self.test])
        return self.freezing.views * len(pool) + _index(others, samples_B)

    def _batches(self, samples_N: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
        for first in range(0, len(samples_N), self.evaluate_batch_size):
            yield samples_N[first : first + self.evaluate_batch_size]

    def targets(self, plan: Plan) -> tuple[Targets, torch.Tensor | None]:
        """Return a training plan's targets, and a mask (B,) of mirrored samples, None if none can be mirrored."""
        samples_B, seed = plan.sample_indices(), plan.augment_seed
        targets = Targets(torch.from_numpy(self.labels[samples_B]), class_weights_K=self.class_weights_K)
        if plan.mix_weight < 1.0:
            partners_B = torch.from_numpy(self.augmentation.partners(seed, samples_B))
            targets = targets._replace(other_B=targets.y_B[partners_B], weight=plan.mix_weight)
        if not self.augmentation.flip:
            return targets, None
        if plan.mode == "look" and self.freezing is not None and self.freezing.views:
            flipped_B = self.freezing.flipped(self.augmentation, plan.id.epoch, samples_B)
        else:
            flipped_B = self.augmentation.flipped(seed, samples_B)
        return targets, torch.from_numpy(flipped_B)

    def dropped(self, plan: Plan, num_uppers: int, absent: Collection[int] = ()) -> torch.Tensor | None:
        """Return (B, M) bool: whose patches of a training plan's samples the Lower leaves out; None if none are."""
        dropped_BM = self.augmentation.dropped(plan.augment_seed, plan.sample_indices(), num_uppers, absent)
        return None if dropped_BM is None else torch.from_numpy(dropped_BM)


def _index(samples_N: NDArray[np.int64], wanted_B: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the index (B,) of each wanted sample in samples (N,), which hold it once."""
    order_N = np.argsort(samples_N, kind="stable")
    return order_N[np.searchsorted(samples_N, wanted_B, sorter=order_N)]
