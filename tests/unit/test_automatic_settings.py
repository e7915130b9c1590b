"""The settings that are chosen by the number of images, and which images are held back to validate on."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from psl_flower.engine.automatic_settings import batch_for, lr_for, planned, rounds_for, split_training, steps_per_epoch
from psl_flower.engine.batches import batch_order
from psl_flower.engine.build import Blueprint
from psl_flower.errors import ConfigError
from psl_flower.flower.placement import Placement
from psl_flower.kinds.kind import Work
from psl_flower.kinds.train import Train
from psl_flower.runs.folder import RunFolder
from server.training import _placed
from tests.engines import settings


@pytest.mark.parametrize(("images", "batch"), [
    (10, 16), (144, 16), (511, 16), (512, 32), (1023, 32), (1024, 64), (50_000, 64),
])  # fmt: skip
def test_batch(images, batch):
    assert batch_for(images) == batch


@pytest.mark.parametrize(("optimizer", "batch", "lr"), [
    ("sgd", 16, 0.0125), ("sgd", 64, 0.05), ("sgd", 128, 0.05), ("adam", 16, 0.0005), ("adamw", 64, 0.001),
])  # fmt: skip
def test_learning_rate(optimizer, batch, lr):
    assert lr_for(optimizer, batch) == pytest.approx(lr)


@pytest.mark.parametrize("images", [2, 3, 20, 144, 375, 1150, 5000, 50_000])
def test_few_and_many_images_get_enough_steps_and_epochs(images):
    per_epoch = steps_per_epoch(images, batch_for(images))
    rounds, per_round = rounds_for(per_epoch)
    assert 1 <= rounds <= 5
    assert per_round % per_epoch == 0
    total = rounds * per_round
    assert total >= max(200, 3 * per_epoch)
    # Not much more: one round less would be too few.
    assert total - per_round < max(200, 3 * per_epoch)


def test_many_images_train_as_they_did():
    assert rounds_for(steps_per_epoch(50_000, 64)) == (3, 782)


@pytest.mark.parametrize(("per_round", "rounds"), [(100, 2), (7, 29), (1000, 1)])
def test_rounds_of_a_length_that_was_asked_for(per_round, rounds):
    assert rounds_for(10, per_round) == (rounds, per_round)


def test_what_is_asked_for_stays_and_the_rest_is_chosen(stores_for):
    description = stores_for(settings()).description  # 24 training images
    asked = settings(rounds=7, batch_size=6, lr=0.3)
    assert planned(asked, description) is asked
    chosen = planned(settings(rounds=0, steps_per_round=0, batch_size=0), description).training
    assert (chosen.batch_size, chosen.lr, chosen.rounds, chosen.steps_per_round) == (16, 0.0125, 5, 40)
    only_lr = planned(settings(), description).training
    assert (only_lr.batch_size, only_lr.lr, only_lr.rounds) == (4, 0.05 / 16, 1)


def test_every_party_plans_the_same(stores_for):
    stores = stores_for(settings())
    blueprint = Blueprint(settings(rounds=0, batch_size=0), stores.description)
    assert Blueprint.decode(blueprint.encode()) == blueprint
    assert blueprint.config.training.batch_size == batch_order(settings(batch_size=0), stores.description).batch_size
    task = blueprint.task(stores.labels)
    assert task.schedule.peak == blueprint.config.training.lr == 0.0125
    assert task.schedule.total_steps == 204  # rounds of 6 steps, as asked


def test_images_to_validate_on_are_held_back(stores_for):
    description = stores_for(settings()).description
    train, valid = split_training(settings(valid_fraction=0.25), description)
    assert (len(train), len(valid)) == (18, 6)
    assert sorted([*train, *valid]) == description.samples_of("train").tolist()
    again = split_training(settings(valid_fraction=0.25), description)
    assert np.array_equal(again[1], valid)
    other = split_training(settings(valid_fraction=0.25, seed=1), description)
    assert not np.array_equal(other[1], valid)
    assert split_training(settings(), description)[1].tolist() == []
    order = batch_order(settings(valid_fraction=0.25), description)
    seen = {sample for step in range(order.steps_per_epoch) for sample in order.samples(step).tolist()}
    assert seen == set(train.tolist())


def check(description, tmp_path, **changes):
    folder = RunFolder(tmp_path)
    return Train().check(Work(config=settings(**{"lr": 0.1} | changes), source=folder, folder=folder), description)


@pytest.mark.parametrize(("changes", "why"), [
    ({"patch_size": (16, 16)}, "the grid has one patch"), ({"uppers": 1}, "one Upper holds all 4 patches"),
])  # fmt: skip
def test_whole_images_on_one_node_are_refused_unless_allowed(changes, why, stores_for, tmp_path):
    description = stores_for(settings(**changes)).description
    with pytest.raises(ConfigError, match=rf"{why}, so one node would hold whole images.*allow-whole-images=true"):
        check(description, tmp_path, **changes)
    assert check(description, tmp_path, **changes, allow_whole_images=True) == ""
    assert check(stores_for(settings(uppers=2)).description, tmp_path, uppers=2) == ""


def test_a_margin_over_the_whole_image_is_refused_unless_allowed(stores_for, tmp_path):
    wide, narrow = (stores_for(settings(margin=margin)).description for margin in (8, 7))
    with pytest.raises(ConfigError, match="the patches of Upper 0 with margin=8 show all of an image, so one node"):
        check(wide, tmp_path)
    assert check(wide, tmp_path, allow_whole_images=True) == check(narrow, tmp_path) == ""


@pytest.mark.parametrize(("margin", "refused"), [(4, True), (1, False)])
def test_a_node_whose_stores_together_show_whole_images_is_refused(margin, refused, stores_for):
    """A node with every second of 4x4 patches lacks the gaps between them, unless margins close these."""
    config = settings(patch_size=(4, 4), margin=margin)
    description = stores_for(config).description
    halves = {100 + half: tuple(p for p in range(16) if (p // 4 + p) % 2 == half) for half in (0, 1)}
    told = []
    run = SimpleNamespace(
        config=config, stores=SimpleNamespace(description=description),
        reporter=SimpleNamespace(placed=lambda *about: told.append(about)),
    )  # fmt: skip
    names = {100: "ward A", 101: "ward B"}
    nodes = Placement(hosts=halves, names=names, claims={}, transport="stream", simulated=False)
    if refused:
        with pytest.raises(ConfigError, match="ward A holds patches that show all of an image with margin=4"):
            _placed(run, nodes)
        run.config = config.replace(allow_whole_images=True)
    _placed(run, nodes)
    assert len(told) == 1
    simulated = dataclasses.replace(nodes, simulated=True)
    run.config = config
    _placed(run, simulated)


def test_what_is_chosen_is_told(stores_for, tmp_path):
    description = stores_for(settings()).description
    chosen = check(description, tmp_path, rounds=0, steps_per_round=0, batch_size=0, lr=0.0)
    assert chosen == "chosen for 24 training images: rounds=5, steps-per-round=40, batch-size=16, lr=0.0125"
    assert check(description, tmp_path, lr=0.0) == "chosen for 24 training images: lr=0.003125"
    assert check(description, tmp_path, steps_per_round=0) == ""
