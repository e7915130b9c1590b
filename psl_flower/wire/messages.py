"""The messages that Lower and Upper nodes send each other, as typed records.

Down (Lower to Upper): `Welcome`, `Step`, `Share` and `Average` (where Uppers are averaged), `Abort`, `Finish`. Up
(Upper to Lower): `Hello`, `Smashed`, `Shared`, `Saved`, `Failed`. Where the Adaptation Net is on a node of its own,
that node is one party more, of the number `ADAPTATION`, with `Adapt` and `Keep` in place of `Step` and `Adapted` in
place of `Smashed`. Messages travel as MessagePack maps with a ``type`` key; a field that is missing, unknown, mistyped
or out of range is refused. `Failed` and `Abort` may come at any moment of their direction; every other message only
when it is expected.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from msgspec import Meta, Struct
from numpy.typing import ArrayLike, NDArray

TOKEN_BYTES = 32
MAX_SAMPLES = 65_536
MAX_TEXT = 2_000
MAX_RANK = 6
MAX_DIM = 2**32 - 1

# Stands for the Adaptation Net where parties go by the numbers of Uppers.
ADAPTATION = -1

Party = Annotated[int, Meta(ge=ADAPTATION)]
Count = Annotated[int, Meta(ge=0)]
Weight = Annotated[float, Meta(ge=0, le=1)]
Text = Annotated[str, Meta(max_length=MAX_TEXT)]
Name = Annotated[str, Meta(max_length=256)]
Positions = Annotated[tuple[Count, ...], Meta(max_length=65_536)]
Shape = Annotated[tuple[Annotated[int, Meta(ge=0, le=MAX_DIM)], ...], Meta(max_length=MAX_RANK)]


class _Record(Struct, frozen=True, forbid_unknown_fields=True):
    """Base of all records."""


class StepId(_Record, frozen=True, order=True):
    """Identity of a step within a run, counted from 0; `attempt` numbers the batches of an evaluation after it.

    A step of training that is tried again is the same step: all parties have gone back before.
    """

    epoch: Count
    step: Count
    attempt: Count = 0


class Plan(_Record, frozen=True, omit_defaults=True):
    """What to run forward next.

    Attributes
    ----------
    id : StepId
        The step.
    mode : {"train", "evaluate"}
        "evaluate" keeps no graph and moves no BatchNorm statistics.
    lr : float
        Learning rate of this step's update, finite, at least 0.
    samples : bytes
        Sample indices, little-endian int64, at most 65,536; see `pack_samples`.
    augment_seed : int
        Seed of the epoch's coordinated augmentation, 0..2**64 - 1.
    mix_weight : float
        Weight, 0..1, of a sample's own pixels where samples are mixed in pairs (`Augmentation.partners`); 1 mixes none.
    """

    id: StepId
    mode: Literal["train", "evaluate"]
    lr: float
    samples: Annotated[bytes, Meta(max_length=8 * MAX_SAMPLES)]
    augment_seed: Count
    mix_weight: Weight = 1.0

    def __post_init__(self) -> None:
        """Refuse numbers that are not finite or below 0, and a ragged list of samples."""
        _check_finite(lr=self.lr, mix_weight=self.mix_weight)
        _check_packed(samples=self.samples)

    @property
    def num_samples(self) -> int:
        """Number of samples in the mini-batch."""
        return len(self.samples) // 8

    def sample_indices(self) -> NDArray[np.int64]:
        """Return the sample indices (B,) int64, read-only."""
        return np.frombuffer(self.samples, dtype="<i8")

    def __repr__(self) -> str:
        """Return a short form, with the number of samples in place of their bytes."""
        return f"Plan({self.id}, {self.mode}, lr={self.lr:g}, {self.num_samples} samples)"


def pack_samples(indices: ArrayLike) -> bytes:
    """Return sample indices or classes (B,) as `Plan.samples`, `Adapt.classes` and `Adapt.others` carry them."""
    return np.asarray(indices, dtype="<i8").tobytes()


class Welcome(_Record, frozen=True, tag="welcome"):
    """The Lower accepts the Upper; `Step` follows."""


class Step(_Record, frozen=True, tag="step"):
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

    gradient_of: StepId | None = None
    plan: Plan | None = None
    save: bool = False


class Share(_Record, frozen=True, tag="share"):
    """Apply the gradient, the frame's one tensor, of the pending step `gradient_of`, and answer with `Shared`."""

    gradient_of: StepId


