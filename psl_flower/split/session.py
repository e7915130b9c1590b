"""One training, from its first step or its last checkpoint: rounds, metrics, and callbacks."""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Mapping
from typing import Any

import torch

from psl_flower.engine.exchange import Exchange
from psl_flower.engine.round_ends import is_unreported
from psl_flower.engine.rounds import RoundReport, Rounds
from psl_flower.engine.steps import StepLoss, StepReport
from psl_flower.engine.upper_averaging import Averaging
from psl_flower.split.callbacks import Told
from psl_flower.split.engines import TOP, TopEngine
from psl_flower.split.folder import TrainingFolder
from psl_flower.split.holders import Holders
from psl_flower.split.labels import RemoteLabels
from psl_flower.split.lessons import SplitLessons
from psl_flower.split.measuring import figures, joined
from psl_flower.split.sent import Outputs
from psl_flower.split.training import Training
from psl_flower.wire.plan import Plan

log = logging.getLogger("psl_flower")


class SplitRounds(Rounds[TopEngine, SplitLessons]):
    """Runs rounds of a training over any transport.

    `lower` is the side of the model behind the cut; checkpoints are in the folder. `options` are those of
    `psl_flower.engine.rounds.Rounds`.

    Attributes
    ----------
    outputs : tensor, tuple of tensors or None
        What the model answered to `valid` in the last evaluation, in the order of `valid`.
    """

    def __init__(self, lower: TopEngine, training: Training, folder: TrainingFolder, **options: Any) -> None:
        shapes = {m: sent.wire_shape for m, sent in enumerate(training.sent.values())}
        every = training.average_every
        averaging = Averaging(every=every, weight_count=0) if every else None  # counts are those of `_averaged_groups`
        super().__init__(lower, training.lessons, shapes, folder.checkpoints, averaging=averaging, **options)
        self._training = training
        self._holders = Holders(training.roster.senders, training.samples.rows)
        self.outputs: Outputs | None = None

    def _averaged_groups(self) -> list[tuple[Collection[int], int]]:
        return list(self._training.averaged)

    def _plan_of(self, m: int, plan: Plan) -> Plan:
        return self._holders.told(m, plan)

    def _learn(
        self, exchange: Exchange, plan: Plan, smashed: Mapping[int, torch.Tensor], absent: Collection[int]
    ) -> tuple[StepLoss, dict[int, torch.Tensor]]:
        joined = self._holders.joined(plan, smashed)
        if self.lower.returned is not None:
            m = self.lower.mid_step[0]
            remote, told = RemoteLabels(exchange, m), self._plan_of(m, plan)
            loss, gradients = self.lower.train_step_elsewhere(plan, joined, lambda outputs: remote.learn(told, outputs))
        else:
            targets_B = self._training.samples.targets_of(plan.sample_indices())
            loss, gradients = self.lower.train_step(plan, joined, targets_B)
        return loss, self._holders.parted(plan, gradients)

    def _evaluate(self, exchange: Exchange | None, report: RoundReport) -> None:
        batches = [
            self.lower.outputs(plan, self._holders.joined(plan, smashed)) for plan, smashed in self._evaluated(exchange)
        ]
        if not batches:
            return
        self.outputs = joined(batches)
        report.metrics = self._figures(exchange, self.outputs)

    def _figures(self, exchange: Exchange | None, outputs: Outputs) -> dict[str, float]:
        """Return the metrics over all outputs of an evaluation, from here or the party that has the labels."""
        step, training = self.lower.step, self._training
        if self.lower.returned is not None:
            assert exchange is not None  # only kept looks, which patches alone have, do without
            packed = self.lower.returned.packed(outputs, self.task.num_evaluated, TOP)
            m = self.lower.mid_step[0]
            return RemoteLabels(exchange, m).score(self._plan_of(m, self.task.whole_evaluation(step)), packed)
        assert training.loss is not None
        return figures(training.loss, training.metrics, outputs, training.samples.targets_of(self.task.valid), step)


class Session:
    """One training with its folder.

    Attributes
    ----------
    run : str
        Identity of the run.
    driver : SplitRounds
        At the last checkpoint, if there is one.
    records : list of dict
        What is recorded of each round.
    unfinished : bool
        Whether the last step is a round's last, but the process ended before that was evaluated.

    Raises
    ------
    RunError
        If the folder's training was made of something else, or its files are damaged.
    """

    def __init__(self, training: Training, folder: TrainingFolder) -> None:
        self._training, self._folder = training, folder
        self.run = folder.begin(training.made_of())
        lower = training.engine()
        steps = folder.checkpoints.steps()
        if steps:
            lower.go_to(steps[-1], folder.checkpoints)
        self.records = folder.rounds(lower.step)
        self.unfinished = is_unreported(training.lessons, lower.step, self.records)
        self._told = Told(training.callbacks)
        self._told.resume(self.records)
        self.driver = SplitRounds(
            lower, training, folder, checkpoint_every=training.checkpoint_every, on_step=self._on_step
        )

    @property
    def over(self) -> bool:
        """Whether all steps are done, or a callback has asked for the end."""
        done = self.driver.lower.step >= self._training.lessons.total_steps and not self.unfinished
        return done or self._told.ending

    def note(self, report: RoundReport, bytes_up: Mapping[int, int], bytes_down: Mapping[int, int]) -> None:
        """Record a finished round and call the callbacks.

        Raises
        ------
        TrainingError
            If a callback raises; the round stays recorded.
        RunError
            If the disk refuses.
        """
        self.unfinished = False
        number = math.ceil(report.step / self._training.lessons.steps_per_round)
        record: dict[str, Any] = {"event": "round", "round": number, "step": report.step}
        if report.steps:
            record["loss"] = sum(step.loss.full for step in report.steps) / len(report.steps)
        record |= report.metrics | {"seconds": report.seconds}
        record |= {"bytes_up": sum(bytes_up.values()), "bytes_down": sum(bytes_down.values())}
        self.records.append(record)
        self._folder.write_rounds(self.records)
        log.info("%s", self._line(record, report))
        self._told(record)

    def _line(self, record: Mapping[str, Any], report: RoundReport) -> str:
        """Return a round's line in the log: loss, metrics, time and rate."""
        lessons = self._training.lessons
        rounds = math.ceil(lessons.total_steps / lessons.steps_per_round)
        names = [name for name in ("loss", *report.metrics) if name in record]
        parts = [*(f"{name} {record[name]:.4g}" for name in names), f"{report.seconds:.1f} s"]
        if report.steps and report.train_s > 0:
            parts.append(f"{sum(step.num_samples for step in report.steps) / report.train_s:.0f} samples/s")
        return f"round {record['round']}/{rounds}: {', '.join(parts)}"

    def end(self) -> None:
        """Tell the callbacks that the training is over."""
        last = self.records[-1] if self.records else {"step": self.driver.lower.step}
        self._told({**last, "event": "end"})

    def _on_step(self, report: StepReport) -> None:
        lr = self._training.lessons.lr(report.step - 1)
        self._told({
            "event": "step", "step": report.step, "epoch": report.epoch, "loss": report.loss.full, "lr": lr,
            "num_samples": report.num_samples, "seconds": report.seconds,
        })  # fmt: skip
