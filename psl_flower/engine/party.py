"""A party's side of a step, for any model and data: apply the gradient, save, run the next plan forward.

`Party` is what all parties share; `psl_flower.engine.mid_step` has those that are asked in the middle of a step.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
from torch import nn

from psl_flower.engine.checkpoints import Checkpoints, load_party, party_state
from psl_flower.engine.drawing import drawing
from psl_flower.engine.exchange import Down, Up, WireFormat, down_of
from psl_flower.engine.optimizers import Optimizer, set_lr
from psl_flower.engine.upper_averaging import load_weights, weight_vector
from psl_flower.errors import ProtocolError, RunError
from psl_flower.wire.frames import Expectation, Frame
from psl_flower.wire.messages import Saved, Share, Shared, Smashed
from psl_flower.wire.node_messages import Claim
from psl_flower.wire.plan import Plan, StepId


class Party(ABC):
    """What the server exchanges frames with: answers them, and keeps checkpoints of its state.

    Parameters
    ----------
    claim : Claim
        What the party holds.
    checkpoints : Checkpoints
        Where states are saved.
    dtype : torch.dtype
        Of the tensors that arrive.

    Attributes
    ----------
    step : int
        Steps applied so far.
    can_be_absent : bool
        Whether steps may be trained without it.
    """

    can_be_absent = True

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
    def reply(self, frame: Frame, wire: WireFormat) -> Frame:
        """Do what a frame asks for and return the answer."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """Return the state to continue from after `step` steps."""

    @abstractmethod
    def restore(self, state: dict[str, Any]) -> None:
        """Go back to a state; raises RunError if it is of another party or network."""

    @abstractmethod
    def close(self) -> None:
        """Release what the party reads from."""

    def go_to(self, step: int, saved: int | None = None) -> None:
        """Go to the state after `step` steps: the initial one for 0 without a checkpoint, else the checkpoint.

        A party that was absent goes to its last committed state, of `saved` steps, and continues from it as step
        `step`. What it saved after that was never committed, and is dropped.

        Raises
        ------
        RunError
            If there is no such checkpoint, it is damaged, of a later step, or of an earlier one although the party
            cannot be absent.
        """
        found = step if saved is None else saved
        if found > step or (found < step and not self.can_be_absent):
            raise RunError(f"{self.name}: cannot be at step {step} with what was saved after step {found}")
        if found or self.step or 0 in self._checkpoints.steps():
            self.restore(self._checkpoints.load_for(self.name, found))
        if found != step:
            self._checkpoints.drop_after(found)
            self.step = step


class Pass(NamedTuple):
    """A forward pass of a plan."""

    graph: Any  #: State for `PartyEngine.backward`; None if there is no backward pass.
    smashed: torch.Tensor  #: Smashed data to send up, on the CPU.
    read_s: float  #: Seconds that reading the data took.


class PartyEngine(Party):
    """A party that sends smashed data: its model and optimiser; subclasses define what it reads and sends.

    Parameters
    ----------
    model : nn.Module
        On its device.
    optimizer : Optimizer or None
        Of the model's parameters; None if it has none to learn.
    claim, checkpoints, dtype
        See `Party`.
    device : torch.device
        Where the model computes.
    weight_count : int
        Numbers that it shares where the Uppers are averaged; else 0.
    frozen_after : int or None
        Steps after which it refuses to learn; None for never.

    Attributes
    ----------
    changes : int
        Counts how often the model has changed: its weights, or BatchNorm's statistics in a training pass.
    shared_after : StepId or None
        The step after which it has shared its weights, while it waits for the average.
    sharing_s : float
        Seconds that this took; reported with the answer to the average.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | None,
        claim: Claim,
        checkpoints: Checkpoints,
        *,
        dtype: torch.dtype,
        device: torch.device,
        weight_count: int = 0,
        frozen_after: int | None = None,
    ) -> None:
        super().__init__(claim, checkpoints, dtype=dtype)
        self.model, self.device = model, device
        self.weight_count, self.frozen_after = weight_count, frozen_after
        self.changes = 0
        self.shared_after: StepId | None = None
        self.sharing_s = 0.0
        self._optimizer = optimizer
        self._pending: tuple[Plan, Any] | None = None

    @abstractmethod
    def smashed_shape(self, plan: Plan) -> tuple[int, ...]:
        """Return the shape of the gradient of a plan's smashed data, as the wire carries it."""

    @abstractmethod
    def forward(self, plan: Plan) -> Pass:
        """Run a plan forward; the model is in its mode, and torch draws from the pass's own generator."""

    @abstractmethod
    def backward(self, graph: Any, gradient: torch.Tensor) -> None:
        """Run the backward pass of `Pass.graph` from the gradient of what went up."""

    @property
    def name(self) -> str:
        """What to call it in errors, and in the seeds of its forward passes."""
        return f"Upper {self.claim.upper}"

    @property
    def pending_shape(self) -> tuple[int, ...] | None:
        """Shape of the pending gradient; None if no step is pending."""
        return None if self._pending is None else self.smashed_shape(self._pending[0])

    def expects(self, wire: WireFormat) -> Expectation:
        """Return the expectation of the next frame: a turn, with a gradient exactly where one is due."""
        return wire.expect_turn(self.pending_shape, self.weight_count)

    def reply(self, frame: Frame, wire: WireFormat) -> Frame:
        """Answer the frame of a turn with that of its outcome; see `handle`."""
        return wire.frame(*self.handle(down_of(frame)))

    def handle(self, down: Down) -> Up:
        """Apply a gradient or take over an average, save if asked, run the plan if there is one, and answer.

        Raises
        ------
        ProtocolError
            If the gradient is not of the pending step, or there is none for it, the average not of the last one, or the
            plan not of the next one: applied once or not at all.
        StoreError, RunError
            If the store or the disk fails.
        """
        started = time.perf_counter()
        turn, tensor = down
        if turn.average_of is not None:
            self._take_over(turn.average_of, tensor)
        elif self.shared_after is not None:
            raise ProtocolError(f"expected the Uppers' average after {self.shared_after}, received none")
        elif turn.gradient_of is not None and tensor is not None:
            self._apply(turn.gradient_of, tensor)
        if isinstance(turn, Share):
            self.shared_after = turn.gradient_of
            shared_N = weight_vector(self.model)
            self.sharing_s = time.perf_counter() - started
            return Up(Shared(self.shared_after), shared_N)
        if turn.save:
            self._checkpoints.save(self.step, self.state())
        # What was done before sharing belongs to the same step.
        backward_s = time.perf_counter() - started + self.sharing_s
        self.sharing_s = 0.0
        return Up(Saved(self.step)) if turn.plan is None else self.run(turn.plan, backward_s)

    def run(self, plan: Plan, backward_s: float = 0.0) -> Up:
        """Run a plan forward and return what goes up, in the dtype it is computed in."""
        training = plan.mode == "train"
        if training and self._pending is not None:
            raise ProtocolError(f"expected the gradient of {self._pending[0].id}, received the plan of {plan.id}")
        if training and plan.id.step != self.step:
            raise ProtocolError(f"expected the plan of step {self.step}, received that of step {plan.id.step}")
        if training and self.frozen_after is not None and plan.id.step >= self.frozen_after:
            raise ProtocolError(f"{self.name} is frozen after step {self.frozen_after}, received a plan to train")
        started = time.perf_counter()
        self.model.train(training)
        with torch.set_grad_enabled(training), drawing(plan, self.draws_as, self.device):
            done = self.forward(plan)
        self.changes += training
        self._pending = (plan, done.graph) if training else None
        forward_s = time.perf_counter() - started - done.read_s
        return Up(Smashed(plan.id, read_s=done.read_s, forward_s=forward_s, backward_s=backward_s), done.smashed)

    @property
    def draws_as(self) -> int | str:
        """Number or name that the seeds of its forward passes derive from."""
        return self.claim.upper

    def state(self) -> dict[str, Any]:
        """Return the state to continue from after `step` steps."""
        return party_state(self.step, self.claim, self.model, self._optimizer)

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to a state; drop a pending step.

        Raises
        ------
        RunError
            If the state is another party's or another network's.
        """
        self.changes += 1
        load_party(state, self.claim, self.model, self._optimizer, self.name)
        self.step, self._pending, self.shared_after = int(state["step"]), None, None

    def _apply(self, gradient_of: StepId, gradient: torch.Tensor) -> None:
        if self._pending is None or self._pending[0].id != gradient_of:
            pending = self._pending[0].id if self._pending else None
            raise ProtocolError(f"expected the gradient of {pending}, received that of {gradient_of}")
        plan, graph = self._pending
        self._pending = None
        if self._optimizer is not None:
            self._optimizer.zero_grad(set_to_none=True)
            self.backward(graph, gradient)
            set_lr(self._optimizer, plan.lr)
            self._optimizer.step()
        self.step += 1
        self.changes += 1

    def _take_over(self, shared_after: StepId, average_N: torch.Tensor | None) -> None:
        if self.shared_after != shared_after or average_N is None:
            raise ProtocolError(
                f"expected the Uppers' average after {self.shared_after}, received that after {shared_after}"
            )
        load_weights(self.model, average_N)
        self.changes += 1
        self.shared_after = None
