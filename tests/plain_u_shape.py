"""The three parties of `tests.plain_split` with the labels at a party, and a loop of plain PyTorch that trains the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from psl_flower.engine.checkpoints import Checkpoints
from psl_flower.flower import SplitLearning
from psl_flower.seeds import derive
from psl_flower.split import LabelSide, LocalResult, PartySide, Training
from tests import plain_split as plain

# One that has nothing but labels, and one that sends something up, too.
HOLDERS = ("clinic", "family")
STEPS = 18


class Body(nn.Module):
    """The server's model: joins what the parties send, and ends before the labels' head."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Dropout(0.2), nn.Linear(20, 8), nn.BatchNorm1d(8), nn.ReLU())

    def forward(self, *outputs: torch.Tensor) -> torch.Tensor:
        return self.layers(torch.cat([part.flatten(1) for part in outputs], 1))


class Head(nn.Module):
    """The label holder's model, with a dropout and a BatchNorm of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.3), nn.Linear(6, 1))

    def forward(self, joined: torch.Tensor) -> torch.Tensor:
        return self.layers(joined).squeeze(1)


class Kept:
    """What a holder was told of its evaluations."""

    def __init__(self) -> None:
        self.rows: NDArray[np.int64] | None = None
        self.outputs: torch.Tensor | None = None

    def __call__(self, rows: NDArray[np.int64], outputs: Any) -> None:
        self.rows, self.outputs = rows, outputs


def label_side(optimizer: Callable[..., Any], /, **changes: Any) -> LabelSide:
    told = {
        "head": Head(), "labels": plain.labels(), "loss": plain.bce, "optimizer": optimizer,
        "metrics": {"accuracy": plain.accuracy},
    }  # fmt: skip
    return LabelSide(**(told | changes))


def party_with(optimizer: Callable[..., Any], holder: str, /, **changes: Any) -> Callable[[str, Any], Any]:
    """Return the parties, of which one brings labels, after its net if it has one."""
    data = plain.columns()

    def party(name: str, context: Any) -> Any:
        side = PartySide(plain.net(name), data[name], optimizer) if name in plain.PARTIES else None
        if name != holder:
            return side
        labels = label_side(optimizer, **changes)
        return labels if side is None else (side, labels)

    return party


def arguments(optimizer: Callable[..., Any], holder: str, **changes: Any) -> dict[str, Any]:
    told = {"labels": holder, "train": plain.TRAIN, "valid": plain.VALID, "optimizer": optimizer, **plain.SETTINGS}
    return told | changes


def training(optimizer: Callable[..., Any], holder: str, top: Any = Body, **changes: Any) -> Training:
    return Training(top, plain.PARTIES, **arguments(optimizer, holder, **changes))


def over_nodes(optimizer: Callable[..., Any], holder: str, top: Any = Body, **changes: Any) -> SplitLearning:
    told = arguments(optimizer, holder, **({"node_timeout_s": 20.0} | changes))
    return SplitLearning(top, plain.PARTIES, **told)


def seats(holder: str) -> tuple[str, ...]:
    """Return the names of the nodes that are needed."""
    return tuple(dict.fromkeys([*plain.PARTIES, holder]))


def made(seed: int, holder: str) -> tuple[dict[str, nn.Module], nn.Module, nn.Module]:
    """Return nets, the server's model and the head with their first weights."""
    nets, head = {}, None
    for name in seats(holder):
        torch.manual_seed(derive(seed, "init", name))
        if name in plain.PARTIES:
            nets[name] = plain.net(name)
        if name == holder:
            head = Head()
    torch.manual_seed(derive(seed, "init", "top"))
    assert head is not None
    return nets, Body(), head


def plain_loop(
    optimizer: Callable[..., torch.optim.Optimizer],
    holder: str,
    *,
    steps: int | None = None,
    dropout: bool = True,
    head_learns: bool = True,
) -> dict[str, torch.Tensor]:
    """Return all weights, and the head's outputs for the held-out samples, after a training in one loop."""
    seed, data, targets = plain.SETTINGS["seed"], plain.columns(), plain.labels()
    nets, top, head = made(seed, holder)
    learning = [*nets.values(), top, *([head] if head_learns else [])]
    optimizers = [optimizer(module.parameters()) for module in learning]
    order = plain.batches(plain.TRAIN, plain.SETTINGS["batch_size"], plain.SETTINGS["epochs"], seed)
    for step, batch in enumerate(order[:steps]):
        rows = torch.from_numpy(batch)
        outputs = []
        for name, module in nets.items():
            if dropout:
                plain.drawing(seed, step, name)
            outputs.append(module(data[name][rows]))
        if dropout:
            plain.drawing(seed, step, "top")
        joined = top(*outputs)
        if dropout:
            plain.drawing(seed, step, f"{holder}.head")
        value = plain.bce(head(joined), targets[rows])
        for each in optimizers:
            each.zero_grad()
        value.backward()
        for each in optimizers:
            for group in each.param_groups:
                group["lr"] = plain.SETTINGS["lr"]
            each.step()
    for module in [*nets.values(), top, head]:
        module.eval()
    with torch.no_grad():
        held_out = torch.from_numpy(plain.VALID)
        answers = head(top(*(module(data[name][held_out]) for name, module in nets.items())))
    return snapshot(nets, top, head) | {"outputs": answers}


def snapshot(nets: Mapping[str, nn.Module], top: nn.Module, head: nn.Module) -> dict[str, torch.Tensor]:
    found = {f"head.{key}": value.detach().clone() for key, value in head.state_dict().items()}
    return plain.snapshot(nets, top) | found


def local_weights(result: LocalResult) -> dict[str, torch.Tensor]:
    assert isinstance(result.outputs, torch.Tensor)
    assert result.head is not None
    return snapshot(result.nets, result.top, result.head) | {"outputs": result.outputs}


def node_weights(result: Any, states: Path, holder: str, kept: Kept, step: int = STEPS) -> dict[str, torch.Tensor]:
    """Return all weights, those of the parties from their states under a folder, and what the holder kept."""
    found = {f"top.{name}": value for name, value in result.arrays.to_torch_state_dict().items()}
    for name, folder in [*((name, name) for name in plain.PARTIES), ("head", f"{holder}/head")]:
        (path,) = states.rglob(f"{folder}/step-{step:08d}.pt")
        state = Checkpoints(path.parent).load(step)
        found |= {f"{name}.{key}": value for key, value in state["model"].items()}
    assert kept.outputs is not None
    return found | {"outputs": kept.outputs}


def loaded(weights: Mapping[str, torch.Tensor], holder: str) -> tuple[dict[str, nn.Module], nn.Module, nn.Module]:
    """Return nets, the server's model and the head with such weights, in evaluation mode."""
    nets, top, head = made(0, holder)
    for name, module in [*nets.items(), ("top", top), ("head", head)]:
        prefix = f"{name}."
        own = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
        module.load_state_dict(own)
        module.eval()
    return nets, top, head
