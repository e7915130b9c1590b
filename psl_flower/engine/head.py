"""The side of a step that joins what all parties send: the model behind the cut, its optimiser and place in the run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from psl_flower.engine.checkpoints import Checkpoints
from psl_flower.engine.optimizers import Optimizer
from psl_flower.errors import RunError


@dataclass(frozen=True, slots=True, kw_only=True)
class StepLoss:
    """Losses of one step; means over the batch.

    Attributes
    ----------
    full, lower, uppers : float
        As in `psl_flower.losses.LossParts`.
    correct : int
        Samples that the Lower's logits classify correctly, by their own classes where samples are mixed; 0 where there
        are no classes.
    """

    full: float
    lower: float
    uppers: float
    correct: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StepReport:
    """What one training step did.

    Attributes
    ----------
    step : int
        Steps applied when it is done, so 1 for the first.
    epoch : int
        Counted from 0.
    loss : StepLoss
        Losses, means over the batch.
    num_samples : int
        Samples in the batch.
    seconds, upper_s, lower_s, wire_s : float
        Time of the step, of its slowest Upper, of the Lower (with what it waits for an Adaptation Net elsewhere), and
        of the rest: moving bytes and waiting.
    """

    step: int
    epoch: int
    loss: StepLoss
    num_samples: int
    seconds: float
    upper_s: float
    lower_s: float
    wire_s: float


class HeadEngine(ABC):
    """The model behind the cut.

    Parameters
    ----------
    lower : nn.Module
        On its device.
    optimizer : Optimizer or None
        Of its parameters; None where there are none to learn.
    assignment : iterable of int
        assignment[p] is the party of position p.
    device : torch.device
        Where it computes.
    dtype : torch.dtype
        In which smashed data are to arrive.

    Attributes
    ----------
    step : int
        Steps applied so far.
    saved : dict[int, int]
        The step of the last state that each party has saved and this side has committed; behind that of the others
        where a party is absent.
    adaptation_elsewhere : bool
        Whether the Adaptation Net is a party on a node of its own.
    """

    adaptation_elsewhere = False

    def __init__(
        self,
        lower: nn.Module,
        optimizer: Optimizer | None,
        assignment: Iterable[int],
        *,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.lower, self.device, self.dtype = lower, device, dtype
        self.assignment = tuple(assignment)
        self.step = 0
        self.saved = dict.fromkeys(sorted(set(self.assignment)), 0)
        self._optimizer = optimizer
        self._update_due = False

    def update(self) -> None:
        """Apply the update that the last step left open, if it did."""
        if self._update_due:
            if self._optimizer is not None:
                self._optimizer.step()
            self._update_due = False
            self.step += 1

    def state(self) -> dict[str, Any]:
        """Return the state to continue from after `step` steps."""
        return {
            "step": self.step,
            "saved": dict(self.saved),
            "lower": self.lower.state_dict(),
            "optimizer": {} if self._optimizer is None else self._optimizer.state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to a state.

        Raises
        ------
        RunError
            If the state is of another network.
        """
        try:
            self._load(state)
        except (RuntimeError, ValueError, KeyError) as error:
            raise RunError(f"the checkpoint is of another network: {str(error).splitlines()[0]}") from error
        self.step, self._update_due = int(state["step"]), False
        self.saved = dict(state.get("saved", dict.fromkeys(self.saved, self.step)))

    def go_to(self, step: int, checkpoints: Checkpoints) -> None:
        """Go to the checkpoint after `step` steps.

        Raises
        ------
        RunError
            If there is no such checkpoint or it is damaged.
        """
        self.restore(checkpoints.load(step))

    @property
    @abstractmethod
    def about(self) -> str:
        """Who takes part, as text."""

    def _load(self, state: dict[str, Any]) -> None:
        self.lower.load_state_dict(state["lower"])
        if self._optimizer is not None:
            self._optimizer.load_state_dict(state["optimizer"])
