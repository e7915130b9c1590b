"""Noise on codes: federated training is bit-equal to one process with the same secrets, and to no other."""

from __future__ import annotations

import msgspec
import pytest
import torch

from psl_flower.engine.local import LocalExchange
from psl_flower.engine.upper import UpperEngine
from psl_flower.errors import PeerLost, ProtocolError
from tests.engines import STEPS, Oracle, StatelessExchange, differences, same_predictions, settings
from tests.equivalence.test_codes import Vanishing
from tests.equivalence.test_frozen import Parts

NOISY = {"backbone_width": 8, "code_size": 6, "cut": "layer3", "code_noise": 0.7}
FROZEN = {"rounds": 3, "steps_per_round": 2, "freeze_uppers_after": 1}
CASES = {
    "narrow": NOISY | {"protection": "narrow"},
    "signs, blanked": NOISY | {"protection": "code", "cutout": 3, "uppers": 2},
    "five levels under autocast, averaged": NOISY
    | {"protection": "code", "code_levels": 5, "autocast": True, "average_every": 2, "wire_gradients": "float16"},
    "narrow, of fields beyond the patch": NOISY | {"protection": "narrow", "cut": "layer1", "margin": 2, "context": 1},
    "two looks of frozen Uppers": NOISY | FROZEN | {"protection": "code", "looks": 2, "uppers": 2},
    "frozen, a view in each epoch": NOISY | FROZEN | {"protection": "narrow"},
}


@pytest.mark.parametrize("changes", CASES.values(), ids=CASES.keys())
def test_federated_training_is_bit_equal_to_one_process(changes, stores_for, tmp_path):
    config = settings(**changes)
    stores = stores_for(config)
    whole, parts = Oracle(config, stores), Parts(config, stores, tmp_path)
    per_round, report = parts.driver.task.steps_per_round, None
    for stop in range(per_round, STEPS + 1, per_round):
        report = parts.driver.run(LocalExchange(parts.parties, parts.wire), stop, evaluate=True)
    assert differences(whole.after[STEPS], parts.snapshot()) == []
    assert parts.losses == whole.losses
    assert same_predictions(report.predictions, whole.predictions)
    silent = Oracle(config.replace(code_noise=1e-9), stores)
    assert parts.losses != silent.losses


class OtherSecret(UpperEngine):
    """Upper 1 draws from another secret."""

    def __init__(self, model, store, *options):
        super().__init__(model, store, *options)
        if store.meta.upper == 1:
            self._noise_key = bytes(32)


class FreshDraws(UpperEngine):
    """Upper 1 draws anew each time that it runs a plan, as from a running generator."""

    def run(self, plan, backward_s=0.0):
        if self.store.meta.upper == 1:
            self._noise_key = torch.randint(256, (32,), dtype=torch.uint8).numpy().tobytes()
        return super().run(plan, backward_s)


@pytest.mark.parametrize("fault", [OtherSecret, FreshDraws])
def test_the_comparison_notices(fault, stores_for, tmp_path):
    config = settings(**CASES["narrow"])
    stores = stores_for(config)
    whole, parts = Oracle(config, stores, at=(2,)), Parts(config, stores, tmp_path, make_engine=fault)
    parts.run(stop_step=2)
    assert any(name.startswith("uppers.1.") for name in differences(whole.after[2], parts.snapshot()))


def test_a_node_refuses_a_plan_that_mixes_images(stores_for, tmp_path):
    """Each weight of the mixing would be another draw for one code, as often as the server asks."""
    config = settings(**CASES["narrow"])
    parts = Parts(config, stores_for(config), tmp_path)
    asked, upper = parts.driver.task.train_plan(0), parts.uppers[0]
    with pytest.raises(ProtocolError, match="mixes images"):
        upper.run(msgspec.structs.replace(asked, mix_weight=0.25))
    assert upper.run(asked) is not None


def test_an_interrupted_run_resumes_to_the_same_weights_on_the_other_transport(stores_for, tmp_path):
    config = settings(**CASES["signs, blanked"])
    stores = stores_for(config)
    whole = Oracle(config, stores)
    first = Parts(config, stores, tmp_path, checkpoint_every=3)
    with pytest.raises(PeerLost):
        first.run(Vanishing(first.parties, first.wire))
    second = Parts(config, stores, tmp_path, checkpoint_every=3)
    assert second.resume() == 3
    predictions = second.run(StatelessExchange(second))
    for engine in second.uppers.values():
        engine.go_to(STEPS)
    assert differences(whole.after[STEPS], second.snapshot()) == []
    assert same_predictions(predictions, whole.predictions)
