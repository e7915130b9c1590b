"""Drives the steps of a round over any transport: plans out, smashed data in, gradients out, evaluation at the end.

One exchange carries the gradients of step t and the plan of step t+1, so a step costs one round trip;
two if the Uppers are averaged after it.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np
import torch
from msgspec.structs import replace
from numpy.typing import NDArray
from torch.nn import functional as F

from psl_flower.engine.checkpoints import Checkpoints
from psl_flower.engine.exchange import Down, Exchange, Up
from psl_flower.engine.head import HeadEngine
from psl_flower.engine.mid_step import keep
from psl_flower.engine.steps import StepLoss, StepReport, packed, unpacked
from psl_flower.engine.task import Lessons
from psl_flower.engine.upper_averaging import Averaging, mean
from psl_flower.errors import TrainingStopped
from psl_flower.wire.messages import ADAPTATION, Average, Share, Step
from psl_flower.wire.plan import Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class Predictions:
    """The network's answers to the samples of a split, in their order."""

    sample: NDArray[np.int64]  #: Global sample indices, int64.
    #: Classes, int64.
    label: NDArray[np.int64]
    predicted: NDArray[np.int64]
    confidence: NDArray[np.float32]  #: Softmax probability of the predicted class, float32.
    loss: float  #: Mean cross entropy.
    #: Softmax probabilities of all classes (images, classes), float32; None if they were not kept.
    probability: NDArray[np.float32] | None = None

    @property
    def accuracy(self) -> float:
        """Share of samples classified correctly."""
        return float((self.label == self.predicted).mean())


@dataclass(slots=True, kw_only=True)
class RoundReport:
    """What a round did: its steps, the evaluation at its end if there was one, and the Uppers that were absent.

    `step` counts the steps applied at its end; `metrics` are what the evaluation measured, by name. `predictions` are
    of the test split, `validation` of the validation images, if there are some.
    """

    steps: list[StepReport] = field(default_factory=list)
    step: int = 0
    predictions: Predictions | None = None
    validation: Predictions | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    train_s: float = 0.0
    absent: tuple[int, ...] = ()


L = TypeVar("L", bound=HeadEngine)
T = TypeVar("T", bound=Lessons)


