"""The interface that both transports offer the Lower, and how parties put what they exchange into frames.

Shape suffixes: B batch, P positions, K positions of one Upper, h, w and C of a patch's smashed data.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch

from psl_flower.wire.frames import Expectation, Frame
from psl_flower.wire.messages import (
    Adapt,
    Adapted,
    Average,
    Finish,
    Keep,
    Saved,
    Share,
    Shared,
    Smashed,
    Step,
    StepId,
)


class Down(NamedTuple):
    """What goes to one Upper.

    Attributes
    ----------
    step : Step, Share or Average
        What it is to do.
    gradient_BKhwC : torch.Tensor or None
        Gradient of its pending smashed data, to a `Share`, and to a `Step` whose `gradient_of` is not None.
    average_N : torch.Tensor or None
        Mean of what the Uppers shared (`psl_flower.engine.upper_averaging`), float32, to an `Average`.
    """

    step: Step | Share | Average
    gradient_BKhwC: torch.Tensor | None = None
    average_N: torch.Tensor | None = None


class Up(NamedTuple):
    """What comes back from one Upper.

    Attributes
    ----------
    answer : Smashed, Shared or Saved
        `Smashed` to what has a plan, `Shared` to a `Share`, `Saved` to anything else.
    smashed_BKhwC : torch.Tensor or None
        Smashed data, in the dtype that the Lower computes in.
    shared_N : torch.Tensor or None
        What the Upper shares (`psl_flower.engine.upper_averaging`), float32.
    """

    answer: Smashed | Shared | Saved
    smashed_BKhwC: torch.Tensor | None = None
    shared_N: torch.Tensor | None = None


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
        if down.average_N is not None:
            return Frame(down.step, (down.average_N,))
        tensors = () if down.gradient_BKhwC is None else (down.gradient_BKhwC,)
        return Frame(down.step, tensors, self.gradients)

    def up_frame(self, up: Up) -> Frame:
        """Return the frame of an Upper's answer."""
        if up.shared_N is not None:
            return Frame(up.answer, (up.shared_N,))
        tensors = () if up.smashed_BKhwC is None else (up.smashed_BKhwC,)
        return Frame(up.answer, tensors, self.activations)

    def expect_down(self, pending_shape: tuple[int, ...] | None, weight_count: int = 0) -> Expectation:
        """Return what an Upper may receive, given the shape of its pending smashed data.

        Where Uppers are averaged, each shares `weight_count` numbers, which are never rounded; else that is 0.
        """
        if pending_shape is not None:
            kinds = (Step, Share, Finish) if weight_count else (Step, Finish)
            return Expectation(kinds, codec=self.gradients, shape=pending_shape, dtype=self.dtype)
        if weight_count:
            return Expectation((Step, Average, Finish), codec="float32", shape=(weight_count,))
        return Expectation((Step, Finish))

    def expect_up(self, step: Step | Share | Average, shape: tuple[int, ...] | None) -> Expectation:
        """Return what an Upper may answer to a step with smashed data of the given shape, or with what it shares."""
        if isinstance(step, Share):
            return Expectation(Shared, codec="float32", shape=shape, step=step.gradient_of)
        if step.plan is None:
            return Expectation(Saved)
        return Expectation(Smashed, codec=self.activations, shape=shape, step=step.plan.id, dtype=self.dtype)

    @property
    def lossless(self) -> str:
        """Codec that carries numbers of `dtype` as they are."""
        return "bfloat16" if self.dtype == torch.bfloat16 else "float32"

    @property
    def again(self) -> str:
        """Codec that carries smashed data, which crossed the wire once, a second time as they are.

        Where int8 brought them they go on whole: their scales, one for each Upper and channel, are known no more.
        """
        brief = self.dtype == torch.float32 and self.activations in ("bfloat16", "float16")
        return self.activations if brief else self.lossless

    def adapt_frame(self, task: Adapt, smashed_BPhwC: torch.Tensor) -> Frame:
        """Return the frame of what goes to the Adaptation Net."""
        return Frame(task, (smashed_BPhwC,), self.again)

    def expect_adapt(self, shape: tuple[int, ...]) -> Expectation:
        """Return what the Adaptation Net may receive: smashed data (B, P, h, w, C) of the given shape, or none."""
        return Expectation((Adapt, Keep, Finish), codec=self.again, shape=shape, dtype=self.dtype)

    def adapted_frame(self, answer: Adapted, gradient_BPhwC: torch.Tensor) -> Frame:
        """Return the frame of the Adaptation Net's answer; its gradient is rounded once, with the Lower's own."""
        return Frame(answer, (gradient_BPhwC,), self.lossless)

    def expect_adapted(self, step: StepId, shape: tuple[int, ...]) -> Expectation:
        """Return what the Adaptation Net may answer in a step with smashed data (B, P, h, w, C)."""
        return Expectation(Adapted, codec=self.lossless, shape=shape, step=step, dtype=self.dtype)


