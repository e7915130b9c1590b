"""A training that is watched on validation images: the best checkpoint is kept, training may end early.

Everything follows from metrics.jsonl and the checkpoints, in this order: the round's checkpoint, its metrics, and at
the end best.json before later checkpoints are dropped. So a run that is killed anywhere ends with the same weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from psl_flower.engine.rounds import RoundReport
from psl_flower.engine.stopping import BestSoFar, Monitor
from psl_flower.engine.task import Task
from psl_flower.kinds import Train
from psl_flower.runs.best_checkpoint import BestCheckpoint, load_best, save_best
from server.run import Parties, ServerRun
from strategies import PatchSplit


class EndedEarly(Exception):
    """Training ends with this round, since the validation images have not improved for long enough."""


class Validation:
    """Follows a training by its validation images; the run's metrics are its only memory."""

    def __init__(self, run: ServerRun[Train], monitor: Monitor, parties: Parties, task: Task) -> None:
        self._run, self._monitor, self._parties, self._task = run, monitor, parties, task
        self._strategy: PatchSplit | None = None

    @property
    def over(self) -> bool:
        """Whether an earlier process came to the end of training."""
        return load_best(self._run.source) is not None or self._verdict().ended

    def follow(self, strategy: PatchSplit) -> None:
        """Keep the best checkpoint so far from now on, on all parties of this strategy."""
        self._strategy = strategy
        best = self._verdict().step
        if best and not self.over:
            self._keep(best, self._parties.checkpoints.load(best)["saved"])

    def on_round(self, number: int, report: RoundReport, up: Mapping[int, int], down: Mapping[int, int]) -> None:
        """Report a round, keep its checkpoint if it is the best.

        Raises
        ------
        EndedEarly
            If it is the last one by the monitor's patience.
        """
        self._run.reporter.round(number, report, up, down)
        if report.validation is None:
            return
        verdict = self._verdict()
        if verdict.step == report.step:
            self._keep(verdict.step, self._parties.lower.saved)
        if verdict.ended:
            raise EndedEarly

    def finish(self) -> BestCheckpoint:
        """Go to the best checkpoint, drop later ones, and run through the test split with it, if that is not done.

        Raises PslError as `ServerRun.predictions`.
        """
        run, lower, checkpoints = self._run, self._parties.lower, self._parties.checkpoints
        best = load_best(run.source) or self._best()
        save_best(run.source, best)
        lower.go_to(best.step, checkpoints)
        checkpoints.drop_after(best.step)
        tested = any(metrics.get("accuracy") is not None for metrics in run.source.read_metrics())
        if not tested:
            run.reporter.say("training", f"evaluating the best weights, those of step {best.step}, on the test images")
            assert self._strategy is not None
            self._strategy.close()  # its port may be the one that is asked for
            predictions, absent = run.predictions(
                self._parties,
                self._task,
                on_placed=lambda placement: None,
                on_evaluated=lambda done, total: None,
            )
            run.reporter.tested(best.step, predictions, absent)
        return best

    def _best(self) -> BestCheckpoint:
        verdict = self._verdict()
        last = self._parties.checkpoints.steps()[-1]
        return BestCheckpoint(
            step=verdict.step or last,
            trained=last,
            monitor=self._monitor.name,
            value=None if math.isnan(verdict.value) else verdict.value,
            stopped_early=last < self._task.schedule.total_steps,
        )

    def _keep(self, step: int, saved: Mapping[int, int]) -> None:
        assert self._strategy is not None
        self._strategy.keep(step, saved)

    def _verdict(self) -> BestSoFar:
        return self._monitor.verdict(self._run.source.read_metrics())
