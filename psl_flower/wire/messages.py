"""The messages that Lower and Upper nodes send each other, as typed records.

Down (Lower to Upper): `Welcome`, `Step`, `Share` and `Average` (where Uppers are averaged), `Abort`, `Finish`. Up
(Upper to Lower): `Hello`, `Smashed`, `Shared`, `Saved`, `Failed`. Where the Adaptation Net is on a node of its own,
that node is one party more, of the number `ADAPTATION`, with `Adapt` and `Keep` in place of `Step` and `Adapted` in
place of `Smashed`. Messages travel as MessagePack maps with a ``type`` key; a field that is missing, unknown, mistyped
or out of range is refused. `Failed` and `Abort` may come at any moment of their direction; every other message only
when it is expected. What transports and parties need to know of a message, they ask the message (`_Message`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, ClassVar, Literal

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from psl_flower.errors import NodeError, ProtocolError, PslError
from psl_flower.text import cut, printable
from psl_flower.wire.plan import Count, Packed, Plan, Record, StepId, Weight, check_finite, check_packed

TOKEN_BYTES = 32
MAX_TEXT = 2_000

# Constraints on fields hold while decoding only: a sender's texts are made to fit, so reporting never fails.
Text = Annotated[str, Meta(max_length=MAX_TEXT)]
# Stands for the Adaptation Net where parties go by the numbers of Uppers.
ADAPTATION = -1

Party = Annotated[int, Meta(ge=ADAPTATION)]
Name = Annotated[str, Meta(max_length=256)]
ClassWeights = Annotated[tuple[Annotated[float, Meta(ge=0)], ...], Meta(max_length=65_536)]
Positions = Annotated[tuple[Count, ...], Meta(max_length=65_536)]
# What a tensor is. "joined" are the smashed data of all positions, which go on to the Adaptation Net.
Role = Literal["smashed", "gradient", "weights", "joined", "joined gradient"]


class _Message(Record, frozen=True):
    """Base of the messages, each with its own answers to what transports and parties ask."""

    goes_up: ClassVar[bool] = False  # from a party to the Lower
    carries: ClassVar[Role | None] = None  # what its one tensor is; None for a message that never has one

    @property
    def tensor_of(self) -> StepId | None:
        """The step that its tensor belongs to; None without a tensor."""
        return None

    @property
    def num_tensors(self) -> int:
        """Number of tensors that come with it, 0 or 1."""
        return int(self.tensor_of is not None)

    @property
    def answered_by(self) -> type[Answer] | None:
        """What the party answers; None if nothing."""
        return None

    @property
    def answer_of(self) -> StepId | None:
        """The step that the answer's tensor belongs to, if it has one."""
        return None

    @property
    def steps_applied(self) -> int:
        """Steps that a party must have applied when this comes: those before the step of the tensor."""
        return self.tensor_of.step if self.tensor_of is not None else 0

    @property
    def changes_state(self) -> bool:
        """Whether a party is another one afterwards, also by waiting for the gradient of a step."""
        return False

    @property
    def seconds(self) -> float:
        """Time that the party spent on what this answers, as far as it says so."""
        return 0.0

    def error(self, peer: str) -> PslError | None:
        """Return the error that `peer` ends the exchange with by this message; None if it does not."""
        return None


class _OfStep(_Message, frozen=True):
    """Base of messages that always carry a tensor, of the step `id`."""

    id: StepId

    @property
    def tensor_of(self) -> StepId:
        """The step."""
        return self.id


class _Turn(_Message, frozen=True):
    """Base of what an Upper is asked to do. A field that a kind lacks is None there."""

    @property
    def gradient_of(self) -> StepId | None:
        """The pending step that the tensor is the gradient of."""
        return None

    @property
    def average_of(self) -> StepId | None:
        """The step after which the Uppers shared what the tensor is the average of."""
        return None

    @property
    def plan(self) -> Plan | None:
        """What to run forward."""
        return None

    @property
    def tensor_of(self) -> StepId | None:
        """The step of the gradient, or of the average."""
        return self.gradient_of or self.average_of

    @property
    def answered_by(self) -> type[Smashed | Shared | Saved]:
        """`Smashed` to what has a plan, else `Saved`."""
        return Smashed if self.plan is not None else Saved

    @property
    def answer_of(self) -> StepId | None:
        """The plan's step; without a plan that of the gradient."""
        return self.plan.id if self.plan is not None else self.tensor_of

    @property
    def steps_applied(self) -> int:
        """Those before the gradient's step or the plan's, or up to the average's."""
        if self.average_of is not None:
            return self.average_of.step + 1
        step = self.gradient_of or self.answer_of
        return step.step if step is not None else 0

    @property
    def changes_state(self) -> bool:
        """True unless it asks for an evaluation alone."""
        return self.tensor_of is not None or (self.plan is not None and self.plan.mode == "train")


