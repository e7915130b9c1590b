"""Protected smashed data, deep cuts and narrow backbones: federated training is still bit-equal to one process."""

from __future__ import annotations

import pytest
import torch

from psl_flower.engine.exchange import Up
from psl_flower.engine.local import LocalExchange
from psl_flower.engine.upper import UpperEngine
from psl_flower.errors import PeerLost
from psl_flower.wire.plan import Plan
from tests.engines import STEPS, Federation, Oracle, StatelessExchange, differences, same_predictions, settings

NARROW = {"backbone_width": 8}
CODE = NARROW | {"protection": "code", "code_size": 6, "cut": "layer4"}
CASES = {
    "width 8": NARROW,
    "width 8, cut after layer4": NARROW | {"cut": "layer4"},
    "width 8, pooled": NARROW | {"cut": "pool", "uppers": 2, "alpha": 0.0},
    "narrow": NARROW | {"protection": "narrow", "code_size": 6, "cut": "layer3"},
    "signs": CODE,
    "signs, pooled, two Uppers": CODE | {"cut": "pool", "uppers": 2},
    "signs, gradients in int8, overlapping": CODE | {"wire_gradients": "int8", "stride": (4, 4)},
    "five levels, gradients in float16": CODE | {"code_levels": 5, "wire_gradients": "float16"},
    "codes after layer1, averaged": CODE | {"cut": "layer1", "code_levels": 16, "average_every": 2},
    "signs, Adaptation Net elsewhere": CODE | {"adaptation_server": True, "patch_dropout": 0.3},
    "256 levels under autocast": CODE | {"code_levels": 256, "autocast": True},
}


@pytest.mark.parametrize("changes", CASES.values(), ids=CASES.keys())
def test_federated_training_is_bit_equal_to_one_process(changes, stores_for, tmp_path):
    config = settings(**changes)
    stores = stores_for(config)
    whole, parts = Oracle(config, stores), Federation(config, stores, tmp_path)
    before = parts.snapshot()
    predictions = parts.run()
    assert differences(whole.after[STEPS], parts.snapshot()) == []
    assert parts.losses == whole.losses
    assert same_predictions(predictions, whole.predictions)
    assert set(differences(before, parts.snapshot())) >= before.keys()


@pytest.fixture(scope="module")
def oracle(stores_for):
    return Oracle(settings(**CODE), stores_for(settings(**CODE)), at=(2, STEPS))


class Vanishing(LocalExchange):
    """A node is gone when the plan of step 4 goes out."""

    def exchange(self, down, shapes, meanwhile):
        plan = down[0].turn.plan
        if plan is not None and plan.id.step == 4:
            raise PeerLost("node 1 vanished")
        return super().exchange(down, shapes, meanwhile)


def test_an_interrupted_run_with_codes_resumes_to_the_same_weights(oracle, stores_for, tmp_path):
    stores = stores_for(settings(**CODE))
    first = Federation(settings(**CODE), stores, tmp_path, checkpoint_every=3)
    with pytest.raises(PeerLost):
        first.run(Vanishing(first.parties, first.wire))
    second = Federation(settings(**CODE), stores, tmp_path, checkpoint_every=3)
    assert second.resume() == 3
    second.run(StatelessExchange(second))
    for engine in second.uppers.values():
        engine.go_to(STEPS)
    assert differences(oracle.after[STEPS], second.snapshot()) == []


def test_codes_are_what_crosses_the_wire(stores_for, tmp_path):
    """64 codes of 6 signs a patch: 48 bytes of payload a step, where float32 would take 32 times as many."""
    stores = stores_for(settings(**CODE))
    plain = Federation(settings(**CODE | {"protection": "narrow"}), stores, tmp_path / "narrow")
    coded = Federation(settings(**CODE), stores, tmp_path / "code")
    sent = {}
    for name, parts in (("narrow", plain), ("code", coded)):
        exchange = LocalExchange(parts.parties, parts.wire)
        parts.driver.run(exchange, 1, evaluate=False)
        sent[name] = exchange.bytes_up()[0]
    # One patch of 4 images: 24 numbers, as float32 or as 24 bits.
    saved = 24 * 4 - 3
    assert sent["narrow"] - sent["code"] == pytest.approx(saved, abs=3)  # the codecs' names differ in length


class StaleWeight(UpperEngine):
    """Upper 0 forgets what the first gradient did to the weights of its code."""

    def run(self, plan: Plan, backward_s: float = 0.0) -> Up:
        weight = self.model.protection[2].weight
        if plan.id.step == 0:
            self._old = weight.detach().clone()
        elif plan.id.step == 1 and self.store.meta.upper == 0:
            with torch.no_grad():
                weight.copy_(self._old)
        return super().run(plan, backward_s)


class WrongCode(LocalExchange):
    """One sign of the first answer of Upper 0 arrives as the other."""

    done = False

    def exchange(self, down, shapes, meanwhile):
        answers = super().exchange(down, shapes, meanwhile)
        if not self.done:
            self.done = True
            answers[0].tensor[0, 0, 0, 0, 0].neg_()
        return answers


@pytest.mark.parametrize("fault", [StaleWeight, WrongCode])
def test_the_comparison_notices(fault, oracle, stores_for, tmp_path):
    if fault is StaleWeight:
        parts = Federation(settings(**CODE), stores_for(settings(**CODE)), tmp_path, make_engine=StaleWeight)
        exchange = None
    else:
        parts = Federation(settings(**CODE), stores_for(settings(**CODE)), tmp_path)
        exchange = WrongCode(parts.parties, parts.wire)
    parts.run(exchange, stop_step=2)
    different = differences(oracle.after[2], parts.snapshot())
    assert "uppers.0.protection.2.weight" in different
