"""The optimisers against those of torch, their state, and the clipping of gradients."""

import copy

import pytest
import torch

from psl_flower.engine.optimizers import Adam, Sgd, Together, set_lr
from psl_flower.errors import RunError

# Ours -> torch's.
KINDS = {
    "sgd": (lambda p: Sgd(p, 0.9, 0.01), lambda p: torch.optim.SGD(p, momentum=0.9, weight_decay=0.01)),
    "nesterov": (
        lambda p: Sgd(p, 0.9, 0.01, nesterov=True),
        lambda p: torch.optim.SGD(p, momentum=0.9, weight_decay=0.01, nesterov=True),
    ),
    "adam": (lambda p: Adam(p, 0.01), lambda p: torch.optim.Adam(p, weight_decay=0.01)),
    "adamw": (lambda p: Adam(p, 0.01, decoupled=True), lambda p: torch.optim.AdamW(p, weight_decay=0.01)),
}


def parameters():
    torch.manual_seed(0)
    return [torch.nn.Parameter(torch.randn(3, 2)), torch.nn.Parameter(torch.randn(4))]


def gradients(given, step):
    """Give parameters the gradients of a step; the second has none in the first."""
    generator = torch.Generator().manual_seed(step)
    for i, parameter in enumerate(given):
        drawn = torch.randn(parameter.shape, generator=generator)
        parameter.grad = None if (i, step) == (1, 0) else drawn


def train(optimizer, given, steps):
    for step in steps:
        set_lr(optimizer, 0.1 / (step + 1))
        gradients(given, step)
        optimizer.step()


@pytest.mark.parametrize("kind", KINDS)
def test_the_weights_are_those_of_torch(kind):
    assert KINDS
    ours, theirs = parameters(), parameters()
    train(KINDS[kind][0](ours), ours, range(5))
    train(KINDS[kind][1](theirs), theirs, range(5))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(ours, parameters(), strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_continues_bit_by_bit_and_without_it_does_not(kind):
    whole, parted, forgotten = parameters(), parameters(), parameters()
    train(KINDS[kind][0](whole), whole, range(6))
    for given, keeps in ((parted, True), (forgotten, False)):
        first = KINDS[kind][0](given)
        train(first, given, range(3))
        state = copy.deepcopy(first.state_dict())
        second = KINDS[kind][0](given)
        if keeps:
            second.load_state_dict(state)
        train(second, given, range(3, 6))
    assert all(torch.equal(a, b) for a, b in zip(whole, parted, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(whole, forgotten, strict=True))


def test_a_state_of_another_network_or_optimiser_is_refused():
    given = parameters()
    adam, sgd = Adam(given, 0.0), Sgd(given, 0.9, 0.0)
    for optimizer in (adam, sgd):
        train(optimizer, given, range(2))
    with pytest.raises(RunError, match="holds velocity, expected mean, square, steps"):
        adam.load_state_dict(sgd.state_dict())
    with pytest.raises(RunError, match="of another network"):
        adam.load_state_dict({name: kept[::-1] for name, kept in adam.state_dict().items()})
    with pytest.raises(RunError, match="of another network"):
        Together([sgd]).load_state_dict({"velocity": [None]})


def test_gradients_are_scaled_down_to_the_norm_and_no_further():
    given = parameters()
    optimizer = Sgd(given, 0.0, 0.0, clip_norm=2.0)
    set_lr(optimizer, 1.0)
    before = [parameter.detach().clone() for parameter in given]
    given[0].grad, given[1].grad = torch.full((3, 2), 3.0), torch.full((4,), 3.0)
    optimizer.step()
    moved = torch.cat([(b - p).detach().flatten() for b, p in zip(before, given, strict=True)])
    assert moved.norm().item() == pytest.approx(2.0, rel=1e-5)
    before = [parameter.detach().clone() for parameter in given]
    given[0].grad, given[1].grad = torch.full((3, 2), 0.1), torch.full((4,), 0.1)
    optimizer.step()
    for b, p in zip(before, given, strict=True):
        assert torch.equal(p, b - 0.1)


@pytest.mark.parametrize("clip_norm", [0.0, 0.5])
def test_parties_together_are_parties_apart(clip_norm):
    together, apart = parameters(), parameters()
    one = Together(
        [Sgd([p], 0.9, 0.01, clip_norm=clip_norm, lr_scale=s) for p, s in zip(together, (1.0, 0.5), strict=True)]
    )
    each = [Sgd([p], 0.9, 0.01, clip_norm=clip_norm, lr_scale=s) for p, s in zip(apart, (1.0, 0.5), strict=True)]
    for step in range(3):
        set_lr(one, 0.1)
        gradients(together, step)
        gradients(apart, step)
        one.step()
        for optimizer in each:
            set_lr(optimizer, 0.1)
            optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(together, apart, strict=True))
    assert [len(kept) for kept in one.state_dict().values()] == [2]


def test_one_party_would_clip_otherwise():
    together, alone = parameters(), parameters()
    one, other = Together([Sgd([p], 0.0, 0.0, clip_norm=0.5) for p in together]), Sgd(alone, 0.0, 0.0, clip_norm=0.5)
    for optimizer, given in ((one, together), (other, alone)):
        set_lr(optimizer, 0.1)
        gradients(given, 1)
        optimizer.step()
    assert not torch.equal(together[0], alone[0])
