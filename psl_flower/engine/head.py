"""The server's side of a step: the model behind the cut, its optimiser and how far it is in the run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from psl_flower.engine.checkpoints import Checkpoints, same_network
from psl_flower.engine.optimizers import Optimizer
from psl_flower.engine.steps import packed
from psl_flower.wire.messages import ADAPTATION


class HeadEngine(ABC):
    """The model behind the cut.

    The model is on its device, and `optimizer` None if it has no parameters to learn. assignment[p] is the party of
    position p; smashed data are to arrive in `dtype`.

    Attributes
    ----------
    step : int
        Steps applied so far.
    saved : dict[int, int]
        The step of the last state that each party has saved and this side has committed; behind that of the others
        where a party is absent.
    reported : torch.Tensor
        The steps of the current round at the last checkpoint, in the form of `psl_flower.engine.steps.packed`.
    adaptation_elsewhere : bool
        Whether the Adaptation Net is a party on a separate node.
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
        self.reported = packed(())
        self._optimizer = optimizer
        self._update_due = False

    @property
    def mid_step(self) -> tuple[int, ...]:
        """Parties that are asked in the middle of a step (`psl_flower.engine.mid_step`)."""
        return (ADAPTATION,) if self.adaptation_elsewhere else ()

    def update(self) -> None:
        """Apply the pending update of the last step, if there is one."""
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
            "reported": self.reported,
            "lower": self.lower.state_dict(),
            "optimizer": {} if self._optimizer is None else self._optimizer.state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to a state; raises RunError if the state is of another network."""
        with same_network():
            self._load(state)
        self.step, self._update_due = int(state["step"]), False
        self.saved = dict(state.get("saved", dict.fromkeys(self.saved, self.step)))
        self.reported = state.get("reported", packed(()))

    def go_to(self, step: int, checkpoints: Checkpoints) -> None:
        """Go to the checkpoint after `step` steps; raises RunError if there is no such checkpoint or it is damaged."""
        self.restore(checkpoints.load_for("the server's model", step))

    @property
    @abstractmethod
    def about(self) -> str:
        """The participants, as text."""

    def _load(self, state: dict[str, Any]) -> None:
        self.lower.load_state_dict(state["lower"])
        if self._optimizer is not None:
            self._optimizer.load_state_dict(state["optimizer"])
