"""Whatever the optimiser, its options and the weights of classes: federated training gives one process's weights."""

from __future__ import annotations

import pytest

from psl_flower.engine import optimizers
from psl_flower.engine.local import LocalExchange
from psl_flower.errors import PeerLost
from tests.engines import STEPS, Federation, Oracle, StatelessExchange, differences, same_predictions, settings

# Small rates: Adam's first steps are as long as its rate in every weight.
CASES = {
    "nesterov": {"nesterov": True},
    "adam, clipped": {"optimizer": "adam", "lr": 0.001, "clip_norm": 0.5},
    "adamw": {"optimizer": "adamw", "lr": 0.001, "weight_decay": 0.05, "schedule": "cosine", "warm_up_steps": 2},
    "sgd, clipped, slower Uppers": {"clip_norm": 0.1, "upper_lr_scale": 0.5, "uppers": 2},
    "adamw, average of the Uppers": {"optimizer": "adamw", "lr": 0.001, "average_every": 2},
    "balanced classes, mixed and smoothed": {"class_weights": "balanced", "mixup": 0.4, "label_smoothing": 0.1},
    "all, Adaptation Net elsewhere": {
        "optimizer": "adamw", "lr": 0.001, "clip_norm": 0.2, "class_weights": "balanced", "adaptation_server": True,
        "mixup": 0.4,
    },
}  # fmt: skip


class Vanishing(LocalExchange):
    """A node is gone when the plan of a step goes out."""

    def __init__(self, parts: Federation, fail_at: int = -1) -> None:
        super().__init__(parts.parties, parts.wire)
        self._fail_at = fail_at

    def exchange(self, down, shapes, meanwhile):
        turn = down[0].turn
        if getattr(turn, "plan", None) is not None and turn.plan.id.step == self._fail_at:
            raise PeerLost("node 1 vanished")
        return super().exchange(down, shapes, meanwhile)


@pytest.mark.parametrize("exchange", [Vanishing, StatelessExchange])
@pytest.mark.parametrize("changes", CASES.values(), ids=CASES.keys())
def test_interrupted_and_resumed_it_is_bit_equal_to_one_process(changes, exchange, stores_for, tmp_path):
    """Interrupted while step 4 goes out; the last commit is of step 2 or 3."""
    assert len(CASES) == 7
    config = settings(**changes)
    stores = stores_for(config)
    whole = Oracle(config, stores)
    first = Federation(config, stores, tmp_path, checkpoint_every=3)
    with pytest.raises(PeerLost, match="node 1 vanished"):
        first.run(exchange(first, fail_at=4))
    second = Federation(config, stores, tmp_path, checkpoint_every=3)
    assert second.resume() == 3
    predictions = second.run(exchange(second))
    if exchange is StatelessExchange:
        for party in second.parties.values():
            party.go_to(STEPS)
    assert differences(whole.after[STEPS], second.snapshot()) == []
    assert first.losses[:3] + second.losses == whole.losses
    assert same_predictions(predictions, whole.predictions)


def test_images_held_back_are_not_trained_on_and_judged_as_in_one_process(stores_for, tmp_path):
    config = settings(valid_fraction=0.25, adaptation_server=True)
    stores = stores_for(config)
    whole, parts = Oracle(config, stores), Federation(config, stores, tmp_path)
    report = parts.driver.run(Vanishing(parts), STEPS, evaluate=True)
    assert differences(whole.after[STEPS], parts.snapshot()) == []
    assert report.predictions is None
    assert same_predictions(report.validation, whole.monolith.evaluate(split="valid"))
    assert len(report.validation.sample) == 6
    # A run that trains on them, too, comes to other weights.
    assert differences(whole.after[STEPS], Oracle(settings(), stores).after[STEPS])


@pytest.mark.parametrize("name", ["nesterov", "clip_norm", "upper_lr_scale", "warm_up_steps", "class_weights"])
def test_each_option_changes_what_is_learnt(name, stores_for):
    given = {
        "nesterov": True, "clip_norm": 0.1, "upper_lr_scale": 0.5, "warm_up_steps": 2, "class_weights": "balanced",
    }  # fmt: skip
    stores = stores_for(settings())
    base, changed = (Oracle(settings(**own), stores, at=(2,)) for own in ({}, {name: given[name]}))
    assert "uppers.0.conv1.weight" in differences(base.after[2], changed.after[2])


def test_the_comparison_notices_a_state_that_is_lost(stores_for, tmp_path, monkeypatch):
    """An optimiser that resumes without its state: the weights differ from those of one process."""
    config = settings(optimizer="adamw", lr=0.001)
    stores = stores_for(config)
    whole = Oracle(config, stores)
    first = Federation(config, stores, tmp_path)
    first.run(stop_step=3)
    monkeypatch.setattr(optimizers.PartyOptimizer, "load_state_dict", lambda self, state: None)
    second = Federation(config, stores, tmp_path)
    second.resume()
    second.run()
    assert "uppers.0.conv1.weight" in differences(whole.after[STEPS], second.snapshot())


def test_the_comparison_notices_who_clips_what(stores_for, tmp_path, monkeypatch):
    """Upper 0 does not clip."""
    config = settings(clip_norm=0.1)
    stores = stores_for(config)
    whole, parts = Oracle(config, stores, at=(2,)), Federation(config, stores, tmp_path)
    parts.uppers[0]._optimizer._clip_norm = 0.0
    parts.run(stop_step=2)
    assert "uppers.0.conv1.weight" in differences(whole.after[2], parts.snapshot())
