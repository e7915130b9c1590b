"""The optimisers that every party uses for its own weights.

The classes in torch.optim import torch's compiler at their first use, which takes seconds in every node. These call
the functions in them that compute the update, so the numbers are torch's own, and their whole state is a list for each
kind of number, which a checkpoint holds and a resumed run continues from bit by bit.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Protocol

import torch
from torch import nn
from torch.optim.adam import adam
from torch.optim.sgd import sgd

from psl_flower.errors import RunError

# As in torch.optim.
_BETAS, _EPSILON = (0.9, 0.999), 1e-8


class Optimizer(Protocol):
    """What the engines need of an optimiser; those of torch.optim have it."""

    param_groups: list[dict[str, Any]]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget all gradients."""

    def step(self) -> Any:
        """Update all parameters by their gradients."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state that the next steps depend on."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go back to such a state."""


class PartyOptimizer(ABC):
    """Base of the optimisers of one party's parameters.

    Parameters
    ----------
    parameters : iterable of nn.Parameter
        What is updated, in place.
    clip_norm : float
        Largest L2 norm of all gradients of these parameters together: larger ones are scaled down to it before an
        update. 0: no clipping.
    lr_scale : float
        Factor by which the learning rates set are multiplied.

    Attributes
    ----------
    param_groups : list of dict
        One group; "lr", 0 until set (`set_lr`), is the learning rate of the next step.
    """

    # The names of the state's lists, each with a tensor, or None, for every parameter.
    state_names: ClassVar[tuple[str, ...]]

    def __init__(
        self, parameters: Iterable[nn.Parameter], *, clip_norm: float = 0.0, lr_scale: float = 1.0, **options: Any
    ) -> None:
        self._parameters = list(parameters)
        self._clip_norm = clip_norm
        self.param_groups: list[dict[str, Any]] = [
            {"params": self._parameters, "lr": 0.0, "lr_scale": lr_scale, **options}
        ]
        self._state: dict[str, list[torch.Tensor | None]] = {
            name: [None] * len(self._parameters) for name in self.state_names
        }

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget all gradients."""
        for parameter in self._parameters:
            if set_to_none:
                parameter.grad = None
            elif parameter.grad is not None:
                parameter.grad.zero_()

    @torch.no_grad()
    def step(self) -> None:
        """Update all parameters that have a gradient, once their gradients are clipped."""
        moved = [i for i, parameter in enumerate(self._parameters) if parameter.grad is not None]
        if not moved:
            return
        parameters = [self._parameters[i] for i in moved]
        if self._clip_norm:
            nn.utils.clip_grad_norm_(parameters, self._clip_norm)
        gradients = [gradient for parameter in parameters if (gradient := parameter.grad) is not None]
        state = {name: [kept[i] for i in moved] for name, kept in self._state.items()}
        self._update(parameters, gradients, state)
        for name, kept in state.items():
            for i, tensor in zip(moved, kept, strict=True):
                self._state[name][i] = tensor

    def state_dict(self) -> dict[str, Any]:
        """Return the state of every parameter, None where it has not moved yet."""
        return {name: list(kept) for name, kept in self._state.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go back to a state; raises RunError if it is of other parameters, or of another optimiser."""
        if set(state_dict) != set(self.state_names):
            raise RunError(
                f"the optimiser's state holds {', '.join(state_dict)}, expected {', '.join(self.state_names)}"
            )
        if not all(self._fits(name, state_dict[name]) for name in self.state_names):
            raise RunError("the optimiser's state is of another network")
        for name in self.state_names:
            found = zip(state_dict[name], self._parameters, strict=True)
            self._state[name] = [self._placed(name, tensor, parameter) for tensor, parameter in found]

    def _placed(self, name: str, tensor: torch.Tensor | None, parameter: nn.Parameter) -> torch.Tensor | None:
        """Return a copy of a parameter's state where it belongs: beside the parameter; counts of steps on the CPU."""
        if tensor is None:
            return None
        return tensor.to("cpu" if name == "steps" else parameter.device).clone(memory_format=torch.preserve_format)

    def _fits(self, name: str, kept: Sequence[torch.Tensor | None]) -> bool:
        return len(kept) == len(self._parameters) and all(
            tensor is None or tensor.shape == (torch.Size() if name == "steps" else parameter.shape)
            for tensor, parameter in zip(kept, self._parameters, strict=True)
        )

    @abstractmethod
    def _update(
        self, parameters: list[nn.Parameter], gradients: list[torch.Tensor], state: dict[str, list[Any]]
    ) -> None:
        """Update parameters by their gradients, and their state, lists for these parameters, in place."""


