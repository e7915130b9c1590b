"""The messages that Lower and Upper nodes send each other, as typed records.

Down (Lower to Upper): `Welcome`, `Step`, `Share` and `Average` (where Uppers are averaged), `Abort`, `Finish`. Up
(Upper to Lower): `Hello`, `Smashed`, `Shared`, `Saved`, `Failed`. Parties that are asked in the middle of a step have
separate messages, and `Keep` (`psl_flower.wire.mid_step`): the Adaptation Net on a separate node, which goes by the
number `ADAPTATION`, and the party that has the labels, if the server has none. Messages travel as MessagePack maps
with a ``type`` key; a field that is missing, unknown, mistyped or out of range is refused. `Failed` and `Abort` may
come at any moment of their direction; every other message only when it is expected. Transports and parties learn from
the message itself what it carries and changes (`psl_flower.wire.message_base`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated

import msgspec
from msgspec import Meta

from psl_flower.errors import NodeError, ProtocolError, PslError
from psl_flower.text import cut, printable
from psl_flower.wire.message_base import BaseMessage, Name, OfStep
from psl_flower.wire.mid_step import Adapt, Adapted, Judge, Judged, Positions, Scored
from psl_flower.wire.plan import Count, Plan, StepId, check_finite

TOKEN_BYTES = 32
MAX_TEXT = 2_000

# Constraints on fields hold while decoding only: a sender's texts are made to fit, so reporting never fails.
Text = Annotated[str, Meta(max_length=MAX_TEXT)]
# Stands for the Adaptation Net where parties go by the numbers of Uppers.
ADAPTATION = -1

PartyNumber = Annotated[int, Meta(ge=ADAPTATION)]


class _Turn(BaseMessage, frozen=True):
    """Base of requests to an Upper. A field that a kind lacks is None there."""

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
        """Steps before that of the gradient or plan; for an average, its own step included."""
        if self.average_of is not None:
            return self.average_of.step + 1
        step = self.gradient_of or self.answer_of
        return step.step if step is not None else 0

    @property
    def changes_state(self) -> bool:
        """True unless it asks for an evaluation alone."""
        return self.tensor_of is not None or (self.plan is not None and self.plan.mode == "train")


class Welcome(BaseMessage, frozen=True, tag="welcome"):
    """The Lower accepts the Upper; `Step` follows."""


class Step(_Turn, frozen=True, tag="step"):
    """One turn of the Upper: apply the gradient, save, then run the plan forward and answer."""

    carries = "gradient"
    #: The pending step that the frame's one tensor is the gradient of; None with no tensor.
    gradient_of: StepId | None = None
    plan: Plan | None = None  #: Plan to run forward and answer with `Smashed`; None is answered with `Saved`.
    save: bool = False  #: Whether to write a checkpoint after the gradient is applied and before the plan is run.


class Share(_Turn, frozen=True, tag="share"):
    """Apply the gradient, the frame's one tensor, of the pending step `gradient_of`, and answer with `Shared`."""

    carries = "gradient"
    gradient_of: StepId

    @property
    def answered_by(self) -> type[Shared]:
        """The Upper's weights."""
        return Shared


class Average(_Turn, frozen=True, tag="average"):
    """Take over the average of the Uppers, the frame's one tensor, save, then run the plan forward and answer."""

    carries = "weights"
    of: StepId  #: The step after which the Uppers shared what this is the average of.
    plan: Plan | None = None  #: Plan as in `Step`.
    save: bool = False  #: Whether to write a checkpoint after the average is taken over and before the plan is run.

    @property
    def average_of(self) -> StepId:
        """The step `of`."""
        return self.of


class Keep(BaseMessage, frozen=True, tag="keep"):
    """A party that is asked in the middle of a step is to save its state after `step` steps; answered with `Saved`."""

    step: Count

    @property
    def answered_by(self) -> type[Saved]:
        """The steps applied."""
        return Saved

    @property
    def steps_applied(self) -> int:
        """Those that the checkpoint is of."""
        return self.step


class Abort(BaseMessage, frozen=True, tag="abort"):
    """The Lower ends the exchange because of an error; `reason` is cut at 2,000 characters."""

    reason: Text

    def __post_init__(self) -> None:
        """Shorten a text that is too long, and replace invalid Unicode."""
        msgspec.structs.force_setattr(self, "reason", cut(self.reason, MAX_TEXT))

    def error(self, peer: str) -> ProtocolError:
        """Return the error with the Lower's reason."""
        return ProtocolError(f"{peer} ended the exchange: {printable(self.reason, MAX_TEXT)}")


class Finish(BaseMessage, frozen=True, tag="finish"):
    """The round is over; the Upper closes the stream."""


class Hello(BaseMessage, frozen=True, tag="hello"):
    """Opens a stream with a token; every field must equal the ticket's."""

    goes_up = True
    run: Name
    node: int
    upper: PartyNumber
    positions: Positions
    num_samples: Count
    dataset: Name
    token: Annotated[bytes, Meta(min_length=TOKEN_BYTES, max_length=TOKEN_BYTES)]

    def __repr__(self) -> str:
        """Return a form without the token."""
        return f"Hello(run={self.run!r}, node={self.node}, upper={self.upper}, token=<hidden>)"


class Smashed(OfStep, frozen=True, tag="smashed"):
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


class Shared(OfStep, frozen=True, tag="shared"):
    """Answer to `Share`: the frame's one tensor is the Upper's weights after step `id`."""

    goes_up = True
    carries = "weights"


class Saved(BaseMessage, frozen=True, tag="saved"):
    """Answer to a `Step` or `Average` without a plan, and to `Keep`; `step` counts the steps applied so far."""

    goes_up = True
    step: Count


class Failed(BaseMessage, frozen=True, tag="failed"):
    """A party stops because of its own error, of class `kind`; both texts are cut at 2,000 characters."""

    goes_up = True
    kind: Text
    message: Text

    @classmethod
    def of(cls, error: BaseException) -> Failed:
        """Describe an error by class and text, without a traceback; the text names the class if it is not ours."""
        kind = type(error).__name__
        if not isinstance(error, PslError):
            return cls(kind, f"{kind}: {error}")
        return cls(kind, error.outward or str(error))

    def __post_init__(self) -> None:
        """Shorten a text that is too long, and replace invalid Unicode."""
        for name in ("kind", "message"):
            msgspec.structs.force_setattr(self, name, cut(getattr(self, name), MAX_TEXT))

    def error(self, peer: str) -> NodeError:
        """Return the error with the party's own words; NodeLost for one that may pass."""
        kind = printable(self.kind, MAX_TEXT)
        return NodeError.reported(kind, f"{peer} failed: {kind}: {printable(self.message, MAX_TEXT)}")


Turn = Step | Share | Average
Answer = Smashed | Shared | Saved | Adapted | Judged | Scored
Message = Hello | Welcome | Turn | Adapt | Judge | Keep | Answer | Failed | Abort | Finish


def party_names(parties: Iterable[int], names: Sequence[str] = ()) -> str:
    """Return the parties' names for messages to users, by `names` where they have any; lists at most 20 Uppers."""
    numbers = sorted(set(parties))
    uppers = [str(m) for m in numbers if m != ADAPTATION and not names]
    more = f" and {len(uppers) - 20} more" if len(uppers) > 20 else ""
    named = [f"Upper {', '.join(uppers[:20])}{more}"] if uppers else [f"party {names[m]!r}" for m in numbers if names]
    return " and ".join([*named, *(["the Adaptation Net"] if ADAPTATION in numbers else [])])
