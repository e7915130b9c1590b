"""A sample that is alone at a party: BatchNorm uses its running statistics, and all else trains as ever."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from psl_flower.errors import TrainingError
from psl_flower.split import PartySide, fit_local
from psl_flower.split.lone_sample import lone_sample
from tests import parties_in_process as usual
from tests import plain_split as plain


def test_one_value_per_channel_is_as_in_evaluation() -> None:
    layer = nn.BatchNorm1d(3)
    layer(torch.randn(8, 3))
    alone = torch.randn(1, 3)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        layer(alone)
    state = {key: value.clone() for key, value in layer.state_dict().items()}
    with lone_sample(layer):
        output = layer(alone)
    assert layer.training
    output.sum().backward()
    assert layer.weight.grad is not None
    assert all(torch.equal(state[key], value) for key, value in layer.state_dict().items())
    assert torch.equal(layer.eval()(alone), output)


def test_several_values_of_one_sample_are_as_ever() -> None:
    layer, other, alone = nn.BatchNorm2d(3), nn.BatchNorm2d(3), torch.randn(1, 3, 4, 4)
    with lone_sample(layer):
        output = layer(alone)
    assert torch.equal(output, other(alone))
    assert torch.equal(layer.running_mean, other.running_mean)


def test_frozen_layers_stay_frozen() -> None:
    net = nn.Sequential(nn.BatchNorm1d(3).eval(), nn.BatchNorm1d(3))
    with lone_sample(net):
        net(torch.randn(1, 3))
    assert [layer.training for layer in net] == [False, True]


def alone(layer: nn.Module) -> object:
    """Return parties of which one has three samples, so that batches have one of them at most."""
    present = np.zeros(plain.NUM_SAMPLES, bool)
    present[:3] = True

    def party(name: str, context: object) -> PartySide:
        if name != "fare":
            return PartySide(plain.net(name), plain.columns()[name], torch.optim.Adam)
        net = nn.Sequential(nn.Linear(5, 6), layer)
        return PartySide(net, plain.columns()[name], torch.optim.Adam, present=present)

    return party


def test_a_training_with_zeros_goes_on() -> None:
    result = fit_local(alone(nn.BatchNorm1d(6)), usual.training())
    assert result.rounds[-1]["step"] == 18


def test_a_layer_without_running_statistics_says_what_to_do() -> None:
    with pytest.raises(TrainingError, match="party 'fare': its net has one sample of this batch alone.*missing='drop'"):
        fit_local(alone(nn.BatchNorm1d(6, track_running_stats=False)), usual.training())