class Average(_Record, frozen=True, tag="average"):
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

    of: StepId
    plan: Plan | None = None
    save: bool = False


class Adapt(_Record, frozen=True, tag="adapt", omit_defaults=True):
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
    """

    id: StepId
    lr: float
    classes: Annotated[bytes, Meta(max_length=8 * MAX_SAMPLES)]
    absent: Positions = ()
    others: Annotated[bytes, Meta(max_length=8 * MAX_SAMPLES)] = b""
    weight: Weight = 1.0

    def __post_init__(self) -> None:
        """Refuse a learning rate that is not finite or below 0, and ragged lists of classes."""
        _check_finite(lr=self.lr, weight=self.weight)
        _check_packed(classes=self.classes, others=self.others)

    def class_indices(self) -> NDArray[np.int64]:
        """Return the classes (B,) int64, read-only."""
        return np.frombuffer(self.classes, dtype="<i8")

    def other_indices(self) -> NDArray[np.int64] | None:
        """Return the classes (B,) int64 of what is mixed in, read-only; None where nothing is."""
        return np.frombuffer(self.others, dtype="<i8") if self.others else None

    def __repr__(self) -> str:
        """Return a short form without classes."""
        return f"Adapt({self.id}, lr={self.lr:g}, {len(self.classes) // 8} classes, absent={self.absent})"


class Keep(_Record, frozen=True, tag="keep"):
    """The Adaptation Net is to write a checkpoint of its state after `step` steps; answered with `Saved`."""

    step: Count


class Abort(_Record, frozen=True, tag="abort"):
    """The Lower ends the exchange because of an error; `reason` is cut at 2,000 characters."""

    reason: Text

    def __post_init__(self) -> None:
        """Make a text fit that is too long or not valid Unicode."""
        _shorten(self, "reason")


class Finish(_Record, frozen=True, tag="finish"):
    """The round is over; the Upper closes the stream."""


class Hello(_Record, frozen=True, tag="hello"):
    """Who opens the stream, and by what right; every field must equal the ticket's."""

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


class Smashed(_Record, frozen=True, tag="smashed"):
    """Answer to a plan: the frame's one tensor is the smashed data of step `id`; times in seconds.

    `read_s` is reading the store, `forward_s` this forward pass, `backward_s` the backward pass and update
    before it.
    """

    id: StepId
    read_s: float = 0.0
    forward_s: float = 0.0
    backward_s: float = 0.0

    def __post_init__(self) -> None:
        """Refuse times that are not finite or below 0."""
        _check_finite(read_s=self.read_s, forward_s=self.forward_s, backward_s=self.backward_s)


class Adapted(_Record, frozen=True, tag="adapted"):
    """Answer to `Adapt`: the frame's one tensor is the gradient of alpha times the loss at the smashed data.

    `loss` is `psl_flower.losses.LossParts.uppers`, not finite where training diverges.
    """

    id: StepId
    loss: float


class Shared(_Record, frozen=True, tag="shared"):
    """Answer to `Share`: the frame's one tensor is the Upper's weights after step `id`."""

    id: StepId


class Saved(_Record, frozen=True, tag="saved"):
    """Answer to a `Step` or `Average` without a plan, and to `Keep`; `step` counts the steps applied so far."""

    step: Count


