"""The examples' own models and data in loops of plain PyTorch, without our engine, and what their apps have written."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from psl_flower.engine.checkpoints import Checkpoints
from tests import plain_groups
from tests import plain_split as plain
from tests.paths import ROOT

EXAMPLES = ROOT / "examples"
NAMES = ("tabular", "patches", "vit", "audio_text", "u_shape", "groups")

Optimizer = Callable[..., torch.optim.Optimizer]
# As each app's `main` says.
_SETTINGS: dict[str, dict[str, Any]] = {
    "tabular": {"lr": 0.003, "batch_size": 32},
    "patches": {"peak": 0.05, "batch_size": 64},
    "vit": {"peak": 0.003, "batch_size": 64},
    "audio_text": {"lr": 0.005, "batch_size": 32},
    "u_shape": {"lr": 0.003, "batch_size": 32},
    "groups": {"lr": 0.003, "batch_size": 32},
}
_OPTIMIZERS: dict[str, Optimizer] = {
    "patches": lambda parameters: torch.optim.SGD(parameters, momentum=0.9),
    "vit": torch.optim.AdamW,
}


def example(name: str) -> ModuleType:
    """Return an example's module, loaded anew."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / name / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def batch_size(name: str) -> int:
    return int(_SETTINGS[name]["batch_size"])


def rounds(workdir: Path) -> list[dict[str, Any]]:
    path = workdir / "rounds.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def weights(workdir: Path, *states: Path) -> dict[str, torch.Tensor]:
    """Return all weights after the last step, of the server and of nodes, which may keep theirs in folders elsewhere."""
    step = rounds(workdir)[-1]["step"]
    found = {f"top.{key}": value for key, value in Checkpoints(workdir / "top").load(step)["lower"].items()}
    for path in (path for place in states or [workdir / "parties"] for path in place.rglob(f"step-{step:08d}.pt")):
        found |= {
            f"{path.parent.name}.{key}": value for key, value in Checkpoints(path.parent).load(step)["model"].items()
        }
    return found


def expected(module: ModuleType, epochs: int, optimizer: Optimizer | None = None, **options: Any) -> dict[str, Any]:
    """Return the weights of the plain loop over an example: of its own optimiser, or of another one."""
    name = module.__name__
    settings = {"seed": 0, "epochs": epochs, "pool": np.array(module.TRAIN), "held_out": np.array(module.VALID)}
    settings |= _SETTINGS[name] | options
    optimizer = optimizer or _OPTIMIZERS.get(name, torch.optim.Adam)
    if "peak" in settings:
        steps = len(plain.batches(settings["pool"], settings["batch_size"], epochs, 0))
        settings["rate"] = one_cycle(settings.pop("peak"), steps).__getitem__
    loops = {"u_shape": _u_shape, "groups": _groups}
    found = loops.get(name, _parties)(module, optimizer, settings)
    return {name: value for name, value in found.items() if name != "outputs"}


def one_cycle(peak: float, steps: int) -> list[float]:
    """Return the learning rate of each step, as torch has it."""
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=peak)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, peak, total_steps=steps, cycle_momentum=False)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return rates


def _targets(module: ModuleType) -> tuple[Any, torch.Tensor]:
    """Return the loss and the labels."""
    if hasattr(module, "KEYS"):
        return torch.nn.CrossEntropyLoss(), module.KEYS
    if hasattr(module, "load_digits"):
        return torch.nn.CrossEntropyLoss(), torch.from_numpy(module.load_digits().target)
    return torch.nn.BCEWithLogitsLoss(), torch.tensor(module.load_breast_cancer().target, dtype=torch.float32)


def _parties(module: ModuleType, optimizer: Optimizer, settings: dict[str, Any]) -> dict[str, torch.Tensor]:
    loss, targets = _targets(module)
    data = {name: module.party(name, None).data for name in module.PARTIES}
    return plain.plain_loop(
        optimizer, lambda name: module.party(name, None).net, module.Top, data, targets, loss, **settings
    )


def _u_shape(module: ModuleType, optimizer: Optimizer, settings: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Return those of a loop that has the head among the layers behind the server's model."""
    heads: list[torch.nn.Module] = []

    def net(name: str) -> torch.nn.Module:
        given = module.party(name, None)
        if name != "hospital":
            return given.net
        heads.append(given[1].head)
        return given[0].net

    class Whole(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.top = module.Top()
            self.head = heads[-1]

        def forward(self, *outputs: torch.Tensor) -> torch.Tensor:
            return self.head(self.top(*outputs))

    loss, targets = _targets(module)
    data = {name: module.columns_of(name) for name in module.PARTIES}
    found = plain.plain_loop(optimizer, net, Whole, data, targets, loss, **settings)
    return {name.replace("top.head.", "head.").replace("top.top.", "top."): value for name, value in found.items()}


def _groups(module: ModuleType, optimizer: Optimizer, settings: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Return those of a loop whose data of a party are the groups' own tables put together."""
    sides = {name: module.party(name, None) for name in module.PARTIES}
    data = {party: torch.zeros(len(module.IDS), 15) for party in module.COLUMNS}
    for name, side in sides.items():
        party, _, group = name.partition("@")
        data[party][module.PATIENTS[group]] = side.data
    holding = {name: np.array(module.PATIENTS[name.partition("@")[2]]) for name in sides}
    return plain_groups.plain_loop(
        optimizer, holding, lambda party: module.party(f"{party}@north", None).net, module.Top, data,
        _targets(module)[1], dict.fromkeys(data, (16,)), **settings,
    )  # fmt: skip
