"""Mixup, cut-out, patch dropout and label smoothing are bit-equal to one process, for both transports and wherever the losses are."""

from __future__ import annotations

import dataclasses

import msgspec
import numpy as np
import pytest

from psl_flower.engine import adaptation as adaptation_module
from psl_flower.engine.augment import Augmentation
from psl_flower.engine.local import LocalExchange
from psl_flower.engine.upper import UpperEngine
from psl_flower.losses import Targets, adaptation_loss
from tests.engines import (
    Federation,
    Oracle,
    StatelessExchange,
    differences,
    monolith_snapshot,
    same_predictions,
    settings,
)

STEPS = 4
ALL = {"mixup": 1.0, "cutout": 5, "label_smoothing": 0.1, "patch_dropout": 0.4}
SERVER = {"adaptation_server": True}
CASES = {
    "label smoothing": {"label_smoothing": 0.1},
    "mixup": {"mixup": 1.0},
    "mixup without flips": {"mixup": 1.0, "flip": False, "shift": 0},
    "cut-out": {"cutout": 5},
    "patch dropout": {"patch_dropout": 0.4},
    "all": ALL,
    "all, overlapping, two Uppers": ALL | {"stride": (4, 4), "uppers": 2},
    "all, Adaptation Net elsewhere": ALL | SERVER,
    "all, Adaptation Net elsewhere, bfloat16": ALL | SERVER | {"wire_activations": "bfloat16", "uppers": 2},
    "all, no Adaptation Net": ALL | {"alpha": 0.0, "cut": "stem"},
}


def local(parts):
    return LocalExchange(parts.parties, parts.wire)


@pytest.mark.parametrize("changes", CASES.values(), ids=CASES.keys())
def test_training_is_bit_equal_to_one_process(changes, stores_for, tmp_path):
    assert CASES
    config = settings(**changes)
    stores = stores_for(config)
    whole = Oracle(config, stores, at=(STEPS,))
    for exchange in (local, StatelessExchange):
        parts = Federation(config, stores, tmp_path / exchange.__name__)
        predictions = parts.run(exchange(parts), stop_step=STEPS)
        if exchange is StatelessExchange:
            for party in parts.parties.values():
                party.go_to(STEPS)
        assert differences(whole.after[STEPS], parts.snapshot()) == []
        assert parts.losses == whole.losses
        assert same_predictions(predictions, whole.predictions)


@pytest.fixture(scope="module")
def oracle(stores_for):
    """Return the run with all of it in one process, with a snapshot after 2 steps."""
    return Oracle(settings(**ALL), stores_for(settings()), at=(2,))


class Unmixed(UpperEngine):
    """Upper 0 leaves its samples apart."""

    def run(self, plan, backward_s=0.0):
        weight = plan.mix_weight if self.store.meta.upper else 1.0
        return super().run(msgspec.structs.replace(plan, mix_weight=weight), backward_s)


class SmallerSquare(UpperEngine):
    """Upper 0 blanks a smaller square."""

    def __init__(self, model, store, options, checkpoints):
        if store.meta.upper == 0:
            smaller = dataclasses.replace(options.augmentation, cutout=4)
            options = dataclasses.replace(options, augmentation=smaller)
        super().__init__(model, store, options, checkpoints)


def one_upper_does_not_mix(monkeypatch):
    return Unmixed, {}


def one_upper_blanks_less(monkeypatch):
    return SmallerSquare, {}


def partners_whatever_their_flip(monkeypatch):
    """Alike on all parties, so that it is the samples' patches alone that no longer fit together."""
    monkeypatch.setattr(Augmentation, "partners", lambda self, seed, samples_B: np.roll(np.arange(len(samples_B)), 1))
    return UpperEngine, {}


def labels_of_partners_left_out(monkeypatch):
    def alone(logits, targets, assignment, **options):
        return adaptation_loss(logits, Targets(targets.y_B), assignment, **options)

    monkeypatch.setattr(adaptation_module, "adaptation_loss", alone)
    return UpperEngine, {}


def drops_by_the_batch(monkeypatch):
    draw = Augmentation.dropped

    def alike(self, seed, samples_B, num_uppers, absent):
        return np.repeat(draw(self, seed, samples_B[:1], num_uppers, absent), len(samples_B), axis=0)

    monkeypatch.setattr(Augmentation, "dropped", alike)
    return UpperEngine, {}


def no_smoothing(monkeypatch):
    return UpperEngine, {"label_smoothing": 0.0}


def the_same_weight_in_every_step(monkeypatch):
    monkeypatch.setattr(Augmentation, "mix_weight", lambda self, seed, step: 0.5)
    return UpperEngine, {}


# What is wrong -> a name that must differ then, after two steps.
FAULTS = {
    one_upper_does_not_mix: "uppers.0.conv1.weight",
    one_upper_blanks_less: "uppers.0.conv1.weight",
    partners_whatever_their_flip: "lower.fc.weight",
    labels_of_partners_left_out: "adaptation.layers.2.weight",
    drops_by_the_batch: "lower.fc.weight",
    no_smoothing: "lower.fc.weight",
    the_same_weight_in_every_step: "lower.fc.weight",
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_the_comparison_notices(fault, oracle, stores_for, tmp_path, monkeypatch):
    assert FAULTS
    engine, changes = fault(monkeypatch)
    parts = Federation(settings(**(ALL | changes)), stores_for(settings()), tmp_path, make_engine=engine)
    parts.run(stop_step=2)
    assert FAULTS[fault] in differences(oracle.after[2], parts.snapshot())


@pytest.mark.parametrize("name", ALL)
def test_each_changes_what_is_learnt(name, oracle, stores_for):
    without = Oracle(settings(**(ALL | {name: 0})), stores_for(settings()), at=(2,))
    assert "lower.fc.weight" in differences(oracle.after[2], without.after[2])


@pytest.mark.parametrize("elsewhere", [False, True])
def test_patches_are_dropped_while_an_upper_is_absent(elsewhere, stores_for, tmp_path):
    config = settings(uppers=3, patch_dropout=0.6, adaptation_server=elsewhere)
    stores = stores_for(config)
    whole = Oracle(config, stores, at=(1,))
    whole.monolith.train(3, lambda _, loss, __: whole.losses.append(loss), absent={1})
    parts = Federation(config, stores, tmp_path)
    parts.driver.run(local(parts), 1, evaluate=False)
    parts.driver.run(local(parts), 4, evaluate=False, absent={1})
    assert differences(monolith_snapshot(whole.monolith), parts.snapshot()) == []
    assert parts.losses == whole.losses
