"""The Lower's side of a step: join the smashed data, compute the loss, return the gradients.

Shape suffixes: B batch, P patches, K positions of one Upper, C channels, h and w of a patch's feature map.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from psl_flower.assignment import absent_positions
from psl_flower.checkpoints import Checkpoints
from psl_flower.devices import autocast, compute_dtype
from psl_flower.engine.upper import MakeOptimizer
from psl_flower.errors import RunError, TrainingError
from psl_flower.losses import loss_parts
from psl_flower.models import AdaptationNet
from psl_flower.optimizers import set_lr


@dataclass(frozen=True, slots=True, kw_only=True)
class StepLoss:
    """Losses of one step; means over the batch.

    Attributes
    ----------
    full, lower, uppers : float
        As in `psl_flower.losses.LossParts`.
    correct : int
        Samples that the Lower's logits classify rightly.
    """

    full: float
    lower: float
    uppers: float
    correct: int


class LowerEngine:
    """The Lower model, the Adaptation Net if there is one, and their optimiser.

    Parameters
    ----------
    lower : nn.Module
        Called with smashed data (B, P, C, h, w) and `flipped` (B,) bool or None; returns logits (B, classes).
    adaptation : AdaptationNet or None
        Head of the Uppers' own losses.
    assignment : sequence of int
        assignment[p] is the Upper of position p.
    alpha : float
        Weight of the Uppers' own losses.
    make_optimizer : callable
        Makes the optimiser for all parameters.
    use_autocast : bool
        Whether forward passes run under bfloat16 autocast.
    device : torch.device
        Where everything is computed.

    Attributes
    ----------
    step : int
        Steps applied so far.
    saved : dict[int, int]
        The step of the last state that each Upper has saved and the Lower has committed; behind that of the others
        where an Upper is absent.
    """

    def __init__(
        self,
        lower: nn.Module,
        adaptation: AdaptationNet | None,
        assignment: Sequence[int],
        *,
        alpha: float,
        make_optimizer: MakeOptimizer,
        use_autocast: bool = False,
        device: torch.device = torch.device("cpu"),
    ) -> None:
        self.lower = lower.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.adaptation = adaptation.to(device) if adaptation is not None else None
        self.assignment = tuple(assignment)
        self.device = device
        self.step = 0
        self.saved = dict.fromkeys(set(self.assignment), 0)
        self._positions = {
            m: [p for p, owner in enumerate(self.assignment) if owner == m] for m in sorted(set(self.assignment))
        }
        self._alpha = alpha
        self._autocast = use_autocast
        parameters = [*self.lower.parameters(), *(self.adaptation.parameters() if self.adaptation else ())]
        self._optimizer = make_optimizer(parameters)
        self._update_due = False

    @property
    def positions(self) -> dict[int, list[int]]:
        """Grid positions of each Upper, ascending."""
        return self._positions

    @property
    def dtype(self) -> torch.dtype:
        """Dtype in which smashed data are to arrive."""
        return compute_dtype(self._autocast)

    def train_step(
        self, smashed: Mapping[int, torch.Tensor], y_B: torch.Tensor, flipped_B: torch.Tensor | None, lr: float
    ) -> tuple[StepLoss, dict[int, torch.Tensor]]:
        """Forward, loss and backward; the own update waits for `update`, so that the gradients can go out first.

        Parameters
        ----------
        smashed : mapping
            Smashed data (B, K, h, w, C) of every Upper; those of absent ones count as zeros.
        y_B : torch.Tensor
            Classes, int64.
        flipped_B : torch.Tensor or None
            Mirrored samples, bool.
        lr : float
            Learning rate of this step.

        Returns
        -------
        StepLoss and the gradients (B, K, h, w, C) of these Uppers' smashed data, contiguous, on the CPU.

        Raises
        ------
        TrainingError
            If the loss is not finite; nothing has been changed by then but BatchNorm's statistics.
        """
        leaf_BPChw = self._join(smashed).requires_grad_()
        absent = absent_positions(self.assignment, smashed)
        y_B = y_B.to(self.device)
        self.lower.train()
        with autocast(self.device, self._autocast):
            logits_BK = self.lower(leaf_BPChw, flipped_B)
            upper_logits_BPK = None
            if self.adaptation is not None:
                self.adaptation.train()
                upper_logits_BPK = self.adaptation.for_all_patches(leaf_BPChw, absent)
        loss = loss_parts(logits_BK, upper_logits_BPK, y_B, self.assignment, self._alpha, num_absent=len(absent))
        full = float(loss.full.detach())
        if not torch.isfinite(loss.full.detach()):
            raise TrainingError(
                f"step {self.step}: the loss is {full}; the last checkpoint is kept. "
                "Resume from it with a lower lr, or check the images"
            )
        self._optimizer.zero_grad(set_to_none=True)
        loss.full.backward()  # type: ignore[no-untyped-call]
        set_lr(self._optimizer, lr)
        self._update_due = True
        correct = int((logits_BK.detach().argmax(1) == y_B).sum())
        report = StepLoss(
            full=full, lower=float(loss.lower.detach()), uppers=float(loss.uppers.detach()), correct=correct
        )
        assert leaf_BPChw.grad is not None
        return report, self._part(leaf_BPChw.grad, smashed)

    def update(self) -> None:
        """Apply the update that the last `train_step` left open, if it did."""
        if self._update_due:
            self._optimizer.step()
            self._update_due = False
            self.step += 1

    @torch.no_grad()
    def logits(self, smashed: Mapping[int, torch.Tensor]) -> torch.Tensor:
        """Return float32 logits (B, classes) on the CPU, in evaluation mode; absent Uppers count as zeros."""
        self.lower.eval()
        with autocast(self.device, self._autocast):
            logits_BK: torch.Tensor = self.lower(self._join(smashed), None)
        return logits_BK.float().cpu()

    def state(self) -> dict[str, Any]:
        """Return all that is needed to go on after `step` steps."""
        return {
            "step": self.step,
            "saved": dict(self.saved),
            "assignment": list(self.assignment),
            "lower": self.lower.state_dict(),
            "adaptation": self.adaptation.state_dict() if self.adaptation else {},
            "optimizer": self._optimizer.state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to a state.

        Raises
        ------
        RunError
            If the state is of another network.
        """
        try:
            self.lower.load_state_dict(state["lower"])
            if self.adaptation:
                self.adaptation.load_state_dict(state["adaptation"])
            self._optimizer.load_state_dict(state["optimizer"])
        except (RuntimeError, ValueError, KeyError) as error:
            raise RunError(f"the checkpoint is of another network: {str(error).splitlines()[0]}") from error
        self.step, self._update_due = int(state["step"]), False
        self.saved = dict(state.get("saved", dict.fromkeys(self.saved, self.step)))

    def go_to(self, step: int, checkpoints: Checkpoints) -> None:
        """Go to the checkpoint after `step` steps.

        Raises
        ------
        RunError
            If there is no such checkpoint or it is damaged.
        """
        self.restore(checkpoints.load(step, self.device))

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
        return {m: gradient_BPhwC[:, self._positions[m]].contiguous().cpu() for m in present}
