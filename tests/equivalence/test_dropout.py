"""Uppers and a Lower of your own that draw random numbers: exact where a pass is run again, and after an interruption."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import nn

from psl_flower.engine import party
from psl_flower.engine.exchange import Exchange
from psl_flower.engine.local import LocalExchange
from psl_flower.engine.upper import UpperEngine
from tests.engines import STEPS, Federation, SmallLower, StatelessExchange, differences, settings


class DroppingUpper(UpperEngine):
    """An Upper with dropout behind its own layers."""

    def __init__(self, model, store, options, checkpoints):
        super().__init__(nn.Sequential(model, nn.Dropout(0.3)), store, options, checkpoints)


@pytest.fixture(autouse=True)
def dropping_lower(monkeypatch):
    """Let the small Lower drop, too."""
    make = SmallLower.__init__

    def with_dropout(self, grid):
        make(self, grid)
        self.layers.append(nn.Dropout(0.3))

    monkeypatch.setattr(SmallLower, "__init__", with_dropout)


@pytest.fixture
def federation(stores_for, tmp_path):
    config = settings(cut="stem")

    def made(name: str) -> Federation:
        return Federation(config, stores_for(config), tmp_path / name, make_engine=DroppingUpper, small=True)

    return made


def trained(parts: Federation, exchange: Exchange) -> dict[str, torch.Tensor]:
    parts.run(exchange)
    if isinstance(exchange, StatelessExchange):
        for upper in parts.uppers.values():
            upper.go_to(STEPS)
    return parts.snapshot()


def test_masks_are_drawn_again_in_the_repeated_pass(federation):
    whole, stateless = federation("whole"), federation("stateless")
    expected = trained(whole, LocalExchange(whole.parties, whole.wire))
    torch.rand(7)  # whatever else has been drawn
    assert differences(trained(stateless, StatelessExchange(stateless)), expected) == []


def test_masks_are_drawn_again_after_an_interruption(federation):
    whole, first, second = federation("whole"), federation("parts"), federation("parts")
    expected = trained(whole, LocalExchange(whole.parties, whole.wire))
    first.run(stop_step=2)
    assert second.resume() == 2
    assert differences(trained(second, LocalExchange(second.parties, second.wire)), expected) == []


def test_without_a_generator_for_each_pass_it_is_noticed(federation, monkeypatch):
    monkeypatch.setattr(party, "drawing", lambda *_: nullcontext())
    whole, stateless = federation("whole"), federation("stateless")
    expected = trained(whole, LocalExchange(whole.parties, whole.wire))
    assert differences(trained(stateless, StatelessExchange(stateless)), expected) != []