class Welcome(_Message, frozen=True, tag="welcome"):
    """The Lower accepts the Upper; `Step` follows."""


class Step(_Turn, frozen=True, tag="step"):
    """One turn of the Upper: apply the gradient, save, then run the plan forward and answer.

    Attributes
    ----------
    gradient_of : StepId or None
        The pending step that the frame's one tensor is the gradient of; None with no tensor.
    plan : Plan or None
        What to run forward and answer with `Smashed`; None is answered with `Saved`.
    save : bool
        Whether to write a checkpoint after the gradient is applied and before the plan is run.
    """

    carries = "gradient"
    gradient_of: StepId | None = None
    plan: Plan | None = None
    save: bool = False


class Share(_Turn, frozen=True, tag="share"):
    """Apply the gradient, the frame's one tensor, of the pending step `gradient_of`, and answer with `Shared`."""

    carries = "gradient"
    gradient_of: StepId

    @property
    def answered_by(self) -> type[Shared]:
        """The Upper's weights."""
        return Shared


class Average(_Turn, frozen=True, tag="average"):
    """Take over the average of the Uppers, the frame's one tensor, save, then run the plan forward and answer.

    Attributes
    ----------
    of : StepId
        The step after which the Uppers shared what this is the average of.
    plan : Plan or None
        As in `Step`.
    save : bool
        Whether to write a checkpoint after the average is taken over and before the plan is run.
    """

    carries = "weights"
    of: StepId
    plan: Plan | None = None
    save: bool = False

    @property
    def average_of(self) -> StepId:
        """The step `of`."""
        return self.of


class Adapt(_OfStep, frozen=True, tag="adapt", omit_defaults=True):
    """The Adaptation Net's turn: the frame's one tensor is the smashed data of all positions, zeros for absent ones.

    Attributes
    ----------
    id : StepId
        The training step.
    lr : float
        Learning rate of its update, finite, at least 0.
    classes : bytes
        Classes of the mini-batch's samples, little-endian int64, at most 65,536; see `pack_samples`.
    absent : tuple[int, ...]
        Positions that are left out.
    others : bytes
        Where samples are mixed in pairs: the classes of what is mixed into them, packed alike; else empty.
    weight : float
        Weight, 0..1, of `classes`; that of `others` is what it lacks to 1.
    class_weights : tuple[float, ...]
        Weight of every class in the loss, finite, at least 0; empty where all weigh the same.
    """

    carries = "joined"
    lr: float
    classes: Packed
    absent: Positions = ()
    others: Packed = b""
    weight: Weight = 1.0
    class_weights: ClassWeights = ()

    def __post_init__(self) -> None:
        """Refuse a learning rate or weights that are not finite or below 0, and ragged lists of classes."""
        check_finite(lr=self.lr, weight=self.weight, class_weights=sum(self.class_weights))
        check_packed(classes=self.classes, others=self.others)

    @property
    def answered_by(self) -> type[Adapted]:
        """The gradient at the smashed data, and the loss."""
        return Adapted

    @property
    def answer_of(self) -> StepId:
        """The step."""
        return self.id

    @property
    def changes_state(self) -> bool:
        """Always: the net is updated."""
        return True

    def class_indices(self) -> NDArray[np.int64]:
        """Return the classes (B,) int64, read-only."""
        return np.frombuffer(self.classes, dtype="<i8")

    def other_indices(self) -> NDArray[np.int64] | None:
        """Return the classes (B,) int64 of what is mixed in, read-only; None where nothing is."""
        return np.frombuffer(self.others, dtype="<i8") if self.others else None

    def __repr__(self) -> str:
        """Return a short form without classes."""
        return f"Adapt({self.id}, lr={self.lr:g}, {len(self.classes) // 8} classes, absent={self.absent})"


class Keep(_Message, frozen=True, tag="keep"):
    """The Adaptation Net is to write a checkpoint of its state after `step` steps; answered with `Saved`."""

    step: Count

    @property
    def answered_by(self) -> type[Saved]:
        """The steps applied."""
        return Saved

    @property
    def steps_applied(self) -> int:
        """Those that the checkpoint is of."""
        return self.step


