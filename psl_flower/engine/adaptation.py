"""The Adaptation Net's side of a training step, in the Lower's process or on a separate node.

Shape suffixes: B batch, P positions, C channels, h and w of a patch's smashed data.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from psl_flower.engine.checkpoints import Checkpoints, same_network
from psl_flower.engine.exchange import Exchange, WireFormat
from psl_flower.engine.mid_step import MidStepParty
from psl_flower.engine.optimizers import set_lr
from psl_flower.engine.upper import MakeOptimizer
from psl_flower.errors import ProtocolError
from psl_flower.losses import Targets, adaptation_loss
from psl_flower.models import AdaptationNet
from psl_flower.system.devices import autocast, compute_dtype
from psl_flower.wire.frames import Expectation, Frame
from psl_flower.wire.messages import ADAPTATION
from psl_flower.wire.mid_step import Adapt, Adapted
from psl_flower.wire.node_messages import ADAPTATION_CLAIM
from psl_flower.wire.plan import StepId, pack_samples


class AdaptationInput(NamedTuple):
    """What the Adaptation Net learns from in a step."""

    #: Smashed data of all positions as the Lower has them, laid out (B, P, h, w, C) in memory; zeros for absent ones.
    smashed_BPChw: torch.Tensor
    targets: Targets  #: Targets of the batch, on the same device.
    absent: Sequence[int]  #: Positions to leave out.
    lr: float


class AdaptationOutput(NamedTuple):
    """What the Adaptation Net returns for one step."""

    loss: float  #: `psl_flower.losses.LossParts.uppers`.
    #: Gradient of alpha times the loss at the smashed data, in their dtype and memory order.
    gradient_BPChw: torch.Tensor


class Adaptation(Protocol):
    """The Adaptation Net, as the Lower sees it."""

    def learn(self, lesson: AdaptationInput, meanwhile: Callable[[], None]) -> AdaptationOutput:
        """Compute loss and gradients, and call `meanwhile` once, in parallel where possible.

        Raises PslError as a transport does.
        """
        ...

    def update(self) -> None:
        """Ensure that the last lesson's update is applied before the next lesson."""
        ...


