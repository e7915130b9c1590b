"""Rounds of the Lower: from patches to classes, with Uppers that learn, or that are frozen."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any

import torch

from psl_flower.engine.adaptation import RemoteAdaptation
from psl_flower.engine.checkpoints import Checkpoints
from psl_flower.engine.drawing import drawing
from psl_flower.engine.exchange import Exchange
from psl_flower.engine.looks import Looks
from psl_flower.engine.lower import LowerEngine
from psl_flower.engine.meanwhile import Meanwhile
from psl_flower.engine.rounds import RoundReport, Rounds, predictions, step_report
from psl_flower.engine.steps import StepLoss
from psl_flower.engine.task import Task
from psl_flower.wire.messages import ADAPTATION
from psl_flower.wire.plan import Plan


class RoundDriver(Rounds[LowerEngine, Task]):
    """Runs rounds for the Lower: from patches to classes.

    It evaluates on the validation images, if there are any, else on the test split. Once the Uppers are frozen
    (`psl_flower.engine.freezing`) no Upper waits for gradients: the next smashed data arrive while the Lower learns.
    Their looks are kept in `looks`; without it they are asked in every step. `options` are those of `Rounds`.
    """

    def __init__(
        self,
        lower: LowerEngine,
        task: Task,
        smashed_shapes: Mapping[int, tuple[int, ...]],
        checkpoints: Checkpoints,
        *,
        looks: Looks | None = None,
        **options: Any,
    ) -> None:
        super().__init__(lower, task, smashed_shapes, checkpoints, **options)
        self._looks, self._looked = looks, False

    @property
    def party_step(self) -> int:
        """Steps that the Uppers have applied; no more once they are frozen."""
        return self.task.party_step(self.lower.step)

    @property
    def needs_nodes(self) -> bool:
        """Whether the looks that later rounds train on are still to come."""
        there = self._uppers_with_looks
        return not there or (len(there) < len(self._shapes) and not self._looked)

    @property
    def absent_for_good(self) -> tuple[int, ...]:
        """The Uppers without looks, once those of the others are kept; none before that."""
        there = self._uppers_with_looks
        return () if self.needs_nodes else tuple(m for m in self._shapes if m not in there)

    @property
    def _uppers_with_looks(self) -> Collection[int]:
        return self._looks.complete if self._looks is not None and self._frozen else ()

    @property
    def headway(self) -> tuple[int, int]:
        """Progress that survives the loss of a node: steps, and batches of looks kept."""
        return self.lower.step, 0 if self._looks is None else self._looks.batches_kept

    @property
    def looks_due(self) -> bool:
        """Whether looks are kept, and the Uppers are frozen now."""
        return self._looks is not None and self._frozen and self.needs_nodes

    def look(self, exchange: Exchange, absent: Collection[int] = ()) -> RoundReport:
        """Ask the Uppers that are not absent for all looks that are not kept yet; return a report of no step.

        Raises PslError as `psl_flower.engine.looks.Looks.collect`, and TrainingStopped if a stop was asked for.
        """
        self._collect(exchange, absent)
        if self.lower.adaptation_elsewhere:
            exchange.finish([ADAPTATION])
        return RoundReport(step=self.lower.step, absent=tuple(sorted(absent)))

    def _collect(self, exchange: Exchange, absent: Collection[int]) -> None:
        assert self._looks is not None
        self.commit_start()  # from which a run that was frozen from the start continues
        self._present = [m for m in self._shapes if m not in absent]
        self._looks.collect(exchange, self._present, lambda plan: self._expected(plan) or {}, self._end_if_asked)
        self._looked = True

    @property
    def _frozen(self) -> bool:
        return self.task.freezing is not None and self.task.freezing.is_frozen(self.lower.step)

    def _train(self, exchange: Exchange | None, stop_step: int, report: RoundReport) -> None:
        learning_ends = self.task.party_step(stop_step)
        if self.lower.step < learning_ends:
            super()._train(exchange, learning_ends, report)
        if learning_ends <= self.lower.step < stop_step and not self._stop_requested():
            if self.looks_due and exchange is not None:
                self._collect(exchange, report.absent)
            assert self._looks is not None or not (self.task.freezing and self.task.freezing.views)
            self._train_frozen(exchange, stop_step, report)

    def _train_frozen(self, exchange: Exchange | None, stop_step: int, report: RoundReport) -> None:
        every, plan = self._checkpoint_every, self.task.train_plan(self.lower.step)
        began = time.perf_counter()
        smashed, upper_s = self._answered(exchange, plan, lambda: None)
        while True:
            last = self.lower.step + 1 == stop_step
            following = self.task.train_plan(self.lower.step + (not last))
            learn = Meanwhile(partial(self._learn_frozen, plan, smashed))
            coming = ({}, 0.0) if last else self._answered(exchange, following, learn)
            if last:
                learn()
            loss, lower_s = learn.result
            now = time.perf_counter()
            report.steps.append(step_report(self.lower.step, plan, loss, upper_s, lower_s, now - began))
            self._on_step(report.steps[-1])
            began, plan, (smashed, upper_s) = now, following, coming
            ends = last or self._stop_requested()
            if ends or (every > 0 and self.lower.step % every == 0):
                self._commit()
            if ends:
                return

    def _learn_frozen(self, plan: Plan, smashed: Mapping[int, torch.Tensor]) -> tuple[StepLoss, float]:
        """Do a step of the Lower alone; return its losses, and its seconds."""
        began = time.perf_counter()
        targets, flipped_B = self.task.targets(plan)
        loss, _ = self.lower.train_step(
            smashed, targets, flipped_B, plan.lr,
            dropped_BM=self.task.dropped(plan, len(self._shapes), self._round.absent),
            draws=lambda: drawing(plan, "lower", self.lower.device), frozen=True,
        )  # fmt: skip
        self.lower.update()
        return loss, time.perf_counter() - began

    def _answered(
        self, exchange: Exchange | None, plan: Plan, meanwhile: Callable[[], None]
    ) -> tuple[dict[int, torch.Tensor], float]:
        if self._looks is None or self.needs_nodes:
            return super()._answered(exchange, plan, meanwhile)
        meanwhile()
        return self._looks.read(plan), 0.0

    def _learn(
        self, exchange: Exchange, plan: Plan, smashed: Mapping[int, torch.Tensor], absent: Collection[int]
    ) -> tuple[StepLoss, dict[int, torch.Tensor]]:
        targets, flipped_B = self.task.targets(plan)
        adaptation = RemoteAdaptation(exchange, plan.id) if self.lower.adaptation_elsewhere else None
        dropped_BM = self.task.dropped(plan, len(self._shapes), absent)
        return self.lower.train_step(
            smashed, targets, flipped_B, plan.lr, adaptation, dropped_BM=dropped_BM,
            draws=lambda: drawing(plan, "lower", self.lower.device),
        )  # fmt: skip

    def _evaluate(self, exchange: Exchange | None, report: RoundReport) -> None:
        logits = [self.lower.logits(smashed) for _, smashed in self._evaluated(exchange)]
        found = predictions(torch.cat(logits), self.task.evaluated, self.task.labels)
        if len(self.task.valid):
            report.validation, kind = found, "valid_"
        else:
            report.predictions, kind = found, ""
        report.metrics = {f"{kind}accuracy": found.accuracy, f"{kind}loss": found.loss}
