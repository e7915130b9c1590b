"""Patch split learning written with the surface for parties of any kind: the very weights of its own engines.

Patches of a store, sealed or plain, are one input; Upper and Lower one pair of models; the Lower's loss one objective.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from psl_flower.engine.build import Blueprint
from psl_flower.engine.inputs import normalise
from psl_flower.errors import TrainingError
from psl_flower.flower import PartySide, SplitLearning
from psl_flower.models.cut import to_wire
from psl_flower.patches.assignment import positions_by_upper
from psl_flower.patches.store import PatchStore
from psl_flower.split import fit_local
from psl_flower.stores.store_set import StoreSet
from tests.engines import STEPS, Federation, differences, prefixed, settings
from tests.parties_in_process import PartiesGrid, weights_of

pytestmark = pytest.mark.usefixtures("one_thread", "answered_soon")

CONFIG = {"flip": False, "shift": 0, "alpha": 0.0, "uppers": 2, "backbone_width": 8}


class Patches:
    """The patches of a store, by sample."""

    def __init__(self, store: PatchStore) -> None:
        self._store = store

    def __len__(self) -> int:
        return len(self._store)

    def __getitem__(self, samples_B: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(self._store.read(samples_B))


class Eyes(nn.Module):
    """An Upper on uint8 patches (B, K, C, h, w) of its positions; returns (B, K, h', w', C')."""

    def __init__(self, blueprint: Blueprint, m: int) -> None:
        super().__init__()
        self.upper, self.told = blueprint.upper(m), blueprint.description

    def forward(self, patches_BKCHW: torch.Tensor) -> torch.Tensor:
        options = self.told.mean, self.told.std, torch.device("cpu")
        return to_wire(self.upper(normalise(patches_BKCHW.flatten(0, 1), *options)), patches_BKCHW.shape[1])


class Joined(nn.Module):
    """The Lower on what all Uppers send."""

    def __init__(self, blueprint: Blueprint) -> None:
        super().__init__()
        self.lower = blueprint.lower()
        self.order = np.argsort(np.concatenate(positions_by_upper(blueprint.description.assignment)))

    def forward(self, *smashed: torch.Tensor) -> torch.Tensor:
        return self.lower(torch.cat(smashed, 1)[:, self.order].permute(0, 1, 4, 2, 3), None)


def over_parties(blueprint: Blueprint, stores: StoreSet, **changes: Any) -> tuple[Any, SplitLearning]:
    """Return the parties and their training."""
    training, task = blueprint.config.training, blueprint.task(stores.labels)

    def sgd(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, momentum=training.momentum, weight_decay=training.weight_decay)

    def party(name: str, context: Any) -> PartySide:
        m = int(name.removeprefix("upper-"))
        return PartySide(Eyes(blueprint, m), Patches(stores.open(m)), sgd)

    told = {
        "labels": stores.labels, "train": task.order.pool, "valid": task.test, "optimizer": sgd, "lr": training.lr,
        "loss": nn.functional.cross_entropy, "batch_size": training.batch_size, "epochs": 1, "seed": training.seed,
        "schedule": training.schedule, "evaluate_batch_size": training.evaluate_batch_size,
    }  # fmt: skip
    shapes = {f"upper-{m}": shape for m, shape in blueprint.smashed_shapes().items()}
    return party, SplitLearning(lambda: Joined(blueprint), shapes, **told, **changes)


@pytest.mark.parametrize("kind", ["plain", "sealed"])
def test_in_one_process(kind: str, stores_for: Any, tmp_path: Path) -> None:
    config = settings(stores=kind, **CONFIG)
    stores = stores_for(config)
    own, short = Federation(config, stores, tmp_path / "own"), Federation(config, stores, tmp_path / "short")
    predictions = own.run()
    short.run(stop_step=STEPS - 1)
    result = fit_local(*over_parties(own.blueprint, stores))
    found = prefixed("top", result.top.state_dict())
    for name, net in result.nets.items():
        found |= prefixed(name, net.state_dict())
    assert differences(found, of_engines(own)) == []
    assert differences(found, of_engines(short)) != []
    assert result.outputs.argmax(1).tolist() == predictions.predicted.tolist()


@pytest.mark.parametrize("transport", ["stream", "flower"])
def test_over_nodes_and_resumed(transport: str, stores_for: Any, tmp_path: Path) -> None:
    config = settings(stores="sealed", **CONFIG)
    own = Federation(config, stores_for(config), tmp_path / "own")
    own.run()

    def fail(record: Any) -> None:
        if (record["event"], record["step"]) == ("step", 4):
            raise RuntimeError("power cut")

    options = {"transport": transport, "workdir": tmp_path / "run", "checkpoint_every": 2, "node_timeout_s": 20.0}
    party, first = over_parties(own.blueprint, own.stores, callbacks=[fail], **options)
    grid = PartiesGrid(party, tmp_path / "state", list(first.sent))
    with pytest.raises(TrainingError, match="power cut"):
        grid.fit(first)
    _, second = over_parties(own.blueprint, own.stores, **options)
    found = weights_of(second, grid.fit(second), tmp_path / "state", STEPS, list(second.sent))
    del found["outputs"]
    assert differences(found, of_engines(own)) == []


def of_engines(parts: Federation) -> dict[str, torch.Tensor]:
    """Return the weights of a run's own engines, by the names of the parties' models."""
    found = prefixed("top.lower", parts.lower.lower.state_dict())
    for m, engine in parts.uppers.items():
        found |= prefixed(f"upper-{m}.upper", engine.model.state_dict())
    return found
