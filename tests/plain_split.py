"""Three parties of tabular data, and a loop of plain PyTorch that trains them as one network, without our engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from psl_flower.seeds import derive

NUM_SAMPLES = 60
WIDTHS = {"person": 3, "fare": 5, "family": 4}
PARTIES = {"person": (8,), "fare": (6,), "family": (2, 3)}
TRAIN, VALID = np.arange(43), np.arange(43, NUM_SAMPLES)
SETTINGS: dict[str, Any] = {"lr": 0.01, "batch_size": 8, "epochs": 3, "seed": 5}
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": lambda p: torch.optim.AdamW(p, weight_decay=0.1),
    "sgd": lambda p: torch.optim.SGD(p, momentum=0.9, weight_decay=0.01),
}


def columns() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {name: torch.randn(NUM_SAMPLES, width, generator=generator) for name, width in WIDTHS.items()}


def labels() -> torch.Tensor:
    return (sum(part.sum(1) for part in columns().values()) > 0).float()


def net(name: str) -> nn.Module:
    """Return a party's model; dropout, BatchNorm and an output of rank 2 are among them."""
    layers: list[nn.Module] = [nn.Linear(WIDTHS[name], 16), nn.ReLU(), nn.Dropout(0.3)]
    if name == "fare":
        layers.append(nn.BatchNorm1d(16))
    size = int(np.prod(PARTIES[name]))
    return nn.Sequential(*layers, nn.Linear(16, size), nn.Unflatten(1, PARTIES[name]))


class Top(nn.Module):
    """Joins what the parties send, with a dropout of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Dropout(0.2), nn.Linear(20, 8), nn.ReLU(), nn.Linear(8, 1))

    def forward(self, *outputs: torch.Tensor) -> torch.Tensor:
        return self.layers(torch.cat([part.flatten(1) for part in outputs], 1)).squeeze(1)


def bce(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return nn.functional.binary_cross_entropy_with_logits(outputs, targets)


def accuracy(outputs: torch.Tensor, targets: torch.Tensor) -> float:
    return float(((outputs > 0) == (targets > 0.5)).float().mean())


def batches(pool: np.ndarray, batch_size: int, epochs: int, seed: int) -> list[np.ndarray]:
    """Return every step's samples; one that is left over alone is not used."""
    found = []
    for epoch in range(epochs):
        order = np.random.Generator(np.random.PCG64(derive(seed, "order", epoch))).permutation(len(pool))
        found += [pool[order[i : i + batch_size]] for i in range(0, len(pool), batch_size)]
    return [batch for batch in found if len(batch) > 1]


def drawing(seed: int, step: int, who: str, attempt: int = 0) -> None:
    """Seed torch for a forward pass."""
    torch.manual_seed(derive(seed, "pass", step, attempt, who))


def plain_loop(
    optimizer: Callable[..., torch.optim.Optimizer],
    make_net: Callable[[str], nn.Module] = net,
    make_top: Callable[[], nn.Module] = Top,
    data: Mapping[str, torch.Tensor] | None = None,
    targets: torch.Tensor | None = None,
    loss: Callable[..., torch.Tensor] = bce,
    *,
    steps: int | None = None,
    dropout: bool = True,
    pool: np.ndarray = TRAIN,
    held_out: np.ndarray = VALID,
    rate: Callable[[int], float] | None = None,
    **settings: Any,
) -> dict[str, torch.Tensor]:
    """Return all weights, and the outputs for the held-out samples, after a training in one loop."""
    told = SETTINGS | settings
    seed = told["seed"]
    data, targets = data or columns(), labels() if targets is None else targets
    nets = {}
    for name in data:
        torch.manual_seed(derive(seed, "init", name))
        nets[name] = make_net(name)
    torch.manual_seed(derive(seed, "init", "top"))
    top = make_top()
    modules = [*nets.values(), top]
    optimizers = [optimizer(module.parameters()) for module in modules if list(module.parameters())]
    for step, batch in enumerate(batches(pool, told["batch_size"], told["epochs"], seed)[:steps]):
        rows = torch.from_numpy(batch)
        outputs = []
        for name, module in nets.items():
            if dropout:
                drawing(seed, step, name)
            outputs.append(module(data[name][rows]))
        if dropout:
            drawing(seed, step, "top")
        value = loss(top(*outputs), targets[rows])
        for each in optimizers:
            each.zero_grad()
        value.backward()
        for each in optimizers:
            for group in each.param_groups:
                group["lr"] = told["lr"] if rate is None else rate(step)
            each.step()
    for module in modules:
        module.eval()
    with torch.no_grad():
        # Of few samples: one batch of the evaluation.
        answers = top(*(module(data[name][torch.from_numpy(held_out)]) for name, module in nets.items()))
    return snapshot(nets, top) | {"outputs": answers}


def snapshot(nets: Mapping[str, nn.Module], top: nn.Module) -> dict[str, torch.Tensor]:
    """Return all weights and buffers by name."""
    found = {f"top.{key}": value.detach().clone() for key, value in top.state_dict().items()}
    for name, module in nets.items():
        found |= {f"{name}.{key}": value.detach().clone() for key, value in module.state_dict().items()}
    return found


def differing(left: Mapping[str, torch.Tensor], right: Mapping[str, torch.Tensor]) -> list[str]:
    """Return the names of what is not bit-equal."""
    assert left.keys() == right.keys()
    assert len(left) > 5
    return [name for name in left if not torch.equal(left[name], right[name])]
