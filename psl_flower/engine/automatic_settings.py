"""The settings that a run chooses by the size of its dataset: batch size, learning rate, rounds.

They suit a few hundred images as well as 50,000. The numbers were chosen on validation images of small sets, see
`simulations.recipe` and docs/accuracy-studies.md.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from psl_flower.config import RunConfig
from psl_flower.patches.description import StoreSetDescription
from psl_flower.seeds import derive

# Target number of mini-batches per epoch of a small set, within these bounds on the batch size.
_BATCHES_OF_EPOCH = 16
_LEAST_BATCH, MOST_BATCH = 16, 64
# BatchNorm's statistics and the schedule need these, however few the images are.
LEAST_STEPS = 200
_LEAST_EPOCHS = 3
_MOST_ROUNDS = 5
# Peak learning rates for a batch of 64 or more;
# for smaller ones SGD's is in proportion to the batch, Adam's to its root.
_SGD_LR, _ADAM_LR = 0.05, 0.001


def planned(config: RunConfig, description: StoreSetDescription) -> RunConfig:
    """Return the settings with every automatic one replaced by a number; unchanged if none is automatic."""
    training = config.training
    if training.batch_size and training.lr and training.rounds:
        return config
    count = len(split_training(config, description)[0])
    batch = training.batch_size or batch_for(count)
    rounds, per_round = training.rounds, training.steps_per_round
    if not rounds:
        rounds, per_round = rounds_for(steps_per_epoch(count, batch), per_round)
    return config.replace(
        batch_size=batch,
        lr=training.lr or lr_for(training.optimizer, batch),
        rounds=rounds,
        steps_per_round=per_round,
    )


def batch_for(num_images: int) -> int:
    """Return the batch size for a number of training images: a power of two, 16 to 64, a sixteenth of the images."""
    batch = _LEAST_BATCH
    while batch < MOST_BATCH and 2 * batch * _BATCHES_OF_EPOCH <= num_images:
        batch *= 2
    return batch


def lr_for(optimizer: str, batch: int) -> float:
    """Return the peak learning rate for a batch size."""
    share = min(1.0, batch / MOST_BATCH)
    return _SGD_LR * share if optimizer == "sgd" else _ADAM_LR * float(np.sqrt(share))


def rounds_for(per_epoch: int, per_round: int = 0) -> tuple[int, int]:
    """Return rounds and steps of a round: 3 epochs or more, 200 steps or more, and at most 5 rounds of whole epochs.

    `per_epoch` are the steps of an epoch, 1 or more; `per_round` those asked for a round, or 0.
    """
    epochs = max(_LEAST_EPOCHS, -(-LEAST_STEPS // per_epoch))
    if not per_round:
        per_round = per_epoch * -(-epochs // _MOST_ROUNDS)
    return -(-epochs * per_epoch // per_round), per_round


def steps_per_epoch(num_images: int, batch: int) -> int:
    """Return the number of mini-batches per epoch; a single left-over image is dropped, since BatchNorm needs two."""
    full, rest = divmod(num_images, batch)
    return max(1, full + (rest > 1))


def split_training(config: RunConfig, description: StoreSetDescription) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the global indices of the images to train on and to validate on, both ascending.

    Which ones are held back for validation depends on the run's seed alone, so that every party knows how many there
    are, and a party that has no labels needs none.
    """
    samples_N = description.samples_of("train")
    fraction = config.training.valid_fraction
    if not fraction:
        return samples_N, samples_N[:0]
    random = np.random.Generator(np.random.PCG64(derive(config.training.seed, "validation")))
    held = round(fraction * len(samples_N))
    order_N = random.permutation(len(samples_N))
    return samples_N[np.sort(order_N[held:])], samples_N[np.sort(order_N[:held])]
