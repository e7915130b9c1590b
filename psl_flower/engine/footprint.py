"""Computes the cost of a training step on meta tensors: weights, bytes on the wire, memory.

Shape suffixes: B batch, P positions, K positions of one Upper, C channels, h and w of a patch or its smashed data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from psl_flower.engine.automatic_settings import split_training
from psl_flower.engine.batches import batch_order
from psl_flower.engine.build import Blueprint
from psl_flower.engine.checkpoints import values_in
from psl_flower.engine.looks import looks_bytes
from psl_flower.engine.round_ends import num_evaluations
from psl_flower.wire.codecs import get_codec

_FLOAT_BYTES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """What one training step costs."""

    #: Weights of one Upper, of the Lower and of the Adaptation Net.
    upper_parameters: int
    lower_parameters: int
    adaptation_parameters: int
    #: Bytes on the wire from and to all Uppers for an image of a full batch, frames' heads left out; of a step in which
    #: they learn.
    up_per_image: float
    down_per_image: float
    #: The same of a whole training, evaluations included.
    up_in_all: float
    down_in_all: float
    round_trips: int  #: How often the Lower waits for the nodes' answers in a whole training.
    looks: int  #: Bytes on the Lower's disk of the looks of frozen Uppers.
    #: Bytes of each Upper's tensors in a step: weights, gradients, optimiser, and what the backward pass needs.
    upper_memory: tuple[int, ...]
    lower_memory: int  #: The same of the Lower, with the Adaptation Net where it has it.
    checkpoint: int  #: Bytes of one checkpoint of all parties.
    model: int  #: Bytes of the assembled network.


def footprint(blueprint: Blueprint, batch: int) -> Footprint:
    """Return the costs of a step with `batch` images; no weight is drawn and nothing is computed."""
    description = blueprint.description
    with torch.device("meta"):
        upper, lower, net = blueprint.upper(0), blueprint.lower(), blueprint.adaptation()
    shapes = blueprint.smashed_shapes()
    positions, (_, h, w, C) = len(description.assignment), shapes[0]
    smashed_BPChw = torch.empty(batch, positions, C, h, w, device="meta", requires_grad=True)
    passed = {
        K: _saved(upper, torch.empty(batch * K, *blueprint.input_shape, device="meta"))
        for K in {K for K, *_ in shapes.values()}
    }
    joined = _saved(lower, smashed_BPChw)
    states = _optimizer_states(blueprint)
    sizes = [_bytes(part) for part in (upper, lower, net) if part is not None]
    weights = [_bytes(part, buffers=False) for part in (upper, lower, net) if part is not None]
    saved = [size + states * weight for size, weight in zip(sizes, weights, strict=True)]
    smashed = smashed_BPChw.numel() * _FLOAT_BYTES
    auxiliary = 0 if net is None else _saved(net, smashed_BPChw.detach()[:, 0].requires_grad_()) * positions
    ups, downs = wire_bytes(blueprint, batch)
    exchanged = _exchanged(blueprint)
    look_counts = _look_counts(blueprint)
    return Footprint(
        upper_parameters=weights[0] // _FLOAT_BYTES,
        lower_parameters=weights[1] // _FLOAT_BYTES,
        adaptation_parameters=sum(weights[2:]) // _FLOAT_BYTES,
        up_per_image=ups,
        down_per_image=downs,
        up_in_all=exchanged.sent * ups,
        down_in_all=exchanged.received * downs,
        round_trips=exchanged.round_trips,
        looks=looks_bytes(blueprint, look_counts) if look_counts else 0,
        upper_memory=tuple(saved[0] + weights[0] + passed[K] for K, *_ in shapes.values()),
        lower_memory=sum(saved[1:]) + sum(weights[1:]) + joined + auxiliary + 2 * smashed,
        checkpoint=description.num_uppers * saved[0] + sum(saved[1:]),
        model=description.num_uppers * sizes[0] + sizes[1],
    )


class _Exchanged(NamedTuple):
    """Images whose smashed data go up, and images whose gradients come down; repeats count again."""

    sent: int
    received: int
    round_trips: int


def wire_bytes(blueprint: Blueprint, batch: int) -> tuple[float, float]:
    """Return the bytes on the wire of an image and step, up and down, of all Uppers; see `Footprint.up_per_image`."""
    config, shapes = blueprint.config, blueprint.smashed_shapes().values()
    ups, downs = (
        sum(get_codec(name).nbytes((batch, *shape)) for shape in shapes) / batch
        for name in (config.smashed_codec, config.wire.wire_gradients)
    )
    return ups, downs


def _exchanged(blueprint: Blueprint) -> _Exchanged:
    training, freezing, network = blueprint.config.training, blueprint.freezing, blueprint.config.network
    order, steps = batch_order(blueprint.config, blueprint.description), blueprint.schedule().total_steps
    learning = steps if freezing is None else min(steps, freezing.after)
    learnt = order.num_samples_before(learning)
    look_counts = _look_counts(blueprint)
    looks = sum(look_counts)
    learning_rounds = -(-learning // blueprint.steps_per_round)
    rounds = learning_rounds if looks else training.rounds
    # Where looks are kept the last of these rounds is not the training's last.
    evaluations = num_evaluations(rounds, training.evaluate_every, to_the_end=not looks)
    valid = len(split_training(blueprint.config, blueprint.description)[1])
    test = len(blueprint.description.samples_of("test"))
    frozen = 0 if looks else order.num_samples_before(steps) - learnt
    averaged = (
        learning // network.average_every if network.average_every and blueprint.description.num_uppers > 1 else 0
    )
    # A step's gradients go down with the next plan, the last ones of a round by themselves.
    trips = learning * (1 + network.adaptation_server) + learning_rounds + averaged
    trips += 0 if looks else steps - learning
    size = training.evaluate_batch_size
    for images, times in ((valid or test, evaluations), (test, int(valid > 0 and not looks))):
        trips += -(-images // size) * times
    trips += sum(-(-images // size) for images in look_counts)
    evaluated = evaluations * (valid or test) + (test if valid and not looks else 0)
    return _Exchanged(learnt + frozen + looks + evaluated, learnt, trips)


def _look_counts(blueprint: Blueprint) -> list[int]:
    """Return the images whose looks are kept: those of every view of the training images, and of all others once."""
    freezing = blueprint.freezing
    if freezing is None or not freezing.views:
        return []
    trained, valid = split_training(blueprint.config, blueprint.description)
    return [len(trained)] * freezing.views + [len(valid), len(blueprint.description.samples_of("test"))]


def _saved(module: nn.Module, given: torch.Tensor) -> int:
    """Return the bytes that a forward pass keeps for the backward pass, the module's own weights left out."""
    own = {tensor.untyped_storage()._cdata for tensor in (*module.parameters(), *module.buffers())}
    storages: dict[int, torch.UntypedStorage] = {}  # held, or another could take its address

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            storages[storage._cdata] = storage
        return tensor

    same: Callable[[Any], Any] = lambda tensor: tensor  # noqa: E731
    with saved_tensors_hooks(keep, same):
        module.train()(given)
    return sum(storage.nbytes() for storage in storages.values())


def _bytes(module: nn.Module, *, buffers: bool = True) -> int:
    """Return the bytes of a module's weights, and of its buffers."""

    def tensors() -> Iterator[torch.Tensor]:
        yield from module.parameters()
        if buffers:
            yield from module.buffers()

    return sum(tensor.numel() * tensor.element_size() for tensor in tensors())


def _optimizer_states(blueprint: Blueprint) -> int:
    """Return the optimiser's numbers for each weight, such as 1 for SGD with momentum."""
    weight = nn.Parameter(torch.zeros(64))
    weight.grad = torch.ones(64)
    optimizer = blueprint.optimizer([weight])
    optimizer.step()
    values = values_in(optimizer.state_dict())
    return sum(value.numel() // 64 for value in values if isinstance(value, torch.Tensor))
