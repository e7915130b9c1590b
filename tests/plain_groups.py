"""The parties of `tests.plain_split` where two groups hold different samples, and a loop of plain PyTorch for them.

`person` is one party with all samples; of `fare` and `family` there is a holder in each group.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from psl_flower.seeds import derive
from tests import plain_split as plain

GROUPS = ("north", "south")
HOLDERS = ("person", *(f"{party}@{group}" for party in ("fare", "family") for group in GROUPS))
PARTIES = {name: plain.PARTIES[name.partition("@")[0]] for name in HOLDERS}


def held() -> dict[str, np.ndarray]:
    """Return the samples of each holder, in no order; batches have none, one or several of them."""
    order = np.random.default_rng(7).permutation(plain.NUM_SAMPLES)
    few = order[:9]
    return {
        "person": np.arange(plain.NUM_SAMPLES),
        "fare@north": few,
        "fare@south": order[9:],
        "family@north": order[:30],
        "family@south": order[30:],
    }


@contextlib.contextmanager
def still(module: nn.Module, lone: bool) -> Iterator[None]:
    """Let BatchNorm be in evaluation mode, if a sample is alone."""
    layers = [each for each in module.modules() if lone and isinstance(each, nn.BatchNorm1d)]
    for each in layers:
        each.eval()
    yield
    for each in layers:
        each.train()


def plain_loop(
    optimizer: Callable[..., torch.optim.Optimizer],
    holding: Mapping[str, np.ndarray] | None = None,
    make_net: Callable[[str], nn.Module] = plain.net,
    make_top: Callable[[], nn.Module] = plain.Top,
    data: Mapping[str, torch.Tensor] | None = None,
    targets: torch.Tensor | None = None,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    *,
    steps: int | None = None,
    average_every: int = 0,
    pool: np.ndarray = plain.TRAIN,
    held_out: np.ndarray = plain.VALID,
    **settings: Any,
) -> dict[str, torch.Tensor]:
    """Return all weights, and the outputs for the held-out samples, after a training in one loop.

    Holders have their own nets, which begin with the weights of their party; `data` are of a party's samples, all of
    them, of which each holder is asked for its own.
    """
    told: dict[str, Any] = plain.SETTINGS | settings
    seed, data, targets = told["seed"], data or plain.columns(), plain.labels() if targets is None else targets
    holding, shapes = holding or held(), shapes or plain.PARTIES
    nets = {}
    for name in holding:
        torch.manual_seed(derive(seed, "init", name.partition("@")[0]))
        nets[name] = make_net(name.partition("@")[0])
    torch.manual_seed(derive(seed, "init", "top"))
    top = make_top()
    optimizers = [optimizer(module.parameters()) for module in (*nets.values(), top)]

    def outputs(batch: np.ndarray, step: int | None) -> list[torch.Tensor]:
        found = {}
        for name, module in nets.items():
            party = name.partition("@")[0]
            there = np.flatnonzero(np.isin(batch, holding[name]))
            if party not in found:
                found[party] = torch.zeros(len(batch), *shapes[party])
            if not len(there):
                continue
            if step is not None:
                plain.drawing(seed, step, name)
            with still(module, step is not None and len(there) == 1):
                sent = module(data[party][torch.from_numpy(batch[there])])
            found[party] = found[party].index_put((torch.from_numpy(there),), sent)
        return list(found.values())

    for step, batch in enumerate(plain.batches(pool, told["batch_size"], told["epochs"], seed)[:steps]):
        joined = outputs(batch, step)
        plain.drawing(seed, step, "top")
        value = plain.bce(top(*joined), targets[torch.from_numpy(batch)])
        for each in optimizers:
            each.zero_grad()
        value.backward()
        for each in optimizers:
            for group in each.param_groups:
                group["lr"] = told["lr"]
            each.step()
        if average_every and (step + 1) % average_every == 0:
            average(nets)
    for module in (*nets.values(), top):
        module.eval()
    with torch.no_grad():
        return plain.snapshot(nets, top) | {"outputs": top(*outputs(held_out, None))}


@torch.no_grad()
def average(nets: Mapping[str, nn.Module]) -> None:
    """Give the holders of each party the mean of their weights and running statistics."""
    for party in dict.fromkeys(name.partition("@")[0] for name in nets):
        states = [module.state_dict() for name, module in nets.items() if name.partition("@")[0] == party]
        for key, first in states[0].items():
            if first.is_floating_point() and len(states) > 1:
                total = first.clone()
                for state in states[1:]:
                    total += state[key]
                for state in states:
                    state[key].copy_(total / len(states))
