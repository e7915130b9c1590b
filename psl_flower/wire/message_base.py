"""Properties of every message: its direction, its tensor, its steps, and the type of its answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from msgspec import Meta

from psl_flower.wire.plan import Record, StepId

if TYPE_CHECKING:
    from psl_flower.errors import PslError
    from psl_flower.wire.messages import Answer

Name = Annotated[str, Meta(max_length=256)]
# Roles of tensors. "joined" are the smashed data of all positions, sent to the Adaptation Net; "outputs" are what the
# server's model returns, sent to the party that has the labels.
Role = Literal["smashed", "gradient", "weights", "joined", "joined gradient", "outputs", "outputs gradient"]


class BaseMessage(Record, frozen=True):
    """Base of the messages; each overrides the properties that differ."""

    goes_up: ClassVar[bool] = False  # from a party to the Lower
    carries: ClassVar[Role | None] = None  # what its one tensor is; None for a message that never has one

    @property
    def tensor_of(self) -> StepId | None:
        """The step that its tensor belongs to; None without a tensor."""
        return None

    @property
    def num_samples(self) -> int:
        """Samples that its tensor is of, where the message names them; else 0."""
        return 0

    @property
    def num_tensors(self) -> int:
        """Number of tensors that come with it, 0 or 1."""
        return int(self.tensor_of is not None)

    @property
    def answered_by(self) -> type[Answer] | None:
        """Type of the party's answer; None if it sends none."""
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
        """Whether it changes a party's state; waiting for the gradient of a step counts."""
        return False

    @property
    def seconds(self) -> float:
        """Seconds that the party spent, as reported in its answer."""
        return 0.0

    def error(self, peer: str) -> PslError | None:
        """Return the error that `peer` ends the exchange with by this message; None if it does not."""
        return None


class OfStep(BaseMessage, frozen=True):
    """Base of messages that always carry a tensor, of the step `id`."""

    id: StepId

    @property
    def tensor_of(self) -> StepId:
        """The step."""
        return self.id
