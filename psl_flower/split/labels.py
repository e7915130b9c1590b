"""Labels that a party has, and not the server: its head and loss, and how the server asks for them.

The server sends what its model returns for a batch; the party runs its head on it, computes the loss, updates the head,
and answers with the loss's gradient at what came and its value. Shape suffix B: batch.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from psl_flower.engine.checkpoints import Checkpoints, load_party, party_state
from psl_flower.engine.drawing import drawing
from psl_flower.engine.exchange import Exchange, WireFormat
from psl_flower.engine.mid_step import MidStepParty
from psl_flower.engine.optimizers import set_lr
from psl_flower.errors import ConfigError, ProtocolError, PslError
from psl_flower.split.engines import finite, moved, scalar
from psl_flower.split.measuring import RESERVED, VALID_LOSS, Loss, Metric, checked_metrics, figures, joined, told_as
from psl_flower.split.sent import Outputs, Sent
from psl_flower.split.side import GivenOptimizer, Rows, claim_of, optimizer_of, targets_of
from psl_flower.wire.frames import Expectation, Frame
from psl_flower.wire.mid_step import Judge, Judged, Scored
from psl_flower.wire.plan import Plan

log = logging.getLogger("psl_flower")


@dataclass(frozen=True, slots=True)
class LabelSide:
    """What the party that has the labels brings to a training whose server has none.

    Attributes
    ----------
    head : nn.Module
        Called with what the server's `top` returns for B samples, a tuple as several arguments. It is trained here.
    labels : tensor or array
        The targets of all samples, one row per sample, of any dtype.
    loss : callable
        Called with what the head returns and a batch's targets; returns a scalar.
    optimizer : callable or Optimizer
        Of the head, as in `PartySide`.
    metrics : mapping of callables
        By name, called after each round with the head's outputs and the targets of all samples of `valid`; each
        returns a number, which goes to the server.
    ids : sequence, optional
        The samples' own ids, as in `PartySide`, in the order of `labels`.
    id_key : bytes, optional
        As in `PartySide`. Unless the server has pseudonyms, the samples are then those of the labels, in their order.
    on_evaluated : callable, optional
        Called after each run through `valid` with the rows of `labels`, int64 (N,), and the head's outputs for them:
        the place to keep predictions, which do not leave this party.
    device : str
        Where the head computes.
    """

    head: nn.Module
    labels: Any
    loss: Loss
    optimizer: GivenOptimizer
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    ids: Sequence[Any] | None = None
    id_key: bytes | None = field(default=None, repr=False)
    on_evaluated: Callable[[NDArray[np.int64], Outputs], object] | None = None
    device: str = "cpu"


class LabelEngine(MidStepParty):
    """The label holder's part of a step.

    `m` is its number among the parties, `returned` what the server's model returns for one sample. In an evaluation the
    head takes `evaluate_batch_size` samples at once.

    Attributes
    ----------
    head : nn.Module
        On its device.
    outputs : tensor, tuple of tensors or None
        What the head returned for `valid` in the last evaluation, on the CPU.
    """

    def __init__(
        self,
        m: int,
        name: str,
        returned: Sent,
        side: LabelSide,
        checkpoints: Checkpoints,
        *,
        evaluate_batch_size: int,
    ) -> None:
        self._name, self._returned, self._side = name, returned, side
        self._device = torch.device(side.device)
        self.head = side.head.to(self._device)
        self._optimizer = optimizer_of(self.head, side.optimizer, self.name)
        self._metrics = checked_metrics(side.metrics)
        self._targets, self._order = targets_of(side.labels, self.name), label_rows(side, self.name)
        self._evaluate_batch_size = evaluate_batch_size
        self.outputs: Outputs | None = None
        super().__init__(claim_of(m, self._order), checkpoints, dtype=torch.float32)

    @property
    def name(self) -> str:
        """The party's name."""
        return f"party {self._name!r} (labels)"

    @property
    def draws_as(self) -> str:
        """Name that the seeds of the head's passes derive from; no party can have it."""
        return f"{self._name}.head"

    def expects(self, wire: WireFormat) -> Expectation:
        """Return the expectation of the next frame: what the server's model returns, or no tensor."""
        return wire.expect_judge(self._returned.wire_shape)

    def answer(self, frame: Frame, wire: WireFormat) -> Frame:
        """Learn from a batch, or score an evaluation, and return the answer.

        Raises
        ------
        ProtocolError
            If the frame is not of the next step.
        DataError
            If it names a sample without a label.
        TrainingError
            If head, loss or a metric raises, or the loss is not one finite number.
        """
        try:
            return self._answer(frame, wire)
        except PslError as error:
            cause = error.__cause__
            if cause is not None:  # the owner's own code, whose words may tell a label
                error.outward = (
                    f"{self.name}: its own code raised {type(cause).__name__}; its words, which may tell a label, are "
                    "in the log of this party's node alone"
                )
                log.error("%s", error)
            raise

    def _answer(self, frame: Frame, wire: WireFormat) -> Frame:
        message = frame.message
        assert isinstance(message, Judge)
        plan, tensor = message.plan, frame.tensor.to(self._device)
        self._check_step(plan.id.step)
        rows_B = self._order.rows(plan.sample_indices()).copy()
        if plan.mode == "train":
            loss, gradient = self._learn(plan, tensor, rows_B)
            return wire.frame(Judged(plan.id, loss), gradient)
        return Frame(Scored(self._score(plan, tensor, rows_B)))

    def state(self) -> dict[str, Any]:
        """Return the state to continue from after `step` steps."""
        return party_state(self.step, self.claim, self.head, self._optimizer)

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to a state; raises RunError if the state is another party's or another head's."""
        load_party(state, self.claim, self.head, self._optimizer, self.name)
        self.step = int(state["step"])

    def _learn(self, plan: Plan, tensor: torch.Tensor, rows_B: NDArray[np.int64]) -> tuple[float, torch.Tensor]:
        leaf = tensor.requires_grad_()
        self.head.train()
        targets_B = self._targets[torch.from_numpy(rows_B)].to(self._device)
        with drawing(plan, self.draws_as, self._device):
            outputs = self._headed(leaf)
            with told_as(f"{self.name}: its loss"):
                loss = scalar(self._side.loss(outputs, targets_B), f"{self.name}: its loss")
        value = finite(loss, self.step)
        if self._optimizer is not None:
            self._optimizer.zero_grad(set_to_none=True)
        with told_as(f"{self.name}: the gradient of its loss"):
            loss.backward()
        if self._optimizer is not None:
            set_lr(self._optimizer, plan.lr)
            self._optimizer.step()
        self.step += 1
        return value, (torch.zeros_like(leaf) if leaf.grad is None else leaf.grad).contiguous().cpu()

    @torch.no_grad()
    def _score(self, plan: Plan, tensor: torch.Tensor, rows_B: NDArray[np.int64]) -> dict[str, float]:
        self.head.eval()
        with drawing(plan, self.draws_as, self._device):
            batches = [self._headed(part) for part in tensor.split(self._evaluate_batch_size)]
        self.outputs = moved(joined(batches), "cpu")
        targets = self._targets[torch.from_numpy(rows_B)]
        found = figures(self._side.loss, self._metrics, self.outputs, targets, self.step)
        if self._side.on_evaluated is not None:
            with told_as(f"{self.name}: its on_evaluated"):
                self._side.on_evaluated(rows_B, self.outputs)
        return found

    def _headed(self, tensor: torch.Tensor) -> Outputs:
        inputs = self._returned.unpacked(tensor)
        with told_as(f"{self.name}: its head"):
            outputs: Outputs = self.head(*inputs) if isinstance(inputs, tuple) else self.head(inputs)
        return outputs


class RemoteLabels:
    """The label holder, as the server sees it: the party of this number in an exchange."""

    def __init__(self, exchange: Exchange, party: int) -> None:
        self._exchange, self._party = exchange, party

    def learn(self, plan: Plan, outputs: torch.Tensor) -> tuple[float, torch.Tensor]:
        """Let the holder learn from a training batch; return the loss and its gradient at the outputs.

        Raises PslError as the transport does, and what the holder reports.
        """
        answer = self._ask(plan, outputs, tuple(outputs.shape))
        assert isinstance(answer.message, Judged)
        return answer.message.loss, answer.tensor

    def score(self, plan: Plan, outputs: torch.Tensor) -> dict[str, float]:
        """Return the holder's metrics from the outputs of a whole evaluation.

        Raises PslError as `learn`, and ProtocolError if a figure has a name that a round's record has already.
        """
        answer = self._ask(plan, outputs, None)
        assert isinstance(answer.message, Scored)
        found = answer.message.figures
        if taken := (RESERVED - {VALID_LOSS}) & set(found):
            raise ProtocolError(f"the label holder: expected metrics of other names, received {sorted(taken)}")
        return found

    def _ask(self, plan: Plan, outputs: torch.Tensor, shape: tuple[int, ...] | None) -> Frame:
        wire, task = self._exchange.wire, Judge(plan)
        frames = {self._party: wire.frame(task, outputs)}
        return self._exchange.carry(frames, {self._party: wire.expect_answer(task, shape)}, lambda: None)[self._party]


def label_rows(side: LabelSide, whose: str) -> Rows:
    """Return the order of the samples that labels are of; raises AlignmentError, ConfigError as `Rows`."""
    num_rows = len(targets_of(side.labels, whose))
    if side.id_key is None:
        return Rows(num_rows, side.ids, whose)
    if side.ids is None:
        raise ConfigError(f"{whose}: id_key: give the ids, too, which it is the key for")
    return Rows.private(num_rows, side.ids, side.id_key, whose, own_order=True)
