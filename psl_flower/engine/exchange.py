"""The interface that both transports offer the Lower: one exchange with every Upper.

Shape suffixes: B batch, K positions of one Upper, h, w and C of a patch's smashed data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch

from psl_flower.wire.frames import Expectation, Frame
from psl_flower.wire.messages import Finish, Saved, Smashed, Step


class Down(NamedTuple):
    """What goes to one Upper.

    Attributes
    ----------
    step : Step
        What it is to do.
    gradient_BKhwC : torch.Tensor or None
        Gradient of its pending smashed data; None where `step.gradient_of` is None.
    """

    step: Step
    gradient_BKhwC: torch.Tensor | None = None


class Up(NamedTuple):
    """What comes back from one Upper.

    Attributes
    ----------
    answer : Smashed or Saved
        `Smashed` to a step with a plan, `Saved` to one without.
    smashed_BKhwC : torch.Tensor or None
        Smashed data, in the dtype that the Lower computes in.
    """

    answer: Smashed | Saved
    smashed_BKhwC: torch.Tensor | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WireFormat:
    """How both parties put what they exchange into frames.

    Attributes
    ----------
    activations, gradients : str
        Codec names (`psl_flower.wire.codecs`) of smashed data and of their gradients.
    dtype : torch.dtype
        Dtype in which a party computes, so in which it wants to receive.
    """

    activations: str = "float32"
    gradients: str = "float32"
    dtype: torch.dtype = torch.float32

    def down_frame(self, down: Down) -> Frame:
        """Return the frame of what goes to an Upper."""
        tensors = () if down.gradient_BKhwC is None else (down.gradient_BKhwC,)
        return Frame(down.step, tensors, self.gradients)

    def up_frame(self, up: Up) -> Frame:
        """Return the frame of an Upper's answer."""
        tensors = () if up.smashed_BKhwC is None else (up.smashed_BKhwC,)
        return Frame(up.answer, tensors, self.activations)

    def expect_down(self, pending_shape: tuple[int, ...] | None) -> Expectation:
        """Return what an Upper may receive, given the shape of its pending smashed data."""
        codec = self.gradients if pending_shape is not None else None
        return Expectation((Step, Finish), codec=codec, shape=pending_shape, dtype=self.dtype)

    def expect_up(self, step: Step, shape: tuple[int, ...] | None) -> Expectation:
        """Return what an Upper may answer to a step with smashed data of the given shape."""
        if step.plan is None:
            return Expectation(Saved)
        return Expectation(Smashed, codec=self.activations, shape=shape, step=step.plan.id, dtype=self.dtype)


def down_of(frame: Frame) -> Down:
    """Return what a frame that holds a `Step` carries to an Upper."""
    assert isinstance(frame.message, Step)
    return Down(frame.message, frame.tensor if frame.tensors else None)


def up_of(frame: Frame) -> Up:
    """Return what a frame that holds `Smashed` or `Saved` carries to the Lower."""
    assert isinstance(frame.message, Smashed | Saved)
    return Up(frame.message, frame.tensor if frame.tensors else None)


class Exchange(Protocol):
    """A transport, as the Lower sees it."""

    def exchange(
        self,
        down: Mapping[int, Down],
        shapes: Mapping[int, tuple[int, ...]] | None,
        meanwhile: Callable[[], None],
    ) -> dict[int, Up]:
        """Send to every Upper, do `meanwhile` on this side, and return every Upper's answer.

        Parameters
        ----------
        down : mapping
            What goes to each Upper, by its index.
        shapes : mapping or None
            The shape (B, K, h, w, C) of the smashed data that each Upper must answer with; None if the answer is to be
            `Saved`. Anything else is refused before it is read.
        meanwhile : callable
            Called once, while the Uppers work.

        Raises
        ------
        PslError
            NodeError, PeerLost, WireError or ProtocolError, naming the node, at the first Upper that fails.
        """
        ...

    def bytes_up(self) -> dict[int, int]:
        """Return bytes of whole frames received from each Upper so far."""
        ...

    def bytes_down(self) -> dict[int, int]:
        """Return bytes of whole frames sent to each Upper so far."""
        ...
