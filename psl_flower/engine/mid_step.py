"""Parties that the server asks in the middle of a step: the Adaptation Net on a separate node, the holder of labels.

Each learns and updates within one message, so nothing is pending between two messages.
"""

from __future__ import annotations

from abc import abstractmethod

from psl_flower.engine.exchange import Exchange, WireFormat
from psl_flower.engine.party import Party
from psl_flower.errors import ProtocolError
from psl_flower.wire.frames import Frame
from psl_flower.wire.messages import Keep, Saved


class MidStepParty(Party):
    """Saves when asked to; subclasses define the learning."""

    can_be_absent = False

    @abstractmethod
    def answer(self, frame: Frame, wire: WireFormat) -> Frame:
        """Do what a frame asks for, other than to save, and return the answer."""

    def reply(self, frame: Frame, wire: WireFormat) -> Frame:
        """Save, or do another thing that a frame asks for, and return the answer.

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

    def close(self) -> None:
        """Release what the party reads from; by default nothing."""
        return

    def _check_step(self, step: int) -> None:
        if step != self.step:
            raise ProtocolError(f"{self.name} has applied {self.step} steps, expected {step}")


def keep(exchange: Exchange, party: int, step: int) -> None:
    """Have such a party save its state after `step` steps, and wait for it; raises PslError if it fails, or is lost."""
    wire, task = exchange.wire, Keep(step)
    exchange.carry({party: wire.frame(task)}, {party: wire.expect_answer(task)}, lambda: None)