class Rounds(ABC, Generic[L, T]):
    """Runs rounds for the server's side of a step; subclasses define how it learns and evaluates.

    Parameters
    ----------
    lower : HeadEngine
        That side of a step.
    task : Lessons
        What to train on.
    smashed_shapes : mapping
        Shape, without the batch, of each party's smashed data; (K, h, w, C) of an Upper's.
    checkpoints : Checkpoints
        The Lower's; writing one commits it, since every party has then saved the same step.
    averaging : Averaging or None
        When the Uppers' weights are averaged, if they are.
    checkpoint_every : int
        Steps between checkpoints within a round; 0: only at the end of a round.
    on_step : callable
        Called with every StepReport.
    on_evaluated : callable
        Called with (images done, images in all) after every batch of an evaluation.
    stop_requested : callable
        Asked after every step, and in evaluation; true ends the run there with a checkpoint, unless it is done.
    """

    def __init__(
        self,
        lower: L,
        task: T,
        smashed_shapes: Mapping[int, tuple[int, ...]],
        checkpoints: Checkpoints,
        *,
        averaging: Averaging | None = None,
        checkpoint_every: int = 0,
        on_step: Callable[[StepReport], None] = lambda report: None,
        on_evaluated: Callable[[int, int], None] = lambda done, total: None,
        stop_requested: Callable[[], bool] = lambda: False,
    ) -> None:
        self.lower = lower
        self.task = task
        self._shapes = dict(smashed_shapes)
        self._present = list(self._shapes)
        self._checkpoints = checkpoints
        self._averaging = averaging
        self._checkpoint_every = checkpoint_every
        self._on_step = on_step
        self._on_evaluated = on_evaluated
        self._stop_requested = stop_requested
        self._round = RoundReport()  # of the current round

    def commit_start(self) -> None:
        """Commit the initial state, if nothing has been committed yet, so that a first round can be repeated."""
        if not self._checkpoints.steps():
            self._checkpoints.save(self.lower.step, self.lower.state())

    def keep(self, step: int) -> None:
        """Keep the Lower's checkpoint of a step in addition to the newest ones."""
        self._checkpoints.kept = step

    def go_back(self) -> int:
        """Go back to the last committed checkpoint and return its step.

        Raises
        ------
        RunError
            If there is none or it is damaged.
        """
        step = max(self._checkpoints.steps(), default=0)
        self.lower.go_to(step, self._checkpoints)
        return step

    @property
    def party_step(self) -> int:
        """Steps that the parties have applied."""
        return self.lower.step

    @property
    def needs_nodes(self) -> bool:
        """Whether later rounds need nodes."""
        return True

    @property
    def absent_for_good(self) -> tuple[int, ...]:
        """Once later rounds need no nodes, the Uppers that have no part in them."""
        return ()

    @property
    def headway(self) -> tuple[int, int]:
        """Progress that survives the loss of a node: steps, and batches of looks kept."""
        return self.lower.step, 0

    @property
    def looks_due(self) -> bool:
        """Whether the next thing to do is to ask for all looks that later rounds need (`look`)."""
        return False

    def look(self, exchange: Exchange, absent: Collection[int] = ()) -> RoundReport:
        """Ask the Uppers that are not absent for these looks; return a report of no step. Only if `looks_due`."""
        raise AssertionError("nothing is due")

    def run(
        self, exchange: Exchange | None, stop_step: int, *, evaluate: bool, absent: Collection[int] = ()
    ) -> RoundReport:
        """Train from the Lower's step to `stop_step`, commit a checkpoint, then evaluate.

        `exchange` may be None if rounds need no nodes (`needs_nodes`). Zeros stand for smashed data of the
        Uppers in `absent`, which are not asked, and do not learn. Where the round had begun before, in this process or
        another, its report has the steps up to the checkpoint, too.

        Raises
        ------
        TrainingError
            If the loss is not finite.
        TrainingStopped
            If a stop was asked for; a checkpoint of the last step is committed.
        PslError
            Whatever the transport raises.
        """
        self._present = [m for m in self._shapes if m not in absent]
        started, per_round = time.perf_counter(), self.task.steps_per_round
        begins = (stop_step - 1) // per_round * per_round
        before = [step for step in unpacked(self.lower.reported) if begins < step.step <= self.lower.step]
        report = self._round = RoundReport(steps=before, absent=tuple(sorted(absent)))
        before_s = sum(step.seconds for step in report.steps)
        self._end_if_asked()
        if self.lower.step < stop_step:
            self._train(exchange, stop_step, report)
        report.train_s = before_s + time.perf_counter() - started
        self._end_if_asked()
        if self.lower.adaptation_elsewhere and exchange is not None:
            exchange.finish([ADAPTATION])  # it has no part in evaluation
        if evaluate:
            self._evaluate(exchange, report)
        report.seconds = before_s + time.perf_counter() - started
        report.step = self.lower.step
        return report

    def _train(self, exchange: Exchange | None, stop_step: int, report: RoundReport) -> None:
        assert exchange is not None
        plan: Plan | None = self.task.train_plan(self.lower.step)
        trained: Plan | None = None
        gradients: dict[int, torch.Tensor] = {}
        began = time.perf_counter()
        while plan is not None:
            answers = self._turn(exchange, trained, gradients, plan)
            computing = time.perf_counter()
            loss, gradients = self._learn(exchange, plan, _tensors(answers), report.absent)
            now = time.perf_counter()
            report.steps.append(
                step_report(plan.id.step + 1, plan, loss, _upper_s(answers), now - computing, now - began)
            )
            self._on_step(report.steps[-1])
            began = now
            next_step = plan.id.step + 1
            more = next_step < stop_step and not self._stop_requested()
            trained, plan = plan, self.task.train_plan(next_step) if more else None
        self._turn(exchange, trained, gradients, None)

    def _end_if_asked(self) -> None:
        """Raise TrainingStopped if a stop is requested, this step has a checkpoint and more steps are to come."""
        step = self.lower.step
        if self._stop_requested() and step < self.task.total_steps and step in self._checkpoints.steps():
            raise TrainingStopped(f"stopped after step {step}, as asked; a checkpoint of it is written")

    def _turn(
        self, exchange: Exchange, trained: Plan | None, gradients: dict[int, torch.Tensor], plan: Plan | None
    ) -> dict[int, Up]:
        """Deliver the gradients of the plan just trained, and the next plan; commit a checkpoint if one is due."""
        every = self._checkpoint_every
        due = trained is not None and (plan is None or (every > 0 and (trained.id.step + 1) % every == 0))
        mid_step = self.lower.mid_step if due else ()

        def meanwhile() -> None:
            self.lower.update()
            for party in mid_step:
                keep(exchange, party, self.lower.step)

        if trained is not None and self._averaging is not None and self._averaging.is_due(trained.id.step + 1):
            means = self._shared_means(exchange, trained, gradients, meanwhile, save=due and plan is None)
            down = self._after_sharing(trained, means, plan, save=due)
            answers = exchange.exchange(down, self._expected(plan), meanwhile=lambda: None)
        else:
            step = Step(gradient_of=trained.id if trained else None, save=due)
            down = {m: Down(replace(step, plan=self._next_plan(m, plan)), gradients.get(m)) for m in self._present}
            answers = exchange.exchange(down, self._expected(plan), meanwhile)
        if due:
            saved = [*self._present, *mid_step]
            self.lower.saved |= dict.fromkeys(saved, self.lower.step)
            self._commit()
        return answers

    def _after_sharing(
        self, trained: Plan, means: Mapping[int, torch.Tensor], plan: Plan | None, *, save: bool
    ) -> dict[int, Down]:
        """Return the messages after `_shared_means`: averages, and the next plan, to the parties they concern."""
        down = {}
        for m in self._present:
            its_plan = self._next_plan(m, plan)
            if m in means:
                down[m] = Down(Average(trained.id, its_plan, save), means[m])
            elif plan is not None:
                down[m] = Down(Step(plan=its_plan, save=save))
        return down

    def _commit(self) -> None:
        self.lower.reported = packed(self._round.steps)
        self._checkpoints.save(self.lower.step, self.lower.state())

    def _shared_means(
        self, exchange: Exchange, trained: Plan, gradients: dict[int, torch.Tensor], meanwhile: Callable[[], None],
        *, save: bool,
    ) -> dict[int, torch.Tensor]:  # fmt: skip
        """Deliver the gradients of the plan just trained; return the means of the weights that they lead to, by party.

        Parties that share no weights receive only their gradients, and `save`, if no plan follows.
        """
        groups = self._averaged_groups()
        shapes = {m: (count,) for members, count in groups for m in members}
        alone = Step(gradient_of=trained.id, save=save)
        down = {m: Down(Share(trained.id) if m in shapes else alone, gradients[m]) for m in self._present}
        shared = _tensors(exchange.exchange(down, shapes, meanwhile))
        means = [(members, mean([shared[m] for m in members])) for members, _ in groups]
        return {m: mean_N for members, mean_N in means for m in members}

    def _averaged_groups(self) -> list[tuple[Collection[int], int]]:
        """Return the parties that are averaged with each other, and how many numbers each of them shares."""
        assert self._averaging is not None
        return [(self._present, self._averaging.weight_count)]

    @abstractmethod
    def _learn(
        self, exchange: Exchange, plan: Plan, smashed: Mapping[int, torch.Tensor], absent: Collection[int]
    ) -> tuple[StepLoss, dict[int, torch.Tensor]]:
        """Learn from a plan's smashed data; return the losses, and the gradients at the cut by party."""

    @abstractmethod
    def _evaluate(self, exchange: Exchange | None, report: RoundReport) -> None:
        """Evaluate (`_evaluated`) and add what was measured to the report."""

    def _evaluated(self, exchange: Exchange | None) -> Iterator[tuple[Plan, dict[int, torch.Tensor]]]:
        """Yield every plan of an evaluation, and the smashed data of all parties."""
        done = 0
        for plan in self.task.evaluation_plans(self.lower.step):
            yield plan, self._answered(exchange, plan, lambda: None)[0]
            done += plan.num_samples
            self._on_evaluated(done, self.task.num_evaluated)
            self._end_if_asked()

    def _answered(
        self, exchange: Exchange | None, plan: Plan, meanwhile: Callable[[], None]
    ) -> tuple[dict[int, torch.Tensor], float]:
        """Return all parties' answers to a plan that changes no state, and the seconds of the slowest."""
        assert exchange is not None
        down = {m: Down(Step(plan=self._next_plan(m, plan))) for m in self._present}
        answers = exchange.exchange(down, self._expected(plan), meanwhile)
        return _tensors(answers), _upper_s(answers)

    def _expected(self, plan: Plan | None) -> dict[int, tuple[int, ...]] | None:
        if plan is None:
            return None
        return {m: (self._plan_of(m, plan).num_samples, *self._shapes[m]) for m in self._present}

    def _next_plan(self, m: int, plan: Plan | None) -> Plan | None:
        return None if plan is None else self._plan_of(m, plan)

    def _plan_of(self, m: int, plan: Plan) -> Plan:
        """Return the plan for party m: the same for all, unless a subclass knows which samples each holds."""
        return plan


