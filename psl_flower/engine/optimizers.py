"""The optimiser that every party uses for its own weights."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

import torch
from torch import nn
from torch.optim.sgd import sgd

from psl_flower.errors import RunError


class Optimizer(Protocol):
    """What the engines need of an optimiser; those of torch.optim have it."""

    param_groups: list[dict[str, Any]]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget all gradients."""

    def step(self) -> Any:
        """Update all parameters by their gradients."""

    def state_dict(self) -> dict[str, Any]:
        """Return all that the next steps depend on."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go back to such a state."""


class Sgd:
    """SGD with momentum and weight decay: torch's own update, `torch.optim.sgd.sgd`.

    The class around that function in torch.optim imports torch's compiler at its first use, which takes seconds in
    every node; the numbers are the same.

    Parameters
    ----------
    parameters : iterable of nn.Parameter
        What is updated, in place.
    momentum, weight_decay : float
        As in torch.optim.SGD.

    Attributes
    ----------
    param_groups : list of dict
        One group; "lr", 0 until set (`set_lr`), is the learning rate of the next step.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], momentum: float, weight_decay: float) -> None:
        self._parameters = list(parameters)
        self.param_groups: list[dict[str, Any]] = [
            {"params": self._parameters, "lr": 0.0, "momentum": momentum, "weight_decay": weight_decay}
        ]
        self._velocity: list[torch.Tensor | None] = [None] * len(self._parameters)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget all gradients."""
        for parameter in self._parameters:
            if set_to_none:
                parameter.grad = None
            elif parameter.grad is not None:
                parameter.grad.zero_()

    def step(self) -> None:
        """Update all parameters that have a gradient."""
        group = self.param_groups[0]
        moved = [i for i, parameter in enumerate(self._parameters) if parameter.grad is not None]
        velocity = [self._velocity[i] for i in moved]
        with torch.no_grad():
            sgd(
                [self._parameters[i] for i in moved],
                [gradient for i in moved if (gradient := self._parameters[i].grad) is not None],
                velocity,
                weight_decay=group["weight_decay"],
                momentum=group["momentum"],
                lr=group["lr"],
                dampening=0.0,
                nesterov=False,
                maximize=False,
            )
        for i, moving in zip(moved, velocity, strict=True):
            self._velocity[i] = moving

    def state_dict(self) -> dict[str, Any]:
        """Return the momentum of every parameter, None where it has not moved yet."""
        return {"velocity": list(self._velocity)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go back to a state.

        Raises
        ------
        RunError
            If it is of other parameters.
        """
        velocity = state_dict["velocity"]
        shapes = [None if v is None else v.shape for v in velocity]
        if len(shapes) != len(self._parameters) or any(
            shape is not None and shape != parameter.shape
            for shape, parameter in zip(shapes, self._parameters, strict=False)
        ):
            raise RunError("the optimiser's state is of another network")
        self._velocity = [
            None if v is None else v.to(p.device).clone(memory_format=torch.preserve_format)
            for v, p in zip(velocity, self._parameters, strict=True)
        ]


def set_lr(optimizer: Optimizer, lr: float) -> None:
    """Set the learning rate of all parameter groups; one with an "lr_scale" takes that many times as much."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)
