"""The server's side of a training over parties with their own models and data."""

from __future__ import annotations

import logging
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result

from psl_flower.config.wire import WireSettings
from psl_flower.errors import ConfigError, RunError
from psl_flower.flower.link import NodeLink
from psl_flower.flower.messages import quiet_requests
from psl_flower.flower.placement import Placement
from psl_flower.flower.rounds import RoundsStrategy
from psl_flower.split.engines import TopEngine
from psl_flower.split.folder import TrainingFolder
from psl_flower.split.lessons import OnlyEvaluated
from psl_flower.split.local import settings_of
from psl_flower.split.session import Session
from psl_flower.split.training import Training
from psl_flower.system.devices import torch_threads
from psl_flower.wire.node_messages import NodeTask, encode

log = logging.getLogger("psl_flower")


class SplitLearning(Training):
    """A training over Flower's nodes, which run `psl_flower.flower.split_client`.

    Parameters
    ----------
    transport : {"auto", "stream", "flower"}
        "stream": nodes connect to the server and exchange over sockets; "flower": Flower's messages alone. "auto" takes
        the stream where all nodes can run at once.
    arguments, options : Any
        See `psl_flower.split.Training`, whose `workdir` must be given; or a setting of
        `psl_flower.config.wire.WireSettings`, such as `exchange_host` for nodes on other machines.

    Attributes
    ----------
    outputs : tensor, tuple of tensors or None
        What `top` answered to `valid` in the last evaluation of `fit`; what the head of a party that has the labels
        makes of it stays there.

    Raises
    ------
    ConfigError, AlignmentError
        As `Training`.
    """

    def __init__(self, *arguments: Any, transport: str = "auto", **options: Any) -> None:
        wire = {name: options.pop(name) for name in list(options) if name in WireSettings.__dataclass_fields__}
        super().__init__(*arguments, **options)
        quiet_requests()
        self.wire = WireSettings(transport=transport, **wire)
        if self.wire.on_missing_node != "wait":
            raise ConfigError("on_missing_node: a party cannot be done without here; leave it at 'wait'")
        if self.wire.gradient_feedback:
            raise ConfigError("gradient_feedback: works in patch-split training alone; leave it out")
        self.outputs: Any = None

    def fit(self, grid: Grid) -> Result:
        """Train to the end, or on from the last checkpoint in the workdir.

        Each round, a pass through `train`, is one line of the log `psl_flower` at INFO.

        Parameters
        ----------
        grid : Grid
            Flower's.

        Returns
        -------
        Result
            Flower's. `arrays` are the weights of `top`, for `load_state_dict(result.arrays.to_torch_state_dict())`;
            the parties' stay with them. `train_metrics_clientapp` has for each round, from 1, its mean `loss`, its
            `seconds`, and the bytes of frames up and down since this call began, as `bytes_up` and `bytes_down`;
            `evaluate_metrics_serverapp` the metrics of each round that was evaluated. Rounds before an interruption
            are among them.

        Raises
        ------
        PslError
            If a party is missing, does not hold the samples, or fails; or the training does. What was committed stays.
        """
        folder = self._folder()
        with folder.claimed(), torch_threads(self.threads):
            self._count_samples(grid)
            session = Session(self, folder)
            log.info("files are in %s", self.workdir)
            strategy = RoundsStrategy(
                session.driver,
                self._task(session.run, session.driver.lower),
                self.wire,
                evaluate_every=self.evaluate_every,
                unfinished=session.unfinished,
                on_placed=lambda placement: self._check_placed(placement, folder),
                on_round=lambda number, report, up, down: session.note(report, up, down),
            )
            try:
                while not session.over:
                    strategy.configure_train(len(session.records) + 1, ArrayRecord(), ConfigRecord(), grid)
                    strategy.aggregate_train(len(session.records) + 1, [])
            finally:
                strategy.close()
            session.end()
        self.outputs = session.driver.outputs
        return _result(session)

    def predict(self, grid: Grid, samples: Any) -> Any:
        """Run samples through the trained models of all parties, in evaluation mode, and return what `top` answers.

        Where a party has the labels, nothing is returned: its `psl_flower.split.LabelSide.on_evaluated` gets the rows
        and what its head answers, and they stay there.

        Parameters
        ----------
        grid : Grid
            Flower's.
        samples : sequence of int, or mask
            Rows, as `valid`.

        Raises
        ------
        RunError
            If nothing has been trained in the workdir.
        PslError
            As `fit`.
        """
        folder, rows = self._folder(), self.samples.at(samples, "samples")
        if not max(folder.checkpoints.steps(), default=0):
            raise RunError(f"{folder.path}: nothing has been trained there; call fit first")
        with torch_threads(self.threads):
            self._count_samples(grid)
            self.samples.require(rows, dropped=self.missing == "drop")
            session = Session(self, folder)
            driver = session.driver
            driver.task = OnlyEvaluated.of(self.lessons, rows, driver.lower.step)
            strategy = RoundsStrategy(
                driver, self._task(session.run, session.driver.lower), self.wire,
                on_placed=lambda placement: self._check_placed(placement, folder),
            )  # fmt: skip
            try:
                strategy.configure_train(1, ArrayRecord(), ConfigRecord(), grid)
            finally:
                strategy.close()
        return None if self.roster.labels else driver.outputs

    def _folder(self) -> TrainingFolder:
        if self.workdir is None:
            raise ConfigError("workdir: give a folder for checkpoints; an interrupted training continues from there")
        return TrainingFolder(self.workdir)

    def _count_samples(self, grid: Grid) -> None:
        """Let the parties say which samples they lack, if these are dropped: a training's steps depend on it."""
        if self.missing == "drop":
            assignment = tuple(range(len(self.roster.names)))
            task = self._task("samples", self.engine())
            NodeLink(task, assignment, self.wire, on_placed=self._check_placed).place_in_time(grid)

    def _task(self, run: str, top: TopEngine) -> NodeTask:
        return NodeTask(
            run=run,
            parties=(),
            settings=encode(settings_of(self, top)),
            activations=self.wire.wire_activations,
            gradients=self.wire.wire_gradients,
            timeout_s=self.wire.step_timeout_s,
            state=str(self._folder().parties),
            threads=self.threads,
            names=self.roster.names,
            labels=self.roster.labels,
        )

    def _check_placed(self, placement: Placement, folder: TrainingFolder | None = None) -> None:
        self.take(placement.claims)
        if folder is not None:
            folder.check_alignment(self.samples.alignment)
        hosts = ", ".join(placement.names[node] for node in placement.hosts)
        log.info("%s, %s transport%s", hosts, placement.transport, f"; {placement.note}" if placement.note else "")


def _result(session: Session) -> Result:
    result = Result(arrays=ArrayRecord(session.driver.lower.lower.state_dict()))
    for record in session.records:
        numbers = {key: float(value) for key, value in record.items() if isinstance(value, int | float)}
        number = int(numbers.pop("round"))
        trained: dict[str, float] = {
            key: numbers.pop(key) for key in ("loss", "seconds", "bytes_up", "bytes_down") if key in numbers
        }
        result.train_metrics_clientapp[number] = MetricRecord({**trained})
        numbers.pop("step")
        if numbers:
            result.evaluate_metrics_serverapp[number] = MetricRecord({**numbers})
    return result
