"""A training of a lightening over the parties gives the very weights of the same training in one process.

The oracle is the training of `psl lighten --local`; the parties exchange real frames, in this process.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import torch

from psl_flower.config import RunConfig
from psl_flower.engine.build import Blueprint
from psl_flower.engine.checkpoints import Checkpoints
from psl_flower.engine.exchange import Exchange, WireFormat
from psl_flower.engine.local import LocalExchange
from psl_flower.engine.round_driver import RoundDriver
from psl_flower.engine.upper import UpperEngine
from psl_flower.errors import NoCheckpoint, PeerLost, RunError
from psl_flower.lightening.local import LocalBackend
from psl_flower.lightening.on_node import put_in_place, training_engine
from psl_flower.lightening.quantising import folded, with_rounding
from psl_flower.lightening.training import (
    LightTraining,
    LocalTrainer,
    SizedTeacher,
    lower_engine,
    shapes_up,
    training_config,
)
from psl_flower.models import PatchSplitNet
from psl_flower.models.architectures import BackboneSize
from psl_flower.stores.store_set import StoreSet
from tests.engines import CPU, STEPS, Snapshot, StatelessExchange, copied, differences, prefixed, settings

SIZE = BackboneSize(depths=(1, 1, 1, 1), widths=(8, 8, 16, 16))
TEACHER = BackboneSize(depths=(1, 2, 1, 1), widths=(16, 16, 16, 24))
SHARE = 0.7


@pytest.fixture
def stores(stores_for) -> StoreSet:
    return stores_for(settings())


def a_teacher(config: RunConfig, stores: StoreSet) -> SizedTeacher:
    """Return a teacher whose BatchNorm has seen something."""
    net = Blueprint(config.replace(seed=7), stores.description).network(TEACHER)
    with torch.no_grad():
        net.train()(torch.rand(8, 1, 16, 16, generator=torch.Generator().manual_seed(1)))
    return SizedTeacher(net=net.eval().requires_grad_(False), share=SHARE, size=TEACHER)


def student(config: RunConfig, stores: StoreSet, bits: int) -> PatchSplitNet:
    net = Blueprint(config, stores.description).network(SIZE)
    return with_rounding(folded(net), bits) if bits else net


def a_training(folder: Path, teacher: SizedTeacher | None, bits: int) -> LightTraining:
    return LightTraining(what="it", place=folder, size=SIZE, epochs=1, teacher=teacher, weight_bits=bits)


class Parties:
    """The parties of a training, with their states in `folder`; weights are put in place if they are given."""

    def __init__(
        self,
        config: RunConfig,
        stores: StoreSet,
        folder: Path,
        *,
        bits: int = 0,
        teacher: SizedTeacher | None = None,
        net: PatchSplitNet | None = None,
        device: torch.device = CPU,
    ) -> None:
        self.device = device
        self.config = training_config(config, 1, rounding=bits > 0)
        self.folder, self.stores, self.description = folder, stores, stores.description
        self.blueprint = Blueprint(self.config, stores.description)
        training = a_training(folder, teacher, bits)
        self.training = training.on_nodes
        begins = net or student(config, stores, bits)
        self.lower = lower_engine(self.blueprint, training, copy.deepcopy(begins.lower), device)
        self.checkpoints = Checkpoints(folder / "lower")
        if net is not None:
            for m, upper in enumerate(net.uppers):
                taught = teacher.net.uppers[m].state_dict() if teacher else {}
                with closing(stores.open(m)) as store:
                    put_in_place(self.blueprint, self.training, store, self.kept(m), upper.state_dict(), taught)
            self.checkpoints.save(0, self.lower.state())
        self.wire = WireFormat.of(config, self.lower.dtype)
        self.parties = {m: self.upper(m) for m in range(self.description.num_uppers)}
        shapes = shapes_up(self.blueprint, training)
        self.driver = RoundDriver(
            self.lower, self.blueprint.task(stores.labels), shapes, self.checkpoints,
            checkpoint_every=2,
        )  # fmt: skip

    def kept(self, m: int) -> Checkpoints:
        return Checkpoints(self.folder / f"upper-{m}" / "part")

    def upper(self, m: int) -> UpperEngine:
        engine = training_engine(self.blueprint, self.training, self.stores.open(m), self.kept(m), self.device)
        engine.go_to(0)
        return engine

    def resume(self) -> None:
        step = self.checkpoints.steps()[-1]
        self.lower.go_to(step, self.checkpoints)
        for party in self.parties.values():
            party.go_to(step)

    def run(self, exchange: Exchange | None = None) -> Snapshot:
        self.driver.run(exchange or LocalExchange(self.parties, self.wire), STEPS, evaluate=False)
        taken = prefixed("lower", self.lower.lower.state_dict())
        for m, party in self.parties.items():
            party.go_to(STEPS)  # by what it has saved: in a `StatelessExchange` other objects have trained
            taken |= prefixed(f"uppers.{m}", party.model.state_dict())
        return copied(taken)


def in_one_process(
    config: RunConfig, stores: StoreSet, folder: Path, net: PatchSplitNet, teacher: SizedTeacher | None, bits: int
) -> Snapshot:
    opened = [stores.open(m) for m in range(stores.description.num_uppers)]
    trainer = LocalTrainer(config=config, stores=stores, opened=opened, device=CPU, progress=lambda *_: None)
    trained = LocalBackend(trainer, threads=1, batch=1).train(a_training(folder, teacher, bits), net)
    return copied(trained.state_dict())


CASES: dict[str, tuple[dict[str, object], bool, int]] = {
    "plain": ({}, False, 0),
    "distilled": ({}, True, 0),
    "rounded": ({}, False, 7),
    "rounded and distilled": ({}, True, 7),
    "distilled, shared patches": ({"uppers": 3}, True, 0),
    "distilled, codecs": ({"wire_activations": "int8", "wire_gradients": "bfloat16"}, True, 0),
    "distilled, dropout": ({"patch_dropout": 0.3, "label_smoothing": 0.1, "mixup": 0.5}, True, 0),
    "distilled, autocast": ({"autocast": True}, True, 0),
}


@pytest.mark.parametrize("case", CASES)
def test_the_very_weights_of_one_process(case: str, stores_for, tmp_path: Path) -> None:
    changes, taught, bits = CASES[case]
    config = settings(**changes)
    stores = stores_for(config)
    teacher = a_teacher(config, stores) if taught else None
    net = student(config, stores, bits)
    expected = in_one_process(config, stores, tmp_path, copy.deepcopy(net), teacher, bits)
    parties = Parties(config, stores, tmp_path, bits=bits, teacher=teacher, net=net)
    assert differences(parties.run(), expected) == []
    # It has learnt at all, on both sides of the cut.
    assert differences(expected, copied(net.state_dict())) >= ["lower.fc.bias"]
    assert any(name.startswith("uppers.1.") for name in differences(expected, copied(net.state_dict())))


def share(teacher: SizedTeacher) -> SizedTeacher:
    return dataclasses.replace(teacher, share=0.6)


def stale_upper(teacher: SizedTeacher) -> SizedTeacher:
    net = copy.deepcopy(teacher.net)
    next(net.uppers[1].parameters())[0, 0, 0, 0] += 0.1
    return dataclasses.replace(teacher, net=net)


def stale_lower(teacher: SizedTeacher) -> SizedTeacher:
    net = copy.deepcopy(teacher.net)
    net.lower.fc.bias[0] += 0.1
    return dataclasses.replace(teacher, net=net)


def none(teacher: SizedTeacher) -> None:
    return None


@pytest.mark.parametrize("wrong", [share, stale_upper, stale_lower, none])
def test_a_wrong_teacher_gives_other_weights(
    wrong: Callable[[SizedTeacher], SizedTeacher | None], stores: StoreSet, tmp_path: Path
) -> None:
    config = settings()
    teacher, net = a_teacher(config, stores), student(config, stores, 0)
    expected = in_one_process(config, stores, tmp_path, copy.deepcopy(net), teacher, 0)
    found = Parties(config, stores, tmp_path, teacher=wrong(teacher), net=net).run()
    different = differences(found, expected)
    assert "lower.fc.weight" in different
    assert "uppers.0.conv1.weight" in different


@pytest.mark.parametrize("bits", [0, 7])
def test_single_messages_and_an_interruption_change_nothing(bits: int, stores: StoreSet, tmp_path: Path) -> None:
    """New engines for every message, from states on disk; a node that vanishes; all go on from the last checkpoint."""
    config = settings()
    teacher, net = a_teacher(config, stores), student(config, stores, bits)
    expected = Parties(config, stores, tmp_path / "whole", bits=bits, teacher=teacher, net=net).run()
    broken = Parties(config, stores, tmp_path / "parts", bits=bits, teacher=teacher, net=net)
    with pytest.raises(PeerLost):
        broken.run(StatelessExchange(broken, fail_at=3))
    again = Parties(config, stores, tmp_path / "parts", bits=bits, teacher=teacher)
    again.resume()
    saved = dict.fromkeys(again.parties, again.lower.step)
    assert again.lower.step == 2
    assert differences(again.run(StatelessExchange(again, saved=saved)), expected) == []


def test_the_teacher_costs_nothing_on_the_way_down(stores: StoreSet, tmp_path: Path) -> None:
    config = settings()
    sizes = []
    for teacher in (None, a_teacher(config, stores)):
        parties = Parties(config, stores, tmp_path / str(len(sizes)), teacher=teacher, net=student(config, stores, 0))
        exchange = LocalExchange(parties.parties, parties.wire)
        parties.run(exchange)
        sizes.append((exchange.bytes_down()[0], exchange.bytes_up()[0]))
    (alone_down, alone_up), (taught_down, taught_up) = sizes
    assert taught_down == alone_down
    assert taught_up > 2.9 * alone_up  # 8 channels, and 16 of the teacher's


def test_without_weights_in_place_nothing_is_trained(stores: StoreSet, tmp_path: Path) -> None:
    """Else a node that lost them would begin with initial ones, unnoticed."""
    with pytest.raises(NoCheckpoint, match="no weights of this training are in place here"):
        Parties(settings(), stores, tmp_path)


def test_weights_of_another_network_are_refused(stores: StoreSet, tmp_path: Path) -> None:
    config = settings()
    net = Blueprint(config, stores.description).network(TEACHER)
    with pytest.raises(RunError, match="the weights are of another network"):
        Parties(config, stores, tmp_path, net=net)
