"""The run as its handler gets it, and the one place where the Lower's side of training and prediction is wired."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from flwr.app import ArrayRecord
from flwr.serverapp import Grid

from psl_flower.engine.build import Blueprint
from psl_flower.engine.checkpoints import Checkpoints
from psl_flower.engine.looks import Looks
from psl_flower.engine.lower import LowerEngine
from psl_flower.engine.round_driver import RoundDriver
from psl_flower.engine.rounds import Predictions, RoundReport
from psl_flower.engine.task import Task
from psl_flower.engine.upper_averaging import Averaging
from psl_flower.flower.placement import Placement
from psl_flower.kinds import Kind, Work
from psl_flower.stores.store_set import StoreSet
from psl_flower.system.devices import choose_device
from psl_flower.wire.node_messages import NodeTask
from server.reporting import Reporter
from strategies import PatchSplit

K = TypeVar("K", bound=Kind, covariant=True)
OnRound = Callable[[int, RoundReport, Mapping[int, int], Mapping[int, int]], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Parties:
    """Who computes in a training or a prediction."""

    lower: LowerEngine  #: The Lower, at the step of the Uppers' states.
    shapes: dict[int, tuple[int, int, int, int]]  #: (K, h, w, C) of what each Upper sends up.
    checkpoints: Checkpoints  #: The Lower's.
    node_task: NodeTask  #: The task sent to nodes.
    averaging: Averaging | None = None  #: Averaging of the Uppers, if they are averaged.
    looks: Looks | None = None  #: Store of the looks of frozen Uppers, if they are kept.


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerRun(Work, Generic[K]):
    """One run, as its handler receives it."""

    grid: Grid
    kind: K  #: The kind of run, with its settings.
    stores: StoreSet  #: The patch stores, as they are now.
    reporter: Reporter  #: Tells the user.

    @property
    def blueprint(self) -> Blueprint:
        """What the parties are built from."""
        return Blueprint(self.config, self.stores.description)

    @property
    def device(self) -> torch.device:
        """Where the Lower computes."""
        return choose_device(self.config.machine.device)

    def parties(self, lower: LowerEngine, **more: Any) -> Parties:
        """Return the Lower with the Uppers of the run's own network; `more` are other fields of `Parties`."""
        return Parties(
            lower=lower, shapes=self.blueprint.smashed_shapes(), checkpoints=self.source.checkpoints,
            node_task=self.node_task(), **more,
        )  # fmt: skip

    def node_task(self, blueprint: Blueprint | None = None, part: str = "") -> NodeTask:
        """Return the task for nodes: to build their parties from the run's blueprint, or from another for one part."""
        config, stores = self.config, self.stores
        return NodeTask(
            run=self.source.identity,
            parties=(),
            settings=(blueprint or self.blueprint).encode(),
            activations=config.smashed_codec,
            gradients=config.wire.wire_gradients,
            timeout_s=config.wire.step_timeout_s,
            stores=str(stores.folder),
            keys=str(stores.keys or ""),
            owner=stores.owner,
            state=str(self.source.nodes),
            threads=config.machine.upper_threads,
            epoch=stores.epoch,
            part=part,
        )

    def strategy(
        self,
        parties: Parties,
        task: Task,
        *,
        on_placed: Callable[[Placement], None],
        on_round: OnRound | None = None,
        on_evaluated: Callable[[int, int], None] = lambda done, total: None,
        evaluate_every: int | None = None,
        unfinished: bool = False,
        without: frozenset[int] = frozenset(),
    ) -> PatchSplit:
        """Return the strategy that lets these parties do a task; takes what `PatchSplit` and `RoundDriver` take."""
        driver = RoundDriver(
            parties.lower,
            task,
            parties.shapes,
            parties.checkpoints,
            averaging=parties.averaging,
            looks=parties.looks,
            checkpoint_every=self.config.output.checkpoint_every,
            on_step=self.reporter.step,
            on_evaluated=on_evaluated,
            stop_requested=self.folder.stop_requested,
        )
        return PatchSplit(
            driver,
            parties.node_task,
            self.config.wire,
            without=without,
            evaluate_every=evaluate_every,
            unfinished=unfinished,
            on_placed=on_placed,
            on_round=on_round or self.reporter.round,
        )

    def predictions(
        self,
        parties: Parties,
        task: Task,
        *,
        on_placed: Callable[[Placement], None],
        on_evaluated: Callable[[int, int], None],
        without: frozenset[int] = frozenset(),
    ) -> tuple[Predictions, tuple[int, ...]]:
        """Return the predictions of a task's test samples, and the Uppers that had no part in them.

        Raises
        ------
        PslError
            If a node is missing, keeps no such weights, or fails.
        """
        reports: list[RoundReport] = []
        strategy = self.strategy(
            parties,
            task.testing().evaluating(parties.lower.step),
            evaluate_every=0,
            on_placed=on_placed,
            on_round=lambda number, report, up, down: reports.append(report),
            on_evaluated=on_evaluated,
            without=without,
        )
        try:
            strategy.start(self.grid, initial_arrays=ArrayRecord(parties.lower.lower.state_dict()), num_rounds=1)
        finally:
            strategy.close()
        predictions = reports[-1].predictions
        assert predictions is not None
        return predictions, reports[-1].absent
