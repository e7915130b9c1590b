"""With the Adaptation Net on a node of its own the weights are still those of one process, bit by bit.

Float addition of two terms does not depend on their order, so the gradient that comes back, added to the Lower's own, is
what one backward pass through both losses accumulates at the smashed data.
"""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from psl_flower.engine.local import LocalExchange
from psl_flower.errors import PeerLost
from psl_flower.wire.frames import Frame
from psl_flower.wire.messages import ADAPTATION, Finish, Keep, Step
from psl_flower.wire.mid_step import Adapt
from tests.engines import (
    STEPS,
    Federation,
    Oracle,
    StatelessExchange,
    differences,
    monolith_snapshot,
    same_predictions,
    settings,
)

ALL = 20
CASES = {
    "an Upper for each patch": ({}, ALL),
    "two Uppers": ({"uppers": 2}, ALL),
    "batches that end with a smaller one, alpha 0.5": ({"max_train": 22, "alpha": 0.5}, 7),
    "float16 under autocast": ({"wire_activations": "float16", "autocast": True, "uppers": 2}, 2),
}


def on_a_server(**changes):
    return settings(adaptation_server=True, **changes)


def weights(names: list[str]) -> set[str]:
    """Return which parties the tensors of these names belong to."""
    return {name.removeprefix("momentum of ").split(".")[0] for name in names}


@pytest.fixture(scope="module")
def oracle(stores_for):
    """Return the base run in one process, with snapshots after 2 and 6 steps."""
    return Oracle(settings(), stores_for(settings()), at=(2, STEPS))


@pytest.mark.parametrize(("changes", "steps"), CASES.values(), ids=CASES.keys())
def test_training_is_bit_equal_to_one_process(changes, steps, stores_for, tmp_path):
    assert CASES
    config = on_a_server(steps_per_round=ALL, **changes)
    stores = stores_for(config)
    whole, parts = Oracle(config, stores, at=(steps,)), Federation(config, stores, tmp_path)
    before = parts.snapshot()
    predictions = parts.run(stop_step=steps)
    after = parts.snapshot()
    assert differences(whole.after[steps], after) == []
    assert parts.losses == whole.losses
    assert same_predictions(predictions, whole.predictions)
    assert weights(differences(before, after)) == {"uppers", "lower", "adaptation"}
    assert parts.lower.adaptation is None


@pytest.mark.parametrize("stateless", [False, True])
def test_an_absent_upper_is_left_out_of_its_loss(stateless, stores_for, tmp_path):
    config = on_a_server(uppers=2)
    stores = stores_for(config)
    whole = Oracle(config, stores, at=(2,))
    whole.monolith.train(2, lambda _, loss, __: whole.losses.append(loss), absent={1})
    parts = Federation(config, stores, tmp_path)
    exchange = StatelessExchange(parts) if stateless else LocalExchange(parts.parties, parts.wire)
    parts.driver.run(exchange, 2, evaluate=False)
    parts.driver.run(exchange, 4, evaluate=False, absent={1})
    assert parts.lower.saved == {0: 4, 1: 2, ADAPTATION: 4}
    if stateless:
        for m, party in parts.parties.items():
            party.go_to(parts.lower.saved[m])
    assert differences(monolith_snapshot(whole.monolith), parts.snapshot()) == []
    assert parts.losses == whole.losses


class Counting(LocalExchange):
    """Counts the frames that go to the Adaptation Net, by kind and by what goes on."""

    def __init__(self, parts: Federation) -> None:
        super().__init__(parts.parties, parts.wire)
        self.counts: Counter[str] = Counter()
        self.evaluations = 0

    def carry(self, frames, expected, meanwhile):
        self.counts.update(type(frame.message).__name__ for m, frame in frames.items() if m == ADAPTATION)
        plans = [f.message.plan for f in frames.values() if isinstance(f.message, Step) and f.message.plan]
        self.evaluations += any(plan.mode == "evaluate" for plan in plans)
        assert len({m == ADAPTATION for m in frames}) == 1
        return super().carry(frames, expected, meanwhile)

    def finish(self, parties):
        assert list(parties) == [ADAPTATION]
        self.counts["Finish"] += 1
        assert self.evaluations == 0