class AdaptationEngine:
    """The Adaptation Net with its optimiser: implements `Adaptation` where it shares the Lower's process.

    The net is moved to the device; assignment[p] is the Upper of position p, and `alpha` the weight of the Uppers'
    auxiliary losses. `label_smoothing` is as in `psl_flower.losses.loss_parts`; with `use_autocast` forward passes run
    under bfloat16 autocast.
    """

    def __init__(
        self,
        net: AdaptationNet,
        assignment: Sequence[int],
        *,
        alpha: float,
        make_optimizer: MakeOptimizer,
        use_autocast: bool = False,
        device: torch.device = torch.device("cpu"),
        label_smoothing: float = 0.0,
    ) -> None:
        self.net = net.to(device)
        self.assignment = tuple(assignment)
        self.device = device
        self.dtype = compute_dtype(use_autocast)
        self._alpha, self._autocast, self._label_smoothing = alpha, use_autocast, label_smoothing
        self._optimizer = make_optimizer(self.net.parameters())
        self._update_due = False

    def learn(self, lesson: AdaptationInput, meanwhile: Callable[[], None] = lambda: None) -> AdaptationOutput:
        """Call `meanwhile`, then do forward, loss and backward; `update` applies the update."""
        meanwhile()
        leaf_BPChw = lesson.smashed_BPChw.detach().requires_grad_()
        self.net.train()
        with autocast(self.device, self._autocast):
            logits_BPK = self.net.for_all_patches(leaf_BPChw, lesson.absent)
        loss = adaptation_loss(
            logits_BPK,
            lesson.targets,
            self.assignment,
            num_absent=len(lesson.absent),
            label_smoothing=self._label_smoothing,
        )
        self._optimizer.zero_grad(set_to_none=True)
        (self._alpha * loss).backward()
        set_lr(self._optimizer, lesson.lr)
        self._update_due = True
        assert leaf_BPChw.grad is not None
        return AdaptationOutput(float(loss.detach()), leaf_BPChw.grad)

    def update(self) -> None:
        """Apply the pending update of the last `learn`, if there is one."""
        if self._update_due:
            self._optimizer.step()
            self._update_due = False

    def state(self) -> dict[str, Any]:
        """Return the state to continue from."""
        return {"net": self.net.state_dict(), "optimizer": self._optimizer.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to a state; drop a pending update. Raises RunError if the state is of another network."""
        with same_network():
            self.net.load_state_dict(state["net"])
            self._optimizer.load_state_dict(state["optimizer"])
        self._update_due = False


class AdaptationNode(MidStepParty):
    """The Adaptation Net on a separate node.

    `smashed_shape` is (h, w, C) of one patch's smashed data; `num_samples` returns the samples in the mini-batch of a
    step.
    """

    def __init__(
        self,
        engine: AdaptationEngine,
        *,
        smashed_shape: tuple[int, int, int],
        num_classes: int,
        num_samples: Callable[[int], int],
        checkpoints: Checkpoints,
    ) -> None:
        super().__init__(ADAPTATION_CLAIM, checkpoints, dtype=engine.dtype)
        self.engine = engine
        self._smashed_shape, self._num_classes, self._num_samples = smashed_shape, num_classes, num_samples

    @property
    def name(self) -> str:
        """What to call it in errors."""
        return "the Adaptation Net"

    def expects(self, wire: WireFormat) -> Expectation:
        """Return the expectation of the next frame: smashed data of the next mini-batch, or no tensor."""
        shape = (self._num_samples(self.step), len(self.engine.assignment), *self._smashed_shape)
        return wire.expect_adapt(shape)

    def answer(self, frame: Frame, wire: WireFormat) -> Frame:
        """Learn from smashed data, apply the update, and return the gradient and the loss.

        If the loss is not finite, the update is skipped; the Lower receives that loss and stops the run.

        Raises
        ------
        ProtocolError
            If the frame is not of the next step, or its classes or positions are not those of the run.
        """
        message = frame.message
        assert isinstance(message, Adapt)
        learnt = self.engine.learn(self._lesson(message, frame.tensor))
        if math.isfinite(learnt.loss):
            self.engine.update()
        self.step += 1
        gradient_BPhwC = learnt.gradient_BPChw.permute(0, 1, 3, 4, 2).contiguous().cpu()
        return wire.frame(Adapted(message.id, learnt.loss), gradient_BPhwC)

    def state(self) -> dict[str, Any]:
        """Return the state to continue from after `step` steps."""
        return {"step": self.step, **self.engine.state()}

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to a state; raises RunError if it is of another network."""
        self.engine.restore(state)
        self.step = int(state["step"])

    def _lesson(self, task: Adapt, smashed_BPhwC: torch.Tensor) -> AdaptationInput:
        self._check_step(task.id.step)
        P, others_B = len(self.engine.assignment), task.other_indices()
        y_B = self._classes(task.class_indices(), len(smashed_BPhwC))
        other_B = None if others_B is None else self._classes(others_B, len(smashed_BPhwC))
        if not set(task.absent) < set(range(P)) or len(set(task.absent)) < len(task.absent):
            raise ProtocolError(f"expected some of {P} positions as absent, received {task.absent[:20]}")
        device = self.engine.device
        targets = Targets(y_B, other_B, task.weight, self._class_weights(task.class_weights)).to(device)
        return AdaptationInput(smashed_BPhwC.to(device).permute(0, 1, 4, 2, 3), targets, task.absent, task.lr)

    def _class_weights(self, weights: Sequence[float]) -> torch.Tensor | None:
        if weights and len(weights) != self._num_classes:
            raise ProtocolError(f"expected weights of {self._num_classes} classes, received {len(weights)}")
        return torch.tensor(weights, dtype=torch.float32) if weights else None

    def _classes(self, classes_B: NDArray[np.int64], num_samples: int) -> torch.Tensor:
        if len(classes_B) != num_samples:
            raise ProtocolError(f"expected classes of {num_samples} samples, received {len(classes_B)}")
        if not ((classes_B >= 0) & (classes_B < self._num_classes)).all():
            raise ProtocolError(f"expected classes below {self._num_classes}, received others")
        return torch.from_numpy(classes_B.copy())


class RemoteAdaptation:
    """The Adaptation Net behind an exchange, for one step: implements `Adaptation`."""

    def __init__(self, exchange: Exchange, step: StepId) -> None:
        self._exchange, self._step = exchange, step

    def learn(self, lesson: AdaptationInput, meanwhile: Callable[[], None]) -> AdaptationOutput:
        """Let the node learn and update its net, and call `meanwhile` here."""
        wire = self._exchange.wire
        smashed_BPhwC = lesson.smashed_BPChw.detach().permute(0, 1, 3, 4, 2)
        y_B, other_B, weight, weights_K = lesson.targets
        others = b"" if other_B is None else pack_samples(other_B.cpu())
        weights = () if weights_K is None else tuple(weights_K.tolist())
        task = Adapt(self._step, lesson.lr, pack_samples(y_B.cpu()), tuple(lesson.absent), others, weight, weights)
        expected = wire.expect_answer(task, tuple(smashed_BPhwC.shape))
        frames = {ADAPTATION: wire.frame(task, smashed_BPhwC)}
        answer = self._exchange.carry(frames, {ADAPTATION: expected}, meanwhile)[ADAPTATION]
        assert isinstance(answer.message, Adapted)
        gradient_BPhwC = answer.tensor.to(lesson.smashed_BPChw.device)
        return AdaptationOutput(answer.message.loss, gradient_BPhwC.permute(0, 1, 4, 2, 3))

    def update(self) -> None:
        """Do nothing: the node has updated its net."""