class Sgd(PartyOptimizer):
    """SGD with momentum and weight decay: torch's own update, `torch.optim.sgd.sgd`.

    Parameters
    ----------
    parameters : iterable of nn.Parameter
        What is updated, in place.
    momentum, weight_decay : float
        As in torch.optim.SGD.
    nesterov : bool
        Whether the gradient is taken as if the momentum had moved the weights already; momentum must be above 0.
    **options
        Those of `PartyOptimizer`.
    """

    state_names = ("velocity",)

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        momentum: float,
        weight_decay: float,
        *,
        nesterov: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(parameters, momentum=momentum, weight_decay=weight_decay, nesterov=nesterov, **options)

    def _update(
        self, parameters: list[nn.Parameter], gradients: list[torch.Tensor], state: dict[str, list[Any]]
    ) -> None:
        group = self.param_groups[0]
        sgd(
            [*parameters],
            gradients,
            state["velocity"],
            weight_decay=group["weight_decay"],
            momentum=group["momentum"],
            lr=group["lr"],
            dampening=0.0,
            nesterov=group["nesterov"],
            maximize=False,
        )


class Adam(PartyOptimizer):
    """Adam: torch's own update, `torch.optim.adam.adam`, with its betas (0.9, 0.999) and epsilon.

    Parameters
    ----------
    parameters : iterable of nn.Parameter
        What is updated, in place.
    weight_decay : float
        As in torch.optim.Adam; with `decoupled` as in torch.optim.AdamW (Loshchilov and Hutter, ICLR 2019).
    decoupled : bool
        Whether weights decay apart from the gradient.
    **options
        Those of `PartyOptimizer`.
    """

    state_names = ("mean", "square", "steps")

    def __init__(
        self, parameters: Iterable[nn.Parameter], weight_decay: float, *, decoupled: bool = False, **options: Any
    ) -> None:
        super().__init__(parameters, weight_decay=weight_decay, decoupled=decoupled, **options)

    def _update(
        self, parameters: list[nn.Parameter], gradients: list[torch.Tensor], state: dict[str, list[Any]]
    ) -> None:
        for i, parameter in enumerate(parameters):
            if state["steps"][i] is None:
                state["mean"][i] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
                state["square"][i] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
                state["steps"][i] = torch.zeros((), dtype=torch.float32)
        group = self.param_groups[0]
        adam(
            [*parameters],
            gradients,
            state["mean"],
            state["square"],
            [],
            # Counted on the CPU, as torch does: a power of the betas is computed from it.
            state["steps"],
            amsgrad=False,
            beta1=_BETAS[0],
            beta2=_BETAS[1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=_EPSILON,
            maximize=False,
            decoupled_weight_decay=group["decoupled"],
        )


class Together:
    """The optimisers of all parties, of one kind, as one, where one process holds them all.

    Each clips its own party's gradients, which is what makes this equal to parties apart. Its state is that of one
    optimiser of all their parameters.
    """

    def __init__(self, parts: Sequence[PartyOptimizer]) -> None:
        self._parts = list(parts)
        self.param_groups = [group for part in self._parts for group in part.param_groups]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget all gradients."""
        for part in self._parts:
            part.zero_grad(set_to_none)

    def step(self) -> None:
        """Update all parameters that have a gradient."""
        for part in self._parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        """Return the state of every parameter."""
        states = [part.state_dict() for part in self._parts]
        return {name: [tensor for state in states for tensor in state[name]] for name in states[0]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go back to a state; raises RunError if it is of other parameters or of another optimiser."""
        counts = [len(group["params"]) for group in self.param_groups]
        if any(len(kept) != sum(counts) for kept in state_dict.values()):
            raise RunError("the optimiser's state is of another network")
        first = 0
        for part, count in zip(self._parts, counts, strict=True):
            part.load_state_dict({name: kept[first : first + count] for name, kept in state_dict.items()})
            first += count


class Proximal:
    """Any optimiser with the proximal term of FedProx (Li et al., MLSys 2020, equation 2): its gradient is mu (w - w0).

    `parameters` are those that the optimiser updates; their values now are w0.
    """

    def __init__(self, optimizer: Optimizer, parameters: Sequence[nn.Parameter], mu: float) -> None:
        self._optimizer, self._mu = optimizer, mu
        self.param_groups = optimizer.param_groups
        self._anchors = [(parameter, parameter.detach().clone()) for parameter in parameters]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget all gradients."""
        self._optimizer.zero_grad(set_to_none)

    def step(self) -> None:
        """Update all parameters that have a gradient."""
        for parameter, anchor in self._anchors:
            if parameter.grad is not None:
                parameter.grad.add_(parameter.detach() - anchor, alpha=self._mu)
        self._optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        """Return the optimiser's state; the weights that it began with are not in it."""
        return self._optimizer.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go back to a state of the optimiser."""
        self._optimizer.load_state_dict(state_dict)


def set_lr(optimizer: Optimizer, lr: float) -> None:
    """Set the learning rate of all parameter groups, each times its own scale, if it has one."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)