def test_it_is_dismissed_before_evaluation(stores_for, tmp_path):
    config = on_a_server(uppers=2, cut="stem")
    parts = Federation(config, stores_for(config), tmp_path, checkpoint_every=2)
    exchange = Counting(parts)
    parts.run(exchange, 4)
    assert exchange.counts == {Adapt.__name__: 4, Keep.__name__: 2, Finish.__name__: 1}
    assert exchange.evaluations == 2
    # Up to the gradient's size as much comes back as goes there.
    up, down = exchange.bytes_up()[ADAPTATION], exchange.bytes_down()[ADAPTATION]
    assert 0 < down - up < 6 * 200
    assert up > 4 * 4 * 4 * 8 * 8 * 64 * 4


class Vanishing(LocalExchange):
    """The Adaptation Net's node learns from step 4, and is gone before its answer arrives."""

    def __init__(self, parts: Federation) -> None:
        super().__init__(parts.parties, parts.wire)

    def carry(self, frames, expected, meanwhile):
        answers = super().carry(frames, expected, meanwhile)
        asked = frames[ADAPTATION].message if ADAPTATION in frames else None
        if isinstance(asked, Adapt) and asked.id.step == 4:
            raise PeerLost("the Adaptation Net vanished")
        return answers


class VanishingForgetful(Vanishing, StatelessExchange):
    def __init__(self, parts: Federation) -> None:
        StatelessExchange.__init__(self, parts)


@pytest.mark.parametrize("stateless", [False, True])
def test_an_interrupted_run_resumes_to_the_same_weights(stateless, oracle, stores_for, tmp_path):
    """The node is a step ahead of the commit, and goes back to it."""
    stores = stores_for(settings())
    first = Federation(on_a_server(), stores, tmp_path, checkpoint_every=3)
    with pytest.raises(PeerLost, match="the Adaptation Net vanished"):
        first.run((VanishingForgetful if stateless else Vanishing)(first))
    assert first.checkpoints.steps() == [3]
    second = Federation(on_a_server(), stores, tmp_path, checkpoint_every=3)
    assert second.resume() == 3
    predictions = second.run(StatelessExchange(second, saved=second.lower.saved) if stateless else None)
    if stateless:
        for party in second.parties.values():
            party.go_to(STEPS)
    assert differences(oracle.after[STEPS], second.snapshot()) == []
    assert first.losses[:3] + second.losses == oracle.losses
    assert same_predictions(predictions, oracle.predictions)


class Stale(LocalExchange):
    """The gradient of the Adaptation Net is that of the step before."""

    def __init__(self, parts: Federation) -> None:
        super().__init__(parts.parties, parts.wire)
        self._last: torch.Tensor | None = None

    def carry(self, frames, expected, meanwhile):
        answers = super().carry(frames, expected, meanwhile)
        if ADAPTATION in answers and answers[ADAPTATION].tensors:
            answer = answers[ADAPTATION]
            gradient, self._last = self._last, answer.tensor
            if gradient is not None:
                answers[ADAPTATION] = Frame(answer.message, (gradient,), answer.codec)
        return answers


def stale_gradient(parts):
    return Stale(parts)


def wrong_alpha_at_the_node(parts):
    parts.adaptation.engine._alpha = 0.5


def update_left_out(parts):
    parts.adaptation.engine.update = lambda: None


def learning_rate_of_another_step(parts):
    learn = parts.adaptation.engine.learn
    parts.adaptation.engine.learn = lambda lesson: learn(lesson._replace(lr=2 * lesson.lr))


# What is wrong -> names of which some must differ then, after two steps; and the parties that alone may differ.
FAULTS = {
    stale_gradient: ("momentum of uppers.0.conv1.weight", {"uppers"}),
    wrong_alpha_at_the_node: ("uppers.0.conv1.weight", {"uppers", "adaptation", "lower"}),
    update_left_out: ("adaptation.layers.2.weight", {"uppers", "adaptation"}),
    learning_rate_of_another_step: ("adaptation.layers.2.weight", {"uppers", "adaptation"}),
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_the_comparison_notices(fault, oracle, stores_for, tmp_path):
    assert FAULTS
    parts = Federation(on_a_server(), stores_for(settings()), tmp_path)
    parts.run(fault(parts), stop_step=2)
    different = differences(oracle.after[2], parts.snapshot())
    name, parties = FAULTS[fault]
    assert name in different
    assert weights(different) == parties
