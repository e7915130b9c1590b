"""The Lower's interface to both transports, and how messages and tensors become frames.

Shape suffixes: B batch, P positions, K positions of one Upper, h, w and C of a patch's smashed data.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch

from psl_flower.config import RunConfig
from psl_flower.wire.codecs import get_codec
from psl_flower.wire.frames import Expectation, Frame
from psl_flower.wire.message_base import Role
from psl_flower.wire.messages import Answer, Average, Finish, Keep, Message, Share, Step, Turn
from psl_flower.wire.mid_step import Adapt, Judge


class Down(NamedTuple):
    """A message to one Upper."""

    turn: Turn  #: Turn to carry out.
    #: Tensor that the turn carries, if any: the gradient of its pending smashed data (B, K, h, w, C), or the mean (N,)
    #: of what the Uppers shared (`psl_flower.engine.upper_averaging`), float32.
    tensor: torch.Tensor | None = None


class Up(NamedTuple):
    """What comes back from one Upper."""

    answer: Answer  #: Answer, of the type that the turn's `answered_by` names.
    #: Tensor that the answer carries, if any: smashed data (B, K, h, w, C), in the dtype that the Lower computes in, or
    #: what the Upper shares (N,), float32.
    tensor: torch.Tensor | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WireFormat:
    """Codecs and dtype of what both sides exchange."""

    #: Codec names (`psl_flower.wire.codecs`) of smashed data and of their gradients.
    activations: str = "float32"
    gradients: str = "float32"
    dtype: torch.dtype = torch.float32  #: Dtype that a party computes in, and receives tensors in.

    @classmethod
    def of(cls, config: RunConfig, dtype: torch.dtype) -> WireFormat:
        """Return the format of a run's settings, for a party that computes in `dtype`."""
        return cls(activations=config.smashed_codec, gradients=config.wire.wire_gradients, dtype=dtype)

    def codec(self, role: Role | None) -> str:
        """Return the codec of a message's tensor.

        | role              | codec       | why                                                                      |
        |-------------------|-------------|--------------------------------------------------------------------------|
        | smashed, outputs  | activations | as chosen                                                                |
        | their gradients   | gradients   | as chosen                                                                |
        | joined            | activations | smashed data of all Uppers cross a second time, to the Adaptation Net's  |
        |                   | or lossless | node: lossless unless `Codec.keeps_values_when_joined`                   |
        | joined gradient   | lossless    | the Lower adds it to its own gradient, and the sum is rounded once       |
        | weights, no role  | float32     | averages must be exact                                                   |

        Lossless is the dtype that the party computes in.
        """
        lossless = "bfloat16" if self.dtype == torch.bfloat16 else "float32"
        repeatable = self.dtype == torch.float32 and get_codec(self.activations).keeps_values_when_joined
        codecs = {
            "smashed": self.activations,
            "gradient": self.gradients,
            "joined": self.activations if repeatable else lossless,
            "joined gradient": lossless,
            "outputs": self.activations,
            "outputs gradient": self.gradients,
        }
        return codecs.get(role or "", "float32")

    def frame(self, message: Message, tensor: torch.Tensor | None = None) -> Frame:
        """Return the frame of a message and its tensor, if it carries one."""
        return Frame(message, () if tensor is None else (tensor,), self.codec(message.carries))

    def expect_turn(self, pending_shape: tuple[int, ...] | None, weight_count: int = 0) -> Expectation:
        """Return the expectation of an Upper's next frame, given the shape of its pending smashed data.

        Where Uppers are averaged, each shares `weight_count` numbers; else that is 0.
        """
        if pending_shape is not None:
            kinds = (Step, Share, Finish) if weight_count else (Step, Finish)
            return Expectation(kinds, codec=self.gradients, shape=pending_shape, dtype=self.dtype)
        if weight_count:
            return Expectation((Step, Average, Finish), codec="float32", shape=(weight_count,))
        return Expectation((Step, Finish))

    def expect_adapt(self, shape: tuple[int, ...]) -> Expectation:
        """Return the Adaptation Net's expectation: smashed data (B, P, h, w, C) of the given shape, or none."""
        return Expectation((Adapt, Keep, Finish), codec=self.codec(Adapt.carries), shape=shape, dtype=self.dtype)

    def expect_judge(self, shape: tuple[int, ...]) -> Expectation:
        """Return a label holder's expectation: outputs of a shape, given without the batch, or none."""
        codec = self.codec(Judge.carries)
        return Expectation((Judge, Keep, Finish), codec=codec, shape=shape, dtype=self.dtype, per_sample=True)

    def expect_answer(self, message: Message, shape: tuple[int, ...] | None = None) -> Expectation:
        """Return the expectation of a party's answer, given the shape of its tensor, if it carries one."""
        kind = message.answered_by
        assert kind is not None
        dtype = torch.float32 if kind.carries == "weights" else self.dtype
        return Expectation(kind, codec=self.codec(kind.carries), shape=shape, step=message.answer_of, dtype=dtype)


def down_of(frame: Frame) -> Down:
    """Return the turn in a frame to an Upper, with its tensor."""
    assert isinstance(frame.message, Turn)
    return Down(frame.message, *frame.tensors)


def up_of(frame: Frame) -> Up:
    """Return the answer in a frame from an Upper, with its tensor."""
    assert isinstance(frame.message, Answer)
    return Up(frame.message, *frame.tensors)


class Exchange(ABC):
    """A transport, as the Lower sees it, to `parties`; `carry` counts the bytes of its frames."""

    def __init__(self, wire: WireFormat, parties: Iterable[int]) -> None:
        self.wire = wire
        self._up = dict.fromkeys(parties, 0)
        self._down = dict(self._up)

    def exchange(
        self,
        down: Mapping[int, Down],
        shapes: Mapping[int, tuple[int, ...]] | None,
        meanwhile: Callable[[], None],
    ) -> dict[int, Up]:
        """Send to every Upper, call `meanwhile`, and return every Upper's answer, in the order of `down`.

        Parameters
        ----------
        down : mapping
            What goes to each Upper, by its index.
        shapes : mapping or None
            The shape (B, K, h, w, C) of the smashed data, or (N,) of the shared weights, that each Upper must answer
            with; no shape for those that must answer `Saved`. Anything else is refused before it is read.
        meanwhile : callable
            Called once, while the Uppers work.

        Raises
        ------
        PslError
            As `carry`.
        """
        frames = {m: self.wire.frame(*part) for m, part in down.items()}
        expected = {m: self.wire.expect_answer(part.turn, (shapes or {}).get(m)) for m, part in down.items()}
        answers = self.carry(frames, expected, meanwhile)
        return {m: up_of(answers[m]) for m in down}  # not as they came: a sum of tensors depends on their order

    @abstractmethod
    def carry(
        self, frames: Mapping[int, Frame], expected: Mapping[int, Expectation], meanwhile: Callable[[], None]
    ) -> dict[int, Frame]:
        """Send frames to parties, by number, call `meanwhile`, and return the answer of each.

        It may be called again in `meanwhile`, for other parties.

        Raises
        ------
        PslError
            NodeError, PeerLost, WireError or ProtocolError, naming the node, at the first party that fails.
        """

    def finish(self, parties: Collection[int]) -> None:
        """Release parties that still wait for messages of this round; by default there are none."""
        return

    def bytes_up(self) -> dict[int, int]:
        """Return bytes of whole frames received from each party so far."""
        return dict(self._up)

    def bytes_down(self) -> dict[int, int]:
        """Return bytes of whole frames sent to each party so far."""
        return dict(self._down)
