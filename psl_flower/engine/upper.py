"""The Upper's side of a step: apply the gradient, save, run the next plan forward.

Shape suffixes: B batch, K positions of this Upper, N = B*K, C channels, h and w of a patch or its feature map.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from psl_flower.engine.augment import Augmentation
from psl_flower.engine.checkpoints import Checkpoints
from psl_flower.engine.exchange import Down, Up, WireFormat, down_of
from psl_flower.engine.inputs import network_input
from psl_flower.engine.optimizers import Optimizer, set_lr
from psl_flower.engine.upper_averaging import load_weights, weight_count, weight_vector
from psl_flower.errors import ProtocolError, RunError
from psl_flower.models.cut import backward_from, from_wire, to_wire
from psl_flower.models.split import smashed_size
from psl_flower.patches.store import PatchStore
from psl_flower.system.devices import autocast, compute_dtype, to_device
from psl_flower.wire.frames import Expectation, Frame
from psl_flower.wire.messages import Saved, Share, Shared, Smashed
from psl_flower.wire.plan import Plan, StepId

MakeOptimizer = Callable[[Iterable[nn.Parameter]], Optimizer]


@dataclass(frozen=True, slots=True, kw_only=True)
class UpperOptions:
    """What an Upper needs to know besides its model and store.

    Attributes
    ----------
    make_optimizer : callable
        Makes the optimiser for the model's parameters; its learning rate comes with every plan.
    mean, std : sequence of float
        Per channel, for normalisation (`psl_flower.engine.inputs`).
    augmentation : Augmentation
        What is drawn in training.
    autocast : bool
        Whether forward passes run under bfloat16 autocast.
    device : torch.device
        Where the model computes.
    averaged : bool
        Whether the Uppers of this run are averaged; if not, messages about it are refused.
    """

    make_optimizer: MakeOptimizer
    mean: Sequence[float]
    std: Sequence[float]
    augmentation: Augmentation
    autocast: bool = False
    device: torch.device = torch.device("cpu")
    averaged: bool = False


class UpperEngine:
    """One Upper: its model, optimiser, patch store and place in the run.

    Parameters
    ----------
    model : nn.Module
        (N, C, h, w) -> (N, C', h', w'); moved to the device.
    store : PatchStore
        The patches of this Upper's positions.
    options : UpperOptions
        The rest.
    checkpoints : Checkpoints
        Where states are saved.
    teacher : nn.Module, optional
        The Upper of a teacher, in eval mode and not trained: its smashed data of the same patches go up behind the
        model's own, along channels.

    Attributes
    ----------
    step : int
        Steps applied so far.
    weight_count : int
        Numbers that it shares where the Uppers are averaged; else 0.
    shared_after : StepId or None
        The step after which it has shared its weights, while it waits for the average.
    sharing_s : float
        Seconds that this took, of which the answer to the average tells.
    """

    def __init__(
        self,
        model: nn.Module,
        store: PatchStore,
        options: UpperOptions,
        checkpoints: Checkpoints,
        teacher: nn.Module | None = None,
    ) -> None:
        self.model = to_device(model, options.device)
        self.store = store
        self._teacher = None
        if teacher is not None:
            self._teacher = to_device(teacher, options.device)
        self.step = 0
        self.shared_after: StepId | None = None
        self._options = options
        self._optimizer = options.make_optimizer(self.model.parameters())
        self.dtype = compute_dtype(options.autocast)
        self._checkpoints = checkpoints
        self._pending: tuple[Plan, torch.Tensor] | None = None
        self.sharing_s = 0.0
        self.weight_count = weight_count(self.model) if options.averaged else 0
        self._patch_smashed = smashed_size(self.model, store.meta.patch_shape)

    @property
    def pending_shape(self) -> tuple[int, ...] | None:
        """Shape (B, K, h', w', C') of the gradient that is waited for; None if none is."""
        return None if self._pending is None else self.smashed_shape(self._pending[0])

    def smashed_shape(self, plan: Plan) -> tuple[int, ...]:
        """Return the shape (B, K, h', w', C') of a plan's smashed data, without the teacher's."""
        C, h, w = self._patch_smashed
        return (plan.num_samples, len(self.store.meta.positions), h, w, C)

    def expects(self, wire: WireFormat) -> Expectation:
        """Return the expectation of the next frame: a turn, with a gradient exactly where one is due."""
        return wire.expect_turn(self.pending_shape, self.weight_count)

    def reply(self, frame: Frame, wire: WireFormat) -> Frame:
        """Answer the frame of a turn with that of its outcome; see `handle`."""
        return wire.frame(*self.handle(down_of(frame)))

    def handle(self, down: Down) -> Up:
        """Apply the gradient or take over the average, if any; save, if asked; run the plan, if any, and answer.

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
        """Run a plan forward and return its smashed data (B, K, h', w', C') in the dtype they are computed in."""
        training = plan.mode == "train"
        if training and self._pending is not None:
            raise ProtocolError(f"expected the gradient of {self._pending[0].id}, received the plan of {plan.id}")
        if training and plan.id.step != self.step:
            raise ProtocolError(f"expected the plan of step {self.step}, received that of step {plan.id.step}")
        started = time.perf_counter()
        patches_NChw = self._read(plan)
        read_s = time.perf_counter() - started
        self.model.train(training)
        with torch.set_grad_enabled(training), autocast(self._options.device, self._options.autocast):
            smashed_NChw = self.model(patches_NChw)
        self._pending = (plan, smashed_NChw) if training else None
        told_NChw = self._with_teacher(smashed_NChw.detach(), patches_NChw)
        smashed_BKhwC = to_wire(told_NChw, len(self.store.meta.positions)).cpu()
        forward_s = time.perf_counter() - started - read_s
        return Up(Smashed(plan.id, read_s=read_s, forward_s=forward_s, backward_s=backward_s), smashed_BKhwC)

    def state(self) -> dict[str, Any]:
        """Return the state to continue from after `step` steps."""
        return {
            "step": self.step,
            "upper": self.store.meta.upper,
            "dataset": self.store.meta.dataset,
            "model": self.model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to a state; a pending step is forgotten.

        Raises
        ------
        RunError
            If the state is another Upper's or another network's.
        """
        if (state.get("upper"), state.get("dataset")) != (self.store.meta.upper, self.store.meta.dataset):
            raise RunError(f"the checkpoint is not of Upper {self.store.meta.upper} and this dataset")
        try:
            self.model.load_state_dict(state["model"])
            self._optimizer.load_state_dict(state["optimizer"])
        except (RuntimeError, ValueError, KeyError) as error:
            raise RunError(f"the checkpoint is of another network: {str(error).splitlines()[0]}") from error
        self.step, self._pending, self.shared_after = int(state["step"]), None, None

    def go_to(self, step: int, saved: int | None = None) -> None:
        """Go to the state after `step` steps: the initial one for 0 without a checkpoint, else the checkpoint.

        An Upper that was absent goes to its last committed state, of `saved` steps, and goes on from there as step
        `step`. What it saved after that was never committed, and is dropped.

        Raises
        ------
        RunError
            If there is no such checkpoint or it is damaged.
        """
        found = step if saved is None else saved
        if not found == self.step == 0 or found in self._checkpoints.steps():
            self.restore(self._checkpoints.load(found))
        if found != step:
            self._checkpoints.drop_after(found)
            self.step = step

    def close(self) -> None:
        """Close the store."""
        self.store.close()

    def _apply(self, gradient_of: StepId, gradient_BKhwC: torch.Tensor) -> None:
        if self._pending is None or self._pending[0].id != gradient_of:
            pending = self._pending[0].id if self._pending else None
            raise ProtocolError(f"expected the gradient of {pending}, received that of {gradient_of}")
        plan, smashed_NChw = self._pending
        self._pending = None
        gradient_NChw = from_wire(gradient_BKhwC.to(smashed_NChw.device, smashed_NChw.dtype))
        self._optimizer.zero_grad(set_to_none=True)
        backward_from(smashed_NChw, gradient_NChw)
        set_lr(self._optimizer, plan.lr)
        self._optimizer.step()
        self.step += 1

    def _take_over(self, shared_after: StepId, average_N: torch.Tensor | None) -> None:
        if self.shared_after != shared_after or average_N is None:
            raise ProtocolError(
                f"expected the Uppers' average after {self.shared_after}, received that after {shared_after}"
            )
        load_weights(self.model, average_N)
        self.shared_after = None

    def _with_teacher(self, smashed_NChw: torch.Tensor, patches_NChw: torch.Tensor) -> torch.Tensor:
        if self._teacher is None:
            return smashed_NChw
        with torch.no_grad(), autocast(self._options.device, self._options.autocast):
            return torch.cat([smashed_NChw, self._teacher(patches_NChw)], 1)

    def _read(self, plan: Plan) -> torch.Tensor:
        options, patches_BKChw = self._options, self.store.read(plan.sample_indices())
        positions = self.store.meta.positions
        return network_input(
            patches_BKChw, positions, plan, options.augmentation, options.mean, options.std, options.device
        )
