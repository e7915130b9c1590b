"""The Lower's engine: positions joined in order, gradients parted in order, the update held back until asked for."""

import copy

import pytest
import torch

from psl_flower.engine.lower import LowerEngine
from psl_flower.engine.optimizers import Sgd
from psl_flower.errors import RunError, TrainingError
from psl_flower.losses import Targets

ASSIGNMENT = (0, 1, 1, 0)
Y = torch.tensor([0, 1])


class Weighted(torch.nn.Module):
    """Class k's logit is the sum of the map's features, position by position, times weight[k, p]."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.5, 0.6, 0.7, 0.8]]))

    def forward(self, smashed_BPChw, flipped=None):
        return smashed_BPChw.sum((2, 3, 4)) @ self.weight.T


def engine(**changes):
    options = {"alpha": 0.0, "make_optimizer": lambda parameters: Sgd(parameters, 0.9, 0.0)} | changes
    return LowerEngine(Weighted(), None, ASSIGNMENT, **options)


def smashed():
    """Return maps (2, K, 1, 1, 1) whose one feature is 10 * sample + position."""
    positions = {0: [0, 3], 1: [1, 2]}
    return {
        m: torch.tensor([[10.0 * b + p for p in held] for b in range(2)]).reshape(2, 2, 1, 1, 1)
        for m, held in positions.items()
    }


def test_positions():
    assert engine().positions == {0: [0, 3], 1: [1, 2]}


def test_maps_are_joined_by_position():
    logits = engine().logits(smashed())
    by_hand = torch.tensor([[0.0, 1, 2, 3], [10.0, 11, 12, 13]]) @ Weighted().weight.detach().T
    assert torch.allclose(logits, by_hand)
    assert not logits.requires_grad


def test_zeros_stand_for_an_absent_upper():
    made = smashed()
    by_hand = torch.tensor([[0.0, 0, 0, 3], [10.0, 0, 0, 13]]) @ Weighted().weight.detach().T
    assert torch.allclose(engine().logits({0: made[0]}), by_hand)


def test_gradients_are_parted_by_position():
    made = engine()
    loss, gradients = made.train_step(smashed(), Targets(Y), None, lr=0.1)
    logits = made.logits(smashed())
    # d CE / d logit = (softmax - target) / batch, times the weight of class and position.
    slope = (logits.softmax(1) - torch.eye(2)) / 2
    by_hand = slope @ made.lower.weight.detach()
    assert torch.allclose(gradients[0][:, :, 0, 0, 0], by_hand[:, [0, 3]], atol=1e-6)
    assert torch.allclose(gradients[1][:, :, 0, 0, 0], by_hand[:, [1, 2]], atol=1e-6)
    assert all(gradient.is_contiguous() for gradient in gradients.values())
    assert loss.full == loss.lower == pytest.approx(float(torch.nn.functional.cross_entropy(logits, Y)))
    assert loss.uppers == 0.0
    assert loss.correct == int((logits.argmax(1) == Y).sum())


def test_the_update_waits_and_comes_once():
    made = engine()
    before = made.lower.weight.detach().clone()
    made.train_step(smashed(), Targets(Y), None, lr=0.1)
    assert torch.equal(made.lower.weight, before)
    assert made.step == 0
    made.update()
    after = made.lower.weight.detach().clone()
    assert torch.allclose(after, before - 0.1 * made.lower.weight.grad)
    assert not torch.equal(after, before)
    made.update()
    assert torch.equal(made.lower.weight, after)
    assert made.step == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops(value):
    made = engine()
    before = made.lower.weight.detach().clone()
    spoilt = smashed()
    spoilt[1][0, 0] = value
    with pytest.raises(TrainingError, match="step 0: the loss is nan; Upper 1 sent values that are not finite; the"):
        made.train_step(spoilt, Targets(Y), None, lr=0.1)
    made.update()
    assert torch.equal(made.lower.weight, before)
    assert made.step == 0


def test_a_state_comes_back_with_its_momentum():
    made, other = engine(), engine()
    for _ in range(2):
        made.train_step(smashed(), Targets(Y), None, lr=0.01)
        made.update()
    other.train_step(smashed(), Targets(Y), None, lr=0.5)
    other.restore(copy.deepcopy(made.state()))
    # The update that was open belonged to the state before.
    other.update()
    assert other.step == 2
    for each in (made, other):
        each.train_step(smashed(), Targets(Y), None, lr=0.01)
        each.update()
    assert torch.equal(made.lower.weight, other.lower.weight)


def test_a_state_of_another_network_is_refused():
    state = engine().state()
    with pytest.raises(RunError, match="the checkpoint is of another network"):
        engine().restore(state | {"lower": {"weight": torch.zeros(3, 4)}})
    with pytest.raises(RunError, match="the checkpoint is of another network"):
        engine().restore({"step": 1})


def test_autocast_computes_in_bfloat16():
    assert engine().dtype == torch.float32
    assert engine(use_autocast=True).dtype == torch.bfloat16


def test_what_is_dropped_from_a_sample_is_zero_there_and_gets_no_gradient():
    made, given = engine(), smashed()
    dropped = torch.tensor([[False, True], [False, False]])
    loss, gradients = made.train_step(given, Targets(Y), None, lr=0.1, dropped_BM=dropped)
    given[1][0] = 0.0
    by_hand, full = engine().train_step(given, Targets(Y), None, lr=0.1)
    assert loss == by_hand
    assert gradients[1][0].abs().sum() == 0
    assert torch.equal(gradients[1][1], full[1][1])
    assert torch.equal(gradients[0], full[0])