def _tensors(answers: Mapping[int, Up]) -> dict[int, torch.Tensor]:
    return {m: up.tensor for m, up in answers.items() if up.tensor is not None}


def _upper_s(answers: Mapping[int, Up]) -> float:
    return max(up.answer.seconds for up in answers.values())


def step_report(step: int, plan: Plan, loss: StepLoss, upper_s: float, lower_s: float, seconds: float) -> StepReport:
    """Return the report of a plan that was step `step`, counted from 1."""
    return StepReport(
        step=step,
        epoch=plan.id.epoch,
        loss=loss,
        num_samples=plan.num_samples,
        seconds=seconds,
        upper_s=upper_s,
        lower_s=lower_s,
        wire_s=max(0.0, seconds - upper_s - lower_s),
    )


def predictions(logits_BK: torch.Tensor, samples_B: NDArray[np.int64], labels: NDArray[np.int64]) -> Predictions:
    """Return the predictions of float32 logits (B, classes) of samples (B,); `labels` are those of all samples."""
    probability_BK = logits_BK.softmax(1)
    confidence_B, predicted_B = probability_BK.max(1)
    label_B = labels[samples_B]
    return Predictions(
        sample=samples_B.astype(np.int64),
        label=label_B,
        predicted=predicted_B.numpy(),
        confidence=confidence_B.numpy(),
        loss=float(F.cross_entropy(logits_BK, torch.from_numpy(label_B))),
        probability=probability_BK.numpy(),
    )
