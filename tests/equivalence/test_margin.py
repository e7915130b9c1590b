"""A margin around patches: shifts are then the whole image's, and nothing else changes. Also context and padding.

The stores alone are held to the shifted image in tests/property/test_margin_property.py; here trainings are compared.
"""

from __future__ import annotations

import pytest
import torch

from psl_flower.baselines.whole_image import MergedPatches, whole_image_config
from psl_flower.engine.inputs import normalise
from psl_flower.engine.one_process import OneProcessTrainer
from psl_flower.inference.evaluation import images_in
from tests import engines
from tests.engines import Federation, Oracle, differences, same_predictions

STEPS = 3


def settings(**changes):
    """Return the settings of a run whose network is narrow."""
    return engines.settings(**{"backbone_width": 8} | changes)


CASES = {
    "margin": {"margin": 2, "shift": 2},
    "more margin than shift, cut-out and mixup, overlapping, two Uppers": {
        "margin": 3, "shift": 2, "cutout": 5, "mixup": 1.0, "stride": (4, 4), "uppers": 2,
    },
    "context": {"margin": 4, "shift": 2, "context": 2},
    "context, all, deeper cut": {
        "margin": 5, "context": 4, "cut": "layer3", "cutout": 5, "mixup": 1.0, "stride": (4, 4), "uppers": 2,
        "padding": "replicate", "average_every": 2,
    },
    "context, pooled codes": {"margin": 9, "context": 8, "cut": "pool", "protection": "code", "code_size": 6},
    "borders repeated": {"padding": "replicate", "uppers": 2},
    "borders repeated, imagenet stem": {"padding": "replicate", "stem": "imagenet", "cut": "layer2"},
    "padded": {"margin": 4, "shift": 4, "patch_size": (9, 9), "stride": (8, 8), "fit": "pad", "cutout": 4},
}  # fmt: skip


@pytest.mark.parametrize("changes", CASES.values(), ids=CASES.keys())
def test_training_is_bit_equal_to_one_process(changes, stores_for, tmp_path):
    assert CASES
    config = settings(**changes)
    stores = stores_for(config)
    whole, parts = Oracle(config, stores, at=(STEPS,)), Federation(config, stores, tmp_path)
    predictions = parts.run(stop_step=STEPS)
    assert differences(whole.after[STEPS], parts.snapshot()) == []
    assert parts.losses == whole.losses
    assert same_predictions(predictions, whole.predictions)


@pytest.mark.parametrize("shift", [0, 1])
def test_a_margin_alone_changes_nothing(shift, stores_for):
    """Without shifts the weights are those without margin; the control is a shift, which brings in other pixels."""
    kept, plain = (
        Oracle(config, stores_for(config), at=(STEPS,))
        for config in (settings(margin=margin, shift=shift, cutout=5) for margin in (3, 0))
    )
    assert (differences(kept.after[STEPS], plain.after[STEPS]) == []) == (shift == 0)
    assert same_predictions(kept.predictions, plain.predictions) == (shift == 0)


@pytest.mark.parametrize("margin", [2, 0])
def test_merged_patches_train_as_whole_images_if_shifts_are_those(margin, stores_for):
    """The baseline "augmented by patches" is then the whole image, bit by bit; without margin it is another one."""
    own = {"shift": 2, "cutout": 5, "alpha": 0.0}
    config, alone = settings(margin=margin, **own), whole_image_config(settings(**own))
    patches, images = stores_for(config), stores_for(alone)
    merged = MergedPatches(config, patches.description, patches.labels, [patches.open(m) for m in range(4)])
    whole = OneProcessTrainer(alone, images.description, images.labels, [images.open(0)])
    losses = []
    for trainer in (merged, whole):
        losses.append([])
        trainer.train(STEPS, lambda step, loss, seconds: losses[-1].append(loss))
    found = {name.removeprefix("net."): tensor for name, tensor in merged.net.state_dict().items()}
    assert (differences(found, whole.net.state_dict()) == []) == (margin == 2)
    assert (losses[0] == losses[1]) == (margin == 2)


def test_the_network_on_images_answers_as_the_nodes_on_their_stores(stores_for):
    """Where images are predicted or exported, the network cuts them itself: with context, and no margin besides."""
    config = settings(margin=4, context=2, shift=1, uppers=2)
    stores = stores_for(config)
    whole = Oracle(config, stores, at=(STEPS,))
    description, samples = stores.description, stores.description.samples_of("test")
    net = whole.monolith.net.eval()
    with torch.no_grad():
        logits = [
            net(normalise(images, description.mean, description.std))
            for images, _ in images_in(stores, samples, config.training.evaluate_batch_size)
        ]
    best = torch.cat(logits).softmax(1).max(1)
    assert (best.indices.numpy() == whole.predictions.predicted).all()
    assert torch.equal(best.values, torch.as_tensor(whole.predictions.confidence))