def down_of(frame: Frame) -> Down:
    """Return what a frame that holds a `Step`, `Share` or `Average` carries to an Upper."""
    assert isinstance(frame.message, Step | Share | Average)
    if isinstance(frame.message, Average):
        return Down(frame.message, average_N=frame.tensor)
    return Down(frame.message, frame.tensor if frame.tensors else None)


def up_of(frame: Frame) -> Up:
    """Return what a frame that holds `Smashed`, `Shared` or `Saved` carries to the Lower."""
    assert isinstance(frame.message, Smashed | Shared | Saved)
    if isinstance(frame.message, Shared):
        return Up(frame.message, shared_N=frame.tensor)
    return Up(frame.message, frame.tensor if frame.tensors else None)


class Party(Protocol):
    """One that the Lower exchanges frames with: an Upper, or the Adaptation Net on a node of its own."""

    def expects(self, wire: WireFormat) -> Expectation:
        """Return what may come now."""
        ...

    def reply(self, frame: Frame, wire: WireFormat) -> Frame:
        """Do what a frame asks for and return the answer; errors as of `UpperEngine.handle`."""
        ...


class Exchange(ABC):
    """A transport, as the Lower sees it.

    Parameters
    ----------
    wire : WireFormat
        Codecs and dtype.
    """

    def __init__(self, wire: WireFormat) -> None:
        self.wire = wire

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
            The shape (B, K, h, w, C) of the smashed data, or (N,) of the shared weights, that each Upper must answer
            with; None if the answer is to be `Saved`. Anything else is refused before it is read.
        meanwhile : callable
            Called once, while the Uppers work.

        Raises
        ------
        PslError
            As `carry`.
        """
        frames = {m: self.wire.down_frame(part) for m, part in down.items()}
        expected = {m: self.wire.expect_up(part.step, shapes[m] if shapes else None) for m, part in down.items()}
        return {m: up_of(frame) for m, frame in self.carry(frames, expected, meanwhile).items()}

    @abstractmethod
    def carry(
        self, frames: Mapping[int, Frame], expected: Mapping[int, Expectation], meanwhile: Callable[[], None]
    ) -> dict[int, Frame]:
        """Send frames to parties, by number, do `meanwhile` on this side, and return the answer of each.

        It may be called again in `meanwhile`, for other parties.

        Raises
        ------
        PslError
            NodeError, PeerLost, WireError or ProtocolError, naming the node, at the first party that fails.
        """

    @abstractmethod
    def finish(self, parties: Collection[int]) -> None:
        """Tell parties that they are not needed any more in this round, where they would wait."""

    @abstractmethod
    def bytes_up(self) -> dict[int, int]:
        """Return bytes of whole frames received from each party so far."""

    @abstractmethod
    def bytes_down(self) -> dict[int, int]:
        """Return bytes of whole frames sent to each party so far."""
