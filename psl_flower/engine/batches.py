"""The batch order: the samples of step t follow from a seed alone, so a checkpoint need not hold them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from psl_flower.config import RunConfig
from psl_flower.engine.automatic_settings import planned, split_training, steps_per_epoch
from psl_flower.errors import ConfigError
from psl_flower.patches.description import StoreSetDescription
from psl_flower.seeds import derive


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchOrder:
    """A fresh permutation of the training samples for every epoch, cut into mini-batches.

    The last batch of an epoch may be smaller; a single left-over sample is not used in that epoch, because BatchNorm
    learns nothing from one.
    """

    pool: NDArray[np.int64]  #: (N,) global sample indices of the training split.
    batch_size: int  #: Samples in a mini-batch, 2 or more.
    seed: int  #: The run's seed.

    def __post_init__(self) -> None:
        if self.batch_size < 2:
            raise ConfigError(f"batch-size: BatchNorm needs 2 or more samples in a batch, got {self.batch_size}")
        if len(self.pool) < 2:
            raise ConfigError(f"training needs 2 or more samples, the dataset has {len(self.pool)}")

    @property
    def steps_per_epoch(self) -> int:
        """Mini-batches in an epoch."""
        return steps_per_epoch(len(self.pool), self.batch_size)

    def epoch_of(self, step: int) -> int:
        """Epoch, from 0, that the step belongs to."""
        return step // self.steps_per_epoch

    def samples(self, step: int) -> NDArray[np.int64]:
        """Return the global sample indices (B,) of step `step`, counted from 0 over all epochs."""
        epoch, index = divmod(step, self.steps_per_epoch)
        order = np.random.Generator(np.random.PCG64(derive(self.seed, "order", epoch)))
        permutation = order.permutation(len(self.pool))
        return self.pool[permutation[index * self.batch_size : (index + 1) * self.batch_size]]

    def num_samples(self, step: int) -> int:
        """Return the number of samples B of step `step`."""
        return self.num_samples_before(step + 1) - self.num_samples_before(step)

    def num_samples_before(self, step: int) -> int:
        """Return the number of samples in all steps before `step`; repeats count again."""
        epochs, index = divmod(step, self.steps_per_epoch)
        per_epoch = min(self.steps_per_epoch * self.batch_size, len(self.pool))
        return epochs * per_epoch + index * self.batch_size

    def augment_seed(self, step: int) -> int:
        """Seed of (run seed, epoch) from which every party draws a sample's transform."""
        return derive(self.seed, "augment", self.epoch_of(step))


def batch_order(config: RunConfig, description: StoreSetDescription) -> BatchOrder:
    """Return the batch order of a run; raises ConfigError if there are too few training images."""
    pool, _ = split_training(config, description)
    batch_size = planned(config, description).training.batch_size
    return BatchOrder(pool=pool, batch_size=batch_size, seed=config.training.seed)
