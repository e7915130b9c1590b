"""Parties that the server asks in the middle of a step: the Adaptation Net on a separate node, the holder of labels.

Each learns and updates within one message, so nothing is pending between two messages.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch

from psl_flower.engine.checkpoints import Checkpoints
from psl_flower.engine.exchange import Exchange, WireFormat
from psl_flower.errors import ProtocolError
from psl_flower.wire.frames import Expectation, Frame
from psl_flower.wire.messages import Keep, Saved
from psl_flower.wire.node_messages import Claim


class MidStepParty(ABC):
    """Answers the server's frames, and keeps checkpoints; subclasses define the learning.

    Attributes
    ----------
    step : int
        Steps applied so far.
    """

    def __init__(self, claim: Claim, checkpoints: Checkpoints, *, dtype: torch.dtype) -> None:
        self.step = 0
        self.claim, self.dtype = claim, dtype
        self._checkpoints = checkpoints

    @property
    @abstractmethod
    def name(self) -> str:
        """What to call it in errors."""

    @abstractmethod
    def expects(self, wire: WireFormat) -> Expectation:
        """Return the expectation of the next frame."""

    @abstractmethod
    def answer(self, frame: Frame, wire: WireFormat) -> Frame:
        """Do what a frame asks for, other than to save, and return the answer."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """Return the state to continue from after `step` steps."""

    @abstractmethod
    def restore(self, state: dict[str, Any]) -> None:
        """Go back to a state; raises RunError if it is of another network."""

    def reply(self, frame: Frame, wire: WireFormat) -> Frame:
        """Save, or do whatever else a frame asks for, and return the answer.

        Raises
        ------
        ProtocolError
            If the frame is not of the next step, or not of this run.
        RunError, TrainingError
            As `Checkpoints.save`.
        """
        message = frame.message
        if not isinstance(message, Keep):
            return self.answer(frame, wire)
        self._check_step(message.step)
        self._checkpoints.save(self.step, self.state())
        return Frame(Saved(self.step))

    def go_to(self, step: int, saved: int | None = None) -> None:
        """Go to the state after `step` steps: the initial one for 0 without a checkpoint, else the checkpoint.

        `saved`, the step of the last state that the server committed, is always that step: no step is trained without
        this party.

        Raises
        ------
        RunError
            If there is no such checkpoint or it is damaged.
        """
        assert saved in (None, step)
        state = self._checkpoints.load_for(self.name, self.step, step)
        if state is not None:
            self.restore(state)

    def close(self) -> None:
        """Release what the party reads from: nothing, unless a subclass says otherwise."""
        return

    def _check_step(self, step: int) -> None:
        if step != self.step:
            raise ProtocolError(f"{self.name} has applied {self.step} steps, expected {step}")


def keep(exchange: Exchange, party: int, step: int) -> None:
    """Have such a party save its state after `step` steps, and wait for it; raises PslError if it fails, or is lost."""
    wire, task = exchange.wire, Keep(step)
    exchange.carry({party: wire.frame(task)}, {party: wire.expect_answer(task)}, lambda: None)