class Abort(_Message, frozen=True, tag="abort"):
    """The Lower ends the exchange because of an error; `reason` is cut at 2,000 characters."""

    reason: Text

    def __post_init__(self) -> None:
        """Make a text fit that is too long or not valid Unicode."""
        msgspec.structs.force_setattr(self, "reason", cut(self.reason, MAX_TEXT))

    def error(self, peer: str) -> ProtocolError:
        """Return the error with the Lower's reason."""
        return ProtocolError(f"{peer} ended the exchange: {printable(self.reason, MAX_TEXT)}")


class Finish(_Message, frozen=True, tag="finish"):
    """The round is over; the Upper closes the stream."""


class Hello(_Message, frozen=True, tag="hello"):
    """Who opens the stream, and by what right; every field must equal the ticket's."""

    goes_up = True
    run: Name
    node: int
    upper: Party
    positions: Positions
    num_samples: Count
    dataset: Name
    token: Annotated[bytes, Meta(min_length=TOKEN_BYTES, max_length=TOKEN_BYTES)]

    def __repr__(self) -> str:
        """Return a form without the token."""
        return f"Hello(run={self.run!r}, node={self.node}, upper={self.upper}, token=<hidden>)"


class Smashed(_OfStep, frozen=True, tag="smashed"):
    """Answer to a plan: the frame's one tensor is the smashed data of step `id`; times in seconds.

    `read_s` is reading the store, `forward_s` this forward pass, `backward_s` the backward pass and update
    before it.
    """

    goes_up = True
    carries = "smashed"
    read_s: float = 0.0
    forward_s: float = 0.0
    backward_s: float = 0.0

    def __post_init__(self) -> None:
        """Refuse times that are not finite or below 0."""
        check_finite(read_s=self.read_s, forward_s=self.forward_s, backward_s=self.backward_s)

    @property
    def seconds(self) -> float:
        """All three together."""
        return self.read_s + self.forward_s + self.backward_s


class Adapted(_OfStep, frozen=True, tag="adapted"):
    """Answer to `Adapt`: the frame's one tensor is the gradient of alpha times the loss at the smashed data.

    `loss` is `psl_flower.losses.LossParts.uppers`, not finite where training diverges.
    """

    goes_up = True
    carries = "joined gradient"
    loss: float


class Shared(_OfStep, frozen=True, tag="shared"):
    """Answer to `Share`: the frame's one tensor is the Upper's weights after step `id`."""

    goes_up = True
    carries = "weights"


class Saved(_Message, frozen=True, tag="saved"):
    """Answer to a `Step` or `Average` without a plan, and to `Keep`; `step` counts the steps applied so far."""

    goes_up = True
    step: Count


class Failed(_Message, frozen=True, tag="failed"):
    """A party stops because of its own error, of class `kind`; both texts are cut at 2,000 characters."""

    goes_up = True
    kind: Text
    message: Text

    @classmethod
    def of(cls, error: BaseException) -> Failed:
        """Describe an error by class and text, without a traceback; the text names the class if it is not ours."""
        kind = type(error).__name__
        return cls(kind, str(error) if isinstance(error, PslError) else f"{kind}: {error}")

    def __post_init__(self) -> None:
        """Make a text fit that is too long or not valid Unicode."""
        for name in ("kind", "message"):
            msgspec.structs.force_setattr(self, name, cut(getattr(self, name), MAX_TEXT))

    def error(self, peer: str) -> NodeError:
        """Return the error with the party's own words; NodeLost for one that may pass."""
        kind = printable(self.kind, MAX_TEXT)
        return NodeError.reported(kind, f"{peer} failed: {kind}: {printable(self.message, MAX_TEXT)}")


Turn = Step | Share | Average
Answer = Smashed | Shared | Saved | Adapted
Message = Hello | Welcome | Turn | Adapt | Keep | Answer | Failed | Abort | Finish


def party_names(parties: Iterable[int], names: Sequence[str] = ()) -> str:
    """Return the parties' names for messages to users, by `names` where they have any; lists at most 20 Uppers."""
    numbers = sorted(set(parties))
    uppers = [str(m) for m in numbers if m != ADAPTATION and not names]
    more = f" and {len(uppers) - 20} more" if len(uppers) > 20 else ""
    named = [f"Upper {', '.join(uppers[:20])}{more}"] if uppers else [f"party {names[m]!r}" for m in numbers if names]
    return " and ".join([*named, *(["the Adaptation Net"] if ADAPTATION in numbers else [])])