class Failed(_Record, frozen=True, tag="failed"):
    """The Upper stops because of an error of its own; both texts are cut at 2,000 characters."""

    kind: Text
    message: Text

    def __post_init__(self) -> None:
        """Make a text fit that is too long or not valid Unicode."""
        _shorten(self, "kind")
        _shorten(self, "message")


Message = (
    Welcome
    | Step
    | Share
    | Average
    | Adapt
    | Keep
    | Abort
    | Finish
    | Hello
    | Smashed
    | Adapted
    | Shared
    | Saved
    | Failed
)
UP: frozenset[type[Message]] = frozenset((Hello, Smashed, Adapted, Shared, Saved, Failed))


class TensorSpec(_Record, frozen=True):
    """What is declared of one tensor of the payload: codec name and shape."""

    codec: Annotated[str, Meta(max_length=32)]
    shape: Shape


class Envelope(_Record, frozen=True):
    """A frame's metadata: the message and the tensors that follow it, in order."""

    message: Message
    tensors: Annotated[tuple[TensorSpec, ...], Meta(max_length=1)] = ()


def num_tensors(message: Message) -> int:
    """Return how many tensors come with `message`: 1 for those that say so, and for a `Step` with a gradient."""
    if isinstance(message, Step):
        return int(message.gradient_of is not None)
    return int(isinstance(message, Share | Average | Smashed | Shared | Adapt | Adapted))


def steps_applied(message: Message) -> int:
    """Return the number of steps that a party must have applied when this turn of it comes."""
    match message:
        case Average(of=StepId(step=step)):
            return step + 1
        case Share(gradient_of=StepId(step=step)):
            return step
        case Step(gradient_of=StepId(step=step)) | Step(plan=Plan(id=StepId(step=step))):
            return step
        case Adapt(id=StepId(step=step)) | Keep(step=step):
            return step
    return 0


def only_evaluates(message: Message) -> bool:
    """Return whether a party that is asked this is afterwards what it was before."""
    return (
        isinstance(message, Step)
        and message.gradient_of is None
        and message.plan is not None
        and (message.plan.mode == "evaluate")
    )


def party_names(parties: Iterable[int]) -> str:
    """Return what to call Uppers, and the Adaptation Net, in a message for people: at most 20 by their numbers."""
    numbers = sorted(set(parties))
    uppers = [str(m) for m in numbers if m != ADAPTATION]
    more = f" and {len(uppers) - 20} more" if len(uppers) > 20 else ""
    named = [f"Upper {', '.join(uppers[:20])}{more}"] if uppers else []
    return " and ".join([*named, *(["the Adaptation Net"] if ADAPTATION in numbers else [])])


def name_of(kinds: Sequence[type[Any]]) -> str:
    """Return the names of message types for an error's text."""
    return " or ".join(kind.__name__ for kind in kinds) or "nothing"


def printable(text: str, limit: int = 200) -> str:
    """Return a peer's text made safe for a log: at most `limit` characters, no control characters."""
    return "".join(char if char.isprintable() else " " for char in text[:limit])


# Constraints on the fields hold while decoding only: a sender's texts are made to fit here, so reporting
# never fails.
def _shorten(record: Struct, field: str) -> None:
    text: str = getattr(record, field)
    fitting = text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 3] + "..."
    fitting = fitting.encode("utf-8", "replace").decode()  # a lone surrogate, as in an undecodable file name
    if fitting != text:
        msgspec.structs.force_setattr(record, field, fitting)


def _check_finite(**numbers: float) -> None:
    for name, number in numbers.items():
        if not (math.isfinite(number) and number >= 0):
            raise ValueError(f"{name}: expected a finite number, at least 0, got {number}")


def _check_packed(**indices: bytes) -> None:
    for name, packed in indices.items():
        if len(packed) % 8 or len(packed) > 8 * MAX_SAMPLES:
            raise ValueError(f"{name}: expected 8 bytes each, at most {MAX_SAMPLES}, got {len(packed)} bytes")
