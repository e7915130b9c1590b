"""The batch order: complete, fresh every epoch, the same for the same seed."""

import numpy as np
import pytest

from psl_flower.engine.batches import BatchOrder
from psl_flower.errors import ConfigError


def order(stop=10, batch_size=4, seed=0, start=0):
    return BatchOrder(pool=np.arange(start, stop), batch_size=batch_size, seed=seed)


# samples, batch size -> sizes of an epoch's batches; a single left-over sample is left out.
SIZES = [(8, 4, [4, 4]), (10, 4, [4, 4, 2]), (9, 4, [4, 4]), (2, 64, [2]), (5, 2, [2, 2])]


@pytest.mark.parametrize(("samples", "batch_size", "expected"), SIZES)
def test_sizes(samples, batch_size, expected):
    assert SIZES
    made = order(samples, batch_size)
    assert made.steps_per_epoch == len(expected)
    assert [len(made.samples(step)) for step in range(len(expected))] == expected
    assert len(made.samples(len(expected))) == expected[0]
    sizes = [len(made.samples(step)) for step in range(3 * len(expected))]
    assert [made.num_samples(step) for step in range(len(sizes))] == sizes
    assert [made.num_samples_before(step) for step in range(len(sizes))] == [sum(sizes[:n]) for n in range(len(sizes))]


def test_an_epoch_takes_every_sample_once():
    made = order(start=100, stop=110)
    for epoch in range(2):
        taken = np.concatenate([made.samples(3 * epoch + i) for i in range(3)])
        assert sorted(taken.tolist()) == list(range(100, 110))
        assert taken.dtype == np.int64


def test_epochs_and_seeds_differ():
    made = order(100, 100)
    assert made.samples(0).tolist() != made.samples(1).tolist()
    assert made.samples(0).tolist() != order(100, 100, seed=1).samples(0).tolist()
    assert made.samples(0).tolist() == order(100, 100).samples(0).tolist()


def test_the_order_stays_as_it_was():
    # Resuming under another version must go on with the same batches.
    assert order(8, 4, seed=7).samples(0).tolist() == [3, 2, 7, 5]
    assert order(8, 4, seed=7).samples(1).tolist() == [1, 0, 4, 6]


def test_augmentation_seed_is_that_of_the_epoch():
    made = order(8, 4)
    seeds = [made.augment_seed(step) for step in range(4)]
    assert [made.epoch_of(step) for step in range(4)] == [0, 0, 1, 1]
    assert seeds[0] == seeds[1] != seeds[2] == seeds[3]
    assert seeds[0] != order(8, 4, seed=1).augment_seed(0)


def test_too_little_is_refused():
    with pytest.raises(ConfigError, match="batch-size: BatchNorm needs 2 or more samples in a batch, got 1"):
        order(batch_size=1)
    with pytest.raises(ConfigError, match="training needs 2 or more samples, the dataset has 1"):
        order(stop=1)
