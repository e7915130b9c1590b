"""The Lower's side of a step: join the smashed data, compute the loss, return the gradients.

Shape suffixes: B batch, P patches, K positions of one Upper, C channels, h and w of a patch's feature map.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from psl_flower.engine.adaptation import Adaptation, AdaptationEngine, AdaptationInput
from psl_flower.engine.distillation import LowerTeacher, shared_loss
from psl_flower.engine.finite import require_finite
from psl_flower.engine.head import HeadEngine
from psl_flower.engine.meanwhile import Meanwhile
from psl_flower.engine.optimizers import set_lr
from psl_flower.engine.rounding_feedback import GradientFeedback
from psl_flower.engine.steps import StepLoss
from psl_flower.engine.upper import MakeOptimizer
from psl_flower.losses import Targets, lower_loss
from psl_flower.patches.assignment import absent_positions, positions_by_upper
from psl_flower.system.devices import autocast, compute_dtype, to_device
from psl_flower.wire.messages import ADAPTATION

Draws = Callable[[], AbstractContextManager[None]]


class LowerEngine(HeadEngine):
    """The Lower model with its optimiser, and the Adaptation Net, if there is one here.

    Parameters
    ----------
    lower : nn.Module
        Called with smashed data (B, P, C, h, w) and `flipped` (B,) bool or None; returns logits (B, classes).
    adaptation : AdaptationEngine or None
        Head of the Uppers' auxiliary losses, if it is in this process.
    assignment : sequence of int
        assignment[p] is the Upper of position p.
    alpha : float
        Weight of the Uppers' auxiliary losses.
    make_optimizer : callable
        Makes the optimiser for the Lower's parameters.
    use_autocast : bool
        Whether forward passes run under bfloat16 autocast.
    device : torch.device
        Where everything is computed.
    adaptation_elsewhere : bool
        Whether the Adaptation Net is a party on a separate node, in place of `adaptation`.
    label_smoothing : float
        As in `psl_flower.losses.loss_parts`.
    teacher : LowerTeacher or None
        Its answers are learnt in addition to the labels; its smashed data follow the student's along channels.
    feedback : GradientFeedback or None
        Adds to gradients what rounding took from those before.
    """

    def __init__(
        self,
        lower: nn.Module,
        adaptation: AdaptationEngine | None,
        assignment: Sequence[int],
        *,
        alpha: float,
        make_optimizer: MakeOptimizer,
        use_autocast: bool = False,
        device: torch.device = torch.device("cpu"),
        adaptation_elsewhere: bool = False,
        label_smoothing: float = 0.0,
        teacher: LowerTeacher | None = None,
        feedback: GradientFeedback | None = None,
    ) -> None:
        super().__init__(
            to_device(lower, device),
            make_optimizer(lower.parameters()),
            assignment,
            device=device,
            dtype=compute_dtype(use_autocast),
        )
        self.adaptation = adaptation
        self.adaptation_elsewhere = adaptation_elsewhere
        if adaptation_elsewhere:
            self.saved[ADAPTATION] = 0
        self._teacher, self._feedback = teacher, feedback
        self._positions = dict(enumerate(map(list, positions_by_upper(self.assignment))))
        self._alpha, self._label_smoothing = alpha, label_smoothing
        self._autocast = use_autocast

    @property
    def positions(self) -> dict[int, list[int]]:
        """Grid positions of each Upper, ascending."""
        return self._positions

    @property
    def about(self) -> str:
        """The number of Uppers."""
        return f"{len(self._positions)} Uppers"

    def train_step(
        self,
        smashed: Mapping[int, torch.Tensor],
        targets: Targets,
        flipped_B: torch.Tensor | None,
        lr: float,
        adaptation: Adaptation | None = None,
        *,
        dropped_BM: torch.Tensor | None = None,
        draws: Draws = nullcontext,
        frozen: bool = False,
    ) -> tuple[StepLoss, dict[int, torch.Tensor]]:
        """Do forward, loss and backward; `update` applies the update, so that the gradients can go out first.

        Parameters
        ----------
        smashed : mapping
            Smashed data (B, K, h, w, C) of every Upper; those of absent ones count as zeros. With a teacher, C are the
            student's channels and then the teacher's.
        targets : Targets
            What is right.
        flipped_B : torch.Tensor or None
            Mirrored samples, bool.
        lr : float
            Learning rate of this step.
        adaptation : Adaptation or None
            The Adaptation Net, if it is elsewhere.
        dropped_BM : torch.Tensor or None
            Bool: samples of which zeros stand for an Upper's smashed data in the Lower model; the Adaptation Net has
            them.
        draws : callable
            Returns a context, in which the forward pass runs.
        frozen : bool
            Whether the Uppers no longer learn: then there are no gradients for them, and no auxiliary losses.

        Returns
        -------
        StepLoss and the gradients (B, K, h, w, C) of these Uppers' smashed data, contiguous, on the CPU; of the
        student's channels alone, and none if the Uppers are frozen.

        Raises
        ------
        TrainingError
            If the loss is not finite; only BatchNorm's statistics have changed by then.
        PslError
            Whatever an Adaptation Net elsewhere raises.
        """
        own_smashed, taught_smashed = self._without_teacher(smashed)
        leaf_BPChw = self._join(own_smashed).requires_grad_(not frozen)
        given_BPChw = leaf_BPChw
        if dropped_BM is not None:
            given_BPChw = without_dropped(leaf_BPChw, dropped_BM, self.assignment)
        targets = targets.to(self.device)
        self._update_due = False
        learn = Meanwhile(lambda: self._learn(given_BPChw, targets, flipped_B, lr, taught_smashed, draws))
        adaptation = None if frozen else adaptation or self.adaptation
        learnt = None
        if adaptation is None:
            learn()
        else:
            absent = absent_positions(self.assignment, smashed)
            learnt = adaptation.learn(AdaptationInput(leaf_BPChw.detach(), targets, absent, lr), learn)
        lower, correct = learn.result
        uppers = lower.new_tensor(learnt.loss if learnt else 0.0)
        full = float(lower + self._alpha * uppers) if learnt else float(lower)
        require_finite(full, self.step, "images", smashed)
        report = StepLoss(full=full, lower=float(lower), uppers=float(uppers), correct=correct)
        gradients = {}
        if not frozen:
            assert leaf_BPChw.grad is not None
            if learnt:
                # Two terms, whose order does not matter: the sum that one backward pass through both losses makes.
                leaf_BPChw.grad += learnt.gradient_BPChw
            gradients = self._part(leaf_BPChw.grad, smashed)
        self._update_due = True
        return report, gradients

    def update(self) -> None:
        """Apply the pending update of the last `train_step`, if there is one."""
        due = self._update_due
        super().update()
        if due and self.adaptation is not None:
            self.adaptation.update()
        if due and self._feedback is not None:
            self._feedback.apply()

    @torch.no_grad()
    def logits(self, smashed: Mapping[int, torch.Tensor]) -> torch.Tensor:
        """Return float32 logits (B, classes) on the CPU, in evaluation mode; absent Uppers count as zeros."""
        self.lower.eval()
        with autocast(self.device, self._autocast):
            logits_BK: torch.Tensor = self.lower(self._join(self._without_teacher(smashed)[0]), None)
        return logits_BK.float().cpu()

    def state(self) -> dict[str, Any]:
        """Return the state to continue from after `step` steps."""
        state = super().state() | {"adaptation": self.adaptation.state() if self.adaptation else {}}
        return state if self._feedback is None else state | {"owed": self._feedback.state()}

    def _load(self, state: dict[str, Any]) -> None:
        super()._load(state)
        if self.adaptation:
            self.adaptation.restore(state["adaptation"])
        if self._feedback is not None:
            self._feedback.restore(state["owed"])

    def _learn(
        self,
        given_BPChw: torch.Tensor,
        targets: Targets,
        flipped_B: torch.Tensor | None,
        lr: float,
        taught_smashed: Mapping[int, torch.Tensor],
        draws: Draws,
    ) -> tuple[torch.Tensor, int]:
        """Forward and backward of the Lower alone; return its loss and the number of correctly classified samples."""
        self.lower.train()
        with draws(), autocast(self.device, self._autocast):
            logits_BK = self.lower(given_BPChw, flipped_B)
        loss = lower_loss(logits_BK, targets, label_smoothing=self._label_smoothing)
        if self._teacher is not None:
            with torch.no_grad(), autocast(self.device, self._autocast):
                taught_BK = self._teacher.lower(self._join(taught_smashed), flipped_B)
            loss = shared_loss(loss, logits_BK, taught_BK, self._teacher.share)
        assert self._optimizer is not None
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        set_lr(self._optimizer, lr)
        return loss.detach(), int((logits_BK.detach().argmax(1) == targets.y_B).sum())

    def _without_teacher(
        self, smashed: Mapping[int, torch.Tensor]
    ) -> tuple[Mapping[int, torch.Tensor], Mapping[int, torch.Tensor]]:
        """Return the student's smashed data and the teacher's; none of the latter without a teacher."""
        if self._teacher is None:
            return smashed, {}
        C = self._teacher.channels
        return {m: maps[..., :-C] for m, maps in smashed.items()}, {m: maps[..., -C:] for m, maps in smashed.items()}

    def _join(self, smashed: Mapping[int, torch.Tensor]) -> torch.Tensor:
        """Return all smashed data as (B, P, C, h, w), laid out (B, P, h, w, C) in memory; zeros for absent Uppers."""
        first = next(iter(smashed.values()))
        B, _, h, w, C = first.shape
        all_BPhwC = torch.empty(B, len(self.assignment), h, w, C, dtype=self.dtype, device=self.device)
        for m, positions in self._positions.items():
            all_BPhwC[:, positions] = smashed[m].to(self.device, self.dtype) if m in smashed else 0
        return all_BPhwC.permute(0, 1, 4, 2, 3)

    def _part(self, gradient_BPChw: torch.Tensor, present: Collection[int]) -> dict[int, torch.Tensor]:
        gradient_BPhwC = gradient_BPChw.permute(0, 1, 3, 4, 2)
        parts = {m: gradient_BPhwC[:, self._positions[m]].contiguous().cpu() for m in present}
        if self._feedback is None:
            return parts
        return {m: self._feedback.corrected(m, part) for m, part in parts.items()}


def without_dropped(smashed_BPChw: torch.Tensor, dropped_BM: torch.Tensor, assignment: Sequence[int]) -> torch.Tensor:
    """Return smashed data (B, P, C, h, w) with zeros for those of the Uppers that are dropped (B, M) from a sample."""
    dropped_BP = dropped_BM[:, list(assignment)].to(smashed_BPChw.device)
    return smashed_BPChw.masked_fill(dropped_BP[:, :, None, None, None], 0.0)
