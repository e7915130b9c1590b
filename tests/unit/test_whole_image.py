"""The backbone on whole images: the same recipe as patch-split training, whoever holds the images."""

import numpy as np
import pytest
import torch

from psl_flower.baselines.whole_image import LocalTraining, MergedPatches, whole_image_config
from psl_flower.config import RunConfig
from psl_flower.engine.one_process import OneProcessTrainer
from psl_flower.engine.optimizers import Proximal, Sgd
from psl_flower.errors import TrainingError
from tests.engines import settings


def whole(stores_for, **changes):
    config = whole_image_config(settings(**changes))
    stores = stores_for(config)
    return config, stores, stores.open(0)


def differing(a, b):
    assert a.keys() == b.keys()
    return [name for name in a if not torch.equal(a[name], b[name])]


def test_the_whole_image_is_one_patch():
    config = whole_image_config(
        RunConfig.of(max_train=20, patch_size=(8, 8), stride=(4, 4), uppers=3, wire_activations="int8")
    )
    assert (config.patches.patch_size, config.patches.stride, config.patches.uppers, config.network.alpha) == (
        (16, 16),
        (0, 0),
        1,
        0.0,
    )
    assert config.wire.wire_activations == "float32"  # nothing is rounded at a cut that is none
    assert whole_image_config(RunConfig.of(image_size=(24, 20))).patches.patch_size == (24, 20)


def test_one_client_with_all_images_trains_as_one_process(stores_for):
    config, stores, store = whole(stores_for, rounds=2, steps_per_round=6)
    everything = stores.description.samples_of("train")
    local = LocalTraining(config, stores.description, stores.labels, store, everything, total_epochs=2)
    assert (local.num_samples, local.num_steps(2)) == (24, 12)
    alone = OneProcessTrainer(config, stores.description, stores.labels, [store])
    losses = []
    alone.train(12, lambda step, loss, seconds: losses.append(loss))
    assert local.train_epochs(0, 2) == pytest.approx(np.mean(losses))
    assert differing(local.net.state_dict(), alone.net.state_dict()) == []


def test_a_later_round_goes_on_in_the_schedule(stores_for):
    config, stores, store = whole(stores_for)
    samples = stores.description.samples_of("train")[:8]
    local = LocalTraining(config, stores.description, stores.labels, store, samples, total_epochs=3)
    before = {name: value.clone() for name, value in local.net.state_dict().items()}
    local.train_epochs(2, 1)
    late = local.net.state_dict()
    assert local.step == 6
    other = LocalTraining(config, stores.description, stores.labels, store, samples, total_epochs=3)
    assert differing(other.net.state_dict(), before) == []
    other.train_epochs(0, 1)
    # At the end of the schedule weights hardly move.
    moved = [
        float((net["lower.fc.weight"] - before["lower.fc.weight"]).norm()) for net in (late, other.net.state_dict())
    ]
    assert 0 < moved[0] < moved[1] / 2


def test_a_loss_that_is_not_finite_ends_it(stores_for):
    config, stores, store = whole(stores_for, lr=1e30, schedule="constant")
    samples = stores.description.samples_of("train")
    local = LocalTraining(config, stores.description, stores.labels, store, samples, total_epochs=1)
    with pytest.raises(TrainingError, match="lower lr"):
        local.train_epochs(0, 1)


def test_the_proximal_term_pulls_back_to_where_the_round_began():
    weight = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    optimizer = Proximal(Sgd([weight], momentum=0.0, weight_decay=0.0), [weight], mu=0.5)
    optimizer.param_groups[0]["lr"] = 0.1
    with torch.no_grad():
        weight += 2.0
    weight.grad = torch.tensor([1.0, 0.0])
    optimizer.step()
    # 3 - 0.1 (1 + 0.5 (3 - 1)), and 4 - 0.1 (0 + 0.5 (4 - 2)).
    assert weight.tolist() == pytest.approx([2.8, 3.9])


@pytest.mark.parametrize("stride", [(8, 8), (4, 4)])
def test_images_flipped_patch_by_patch_are_flipped_images(stores_for, stride):
    config, stores, store = whole(stores_for, shift=0)
    alone = OneProcessTrainer(config, stores.description, stores.labels, [store])
    # In which a network on whole images has no part.
    crossing = {"protection": "code", "code_noise": 0.5, "wire_gradients": "int8", "gradient_feedback": True}
    cut = settings(shift=0, stride=stride, alpha=0.0, average_every=1, **crossing)
    patches = stores_for(cut)
    opened = [patches.open(m) for m in range(patches.description.num_uppers)]
    merged = MergedPatches(cut, patches.description, patches.labels, opened)
    for trainer in (alone, merged):
        trainer.train(3)
    names = {f"net.{name}": value for name, value in alone.net.state_dict().items()}
    assert differing(merged.net.state_dict(), names) == []
    assert (merged.evaluate().predicted == alone.evaluate().predicted).all()


def test_shifting_patches_is_not_shifting_the_image(stores_for):
    config, stores, store = whole(stores_for, shift=2)
    alone = OneProcessTrainer(config, stores.description, stores.labels, [store])
    cut = settings(shift=2, alpha=0.0)
    patches = stores_for(cut)
    merged = MergedPatches(cut, patches.description, patches.labels, [patches.open(m) for m in range(4)])
    for trainer in (alone, merged):
        trainer.train(1)
    names = {f"net.{name}": value for name, value in alone.net.state_dict().items()}
    assert differing(merged.net.state_dict(), names)
