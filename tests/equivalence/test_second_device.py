"""Whatever is computed, on a device that is not the CPU: the same numbers, and no operation on tensors of two devices.

No machine of these tests has a GPU; `tests.second_device` stands in for one, in a process of its own, since torch knows
of a device for as long as its process lives. What it cannot show is a GPU's own kernels and autocast.
"""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest
import torch

from psl_flower.baselines.whole_image import LocalTraining, MergedPatches
from psl_flower.engine.local import LocalExchange
from psl_flower.inference.absence import absence_curve
from psl_flower.inference.evaluation import LabelledImages, images_in
from psl_flower.inference.trained_model import TrainedModel
from tests import second_device
from tests.engines import CPU, STEPS, Federation, Oracle, StatelessExchange, copied, differences, prefixed, settings
from tests.equivalence.test_light_trainings import Parties, a_teacher, student

AUGMENTED = {"mixup": 0.2, "cutout": 4, "patch_dropout": 0.25, "label_smoothing": 0.1}
INT8 = {"wire_activations": "int8", "wire_gradients": "int8"}


@pytest.fixture(scope="module")
def there():
    """Return a function that calls another in the process that has the second device, with it as first argument."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, initializer=second_device.register) as pool:
        yield lambda function, *args: pool.submit(_there, function, *args).result()


def _there(function, *args):
    torch.set_num_threads(1)
    with second_device.present() as device:
        return function(device, *args)


def refusals(device):
    layer = torch.nn.Linear(2, 2).to(device)
    found = []
    for wrong in (lambda: layer(torch.ones(1, 2)), layer.weight.detach().numpy):
        try:
            wrong()
        except RuntimeError as error:
            found.append(str(error))
    return found


def test_the_device_refuses_what_a_gpu_would(there):
    mixed, to_numpy = there(refusals)
    assert "two devices" in mixed
    assert "numpy" in to_numpy


def all_on(device, *modules):
    return {parameter.device for module in modules for parameter in module.parameters()} == {device}


def told(predictions):
    return {name: torch.from_numpy(np.asarray(getattr(predictions, name))) for name in ("loss", "confidence", "sample")}


def one_process(device, config, stores, folder):
    oracle = Oracle(config, stores, device=device)
    assert all_on(device, oracle.monolith.net)
    return oracle.after[STEPS] | told(oracle.predictions)


def parties(device, config, stores, folder):
    parts = Federation(config, stores, folder, device=device)
    predictions = parts.run(LocalExchange(parts.parties, parts.wire))
    assert all_on(device, parts.lower.lower, *(upper.model for upper in parts.uppers.values()))
    return parts.snapshot() | told(predictions)


def stateless(device, config, stores, folder):
    parts = Federation(config, stores, folder, device=device)
    parts.run(StatelessExchange(parts))
    for party in parts.parties.values():
        party.go_to(STEPS)  # those that trained are gone
    return parts.snapshot()


def resumed(device, config, stores, folder):
    Federation(config, stores, folder, device=device).run(stop_step=4)
    parts = Federation(config, stores, folder, device=device)
    assert parts.resume() == 4
    parts.run()
    return parts.snapshot()


def whole_image(device, config, stores, folder):
    samples = stores.description.samples_of("train")
    training = LocalTraining(
        config, stores.description, stores.labels, stores.open(0), samples, total_epochs=2, proximal=0.01, device=device
    )
    training.train_epochs(0, 2)
    return copied(training.net.state_dict()) | told(training.evaluate())


def merged(device, config, stores, folder):
    opened = [stores.open(m) for m in range(stores.description.num_uppers)]
    training = MergedPatches(config, stores.description, stores.labels, opened, device)
    training.train(STEPS)
    return copied(training.net.state_dict()) | told(training.evaluate())


def absent(device, config, stores, folder):
    net = Oracle(config, stores, at=(2,), device=device).monolith.net.eval()
    trained = TrainedModel(net=net, description=stores.description, config=config, device=device)
    samples = stores.description.samples_of("test")
    images = LabelledImages(dataset="digits", num_images=len(samples), batches=images_in(stores, samples, 5))
    points = absence_curve(trained, images)
    confidence, classes = trained.logits(next(images_in(stores, samples, 8))[0]).softmax(1).max(1)
    accuracy = torch.tensor([point.accuracy for point in points])
    return {"accuracy": accuracy, "classes": classes, "confidence": confidence}


def light(device, config, stores, folder):
    training = Parties(
        config, stores, folder, bits=7, teacher=a_teacher(config, stores), net=student(config, stores, 7), device=device
    )
    return prefixed("light", training.run())


WHAT = {
    "one process": (one_process, AUGMENTED | {"average_every": 2}),
    "parties": (parties, AUGMENTED | INT8),
    "parties, averaged, Adaptation Net elsewhere": (parties, {"average_every": 2, "adaptation_server": True}),
    "stateless parties": (stateless, {"average_every": 2, "adaptation_server": True, "wire_activations": "bfloat16"}),
    "parties, noise on codes": (
        resumed,
        {
            "protection": "code",
            "code_size": 6,
            "code_noise": 0.5,
            "cut": "layer3",
            "wire_gradients": "int8",
            "gradient_feedback": True,
        },
    ),
    "resumed parties": (resumed, {"uppers": 2}),
    "whole image": (whole_image, {"patch_size": (16, 16), "uppers": 1, "alpha": 0.0}),
    "image of patches": (merged, {"alpha": 0.0, "mixup": 0.2}),
    "without some Uppers": (absent, {}),
    "light network": (light, {"patch_dropout": 0.3}),
}


@pytest.mark.parametrize(("function", "changes"), WHAT.values(), ids=WHAT.keys())
def test_the_same_on_another_device(function, changes, there, stores_for, tmp_path):
    config = settings(**changes)
    stores = stores_for(config)
    expected = function(CPU, config, stores, tmp_path / "here")
    assert differences(expected, there(function, config, stores, tmp_path / "there")) == []
