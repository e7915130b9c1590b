"""Error feedback: federated training is bit-equal to one process, also when it is interrupted and steps are repeated."""

from __future__ import annotations

import pytest
import torch

from psl_flower.engine.rounding_feedback import GradientFeedback
from psl_flower.errors import PeerLost
from tests.engines import STEPS, Federation, Oracle, StatelessExchange, differences, same_predictions, settings
from tests.equivalence.test_codes import Vanishing

FED = {"gradient_feedback": True, "backbone_width": 8}
CODE = FED | {"protection": "code", "code_size": 6, "cut": "layer3", "wire_gradients": "int8"}
CASES = {
    "signs, int8": CODE,
    "signs, int8, Adaptation Net elsewhere, two Uppers": CODE | {"adaptation_server": True, "uppers": 2},
    "maps, bfloat16, averaged": FED | {"wire_gradients": "bfloat16", "average_every": 2, "alpha": 0.0},
    "codes, float16": CODE | {"wire_gradients": "float16", "code_levels": 5},
    "codes, int8 under autocast": CODE | {"autocast": True, "code_levels": 5},
}


@pytest.mark.parametrize("changes", CASES.values(), ids=CASES.keys())
def test_federated_training_is_bit_equal_to_one_process(changes, stores_for, tmp_path):
    config = settings(**changes)
    stores = stores_for(config)
    whole, parts = Oracle(config, stores), Federation(config, stores, tmp_path)
    predictions = parts.run()
    assert differences(whole.after[STEPS], parts.snapshot()) == []
    assert parts.losses == whole.losses
    assert same_predictions(predictions, whole.predictions)
    owed, same = (each._feedback.state() for each in (parts.lower, whole.monolith))
    assert owed.keys() == same.keys() == parts.uppers.keys()
    assert all(torch.equal(owed[m], same[m]) and owed[m].any() for m in owed)


@pytest.fixture(scope="module")
def oracle(stores_for):
    return Oracle(settings(**CODE), stores_for(settings(**CODE)))


def interrupted(stores_for, folder):
    """Return the run after a node vanished in step 4, and another, back at the checkpoint of step 3, went on."""
    stores = stores_for(settings(**CODE))
    first = Federation(settings(**CODE), stores, folder, checkpoint_every=3)
    with pytest.raises(PeerLost):
        first.run(Vanishing(first.parties, first.wire))
    second = Federation(settings(**CODE), stores, folder, checkpoint_every=3)
    assert second.resume() == 3
    second.run(StatelessExchange(second))
    for engine in second.uppers.values():
        engine.go_to(STEPS)
    return second


def test_an_interrupted_run_ends_in_the_same_weights(oracle, stores_for, tmp_path):
    parts = interrupted(stores_for, tmp_path)
    assert differences(oracle.after[STEPS], parts.snapshot()) == []
    # The same engines, gone back within the process.
    parts.lower.go_to(STEPS, parts.checkpoints)
    owed = oracle.monolith._feedback.state()
    assert all(torch.equal(parts.lower._feedback.state()[m], owed[m]) for m in owed)


@pytest.mark.parametrize("fault", ["forgotten", "twice"])
def test_the_comparison_notices_what_is_owed(fault, oracle, stores_for, tmp_path, monkeypatch):
    restore = GradientFeedback.restore

    def wrong(self, state):
        restore(self, {} if fault == "forgotten" else {m: 2 * owed for m, owed in state.items()})

    monkeypatch.setattr(GradientFeedback, "restore", wrong)
    assert differences(oracle.after[STEPS], interrupted(stores_for, tmp_path).snapshot())


def test_one_process_continues_from_its_state(oracle, stores_for):
    config = settings(**CODE)
    first = Oracle(config, stores_for(config), at=(2,))
    second = Oracle(config, stores_for(config), at=())
    second.monolith.load_state_dict(first.monolith.state_dict())
    second.monolith.train(STEPS - 2)
    weights = second.monolith.net.state_dict()
    assert differences(weights, {name: oracle.after[STEPS][name] for name in weights}) == []


def test_without_feedback_training_is_another(oracle, stores_for):
    config = settings(**CODE | {"gradient_feedback": False})
    assert differences(oracle.after[STEPS], Oracle(config, stores_for(config)).after[STEPS])
