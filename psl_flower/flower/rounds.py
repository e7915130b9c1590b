"""A Flower strategy that drives split training through Flower's rounds, for any models and data of the parties."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from psl_flower.config.wire import WireSettings
from psl_flower.engine.exchange import Exchange
from psl_flower.engine.round_ends import round_goal
from psl_flower.engine.rounds import RoundReport, Rounds
from psl_flower.errors import NodeError, NodeLost, PeerLost, ProtocolError
from psl_flower.flower.link import NodeLink
from psl_flower.flower.messages import tell
from psl_flower.flower.placement import Placement
from psl_flower.wire.node_messages import NodeTask

log = logging.getLogger("psl_flower")

# Recoveries allowed without a step committed in between.
_MOST_ATTEMPTS = 5


class RoundsStrategy(Strategy):
    """Trains a model on the server with models on the nodes.

    A Flower round is a number of training steps and, if asked for, a run through the test split. What Flower calls the
    global arrays are the weights of the server's model; those of the others stay on their nodes, unless the driver
    averages them.

    Parameters
    ----------
    driver : Rounds
        The server's engine, the task with the steps of a round and of the whole run, and the checkpoints.
    task : NodeTask
        The task sent to nodes; `parties` is filled in for each.
    wire : WireSettings
        How the parties reach each other, with which codecs, and what happens when a node is missing.
    without : frozenset[int]
        Uppers to leave out, on any node.
    evaluate_every : int
        Rounds between runs through the test split; 0 for none but after the last step, None for none at all.
    unfinished : bool
        Whether the Lower's step is a round's last, but the process ended before it was evaluated and reported.
    on_placed, on_round : callable
        Called with the Placement before the first round and whenever it changes, and with (round, RoundReport,
        bytes up, bytes down by party so far) after every round.
    """

    def __init__(
        self,
        driver: Rounds[Any, Any],
        task: NodeTask,
        wire: WireSettings,
        *,
        without: frozenset[int] = frozenset(),
        evaluate_every: int | None = 1,
        unfinished: bool = False,
        on_placed: Callable[[Placement], None] = lambda placement: None,
        on_round: Callable[[int, RoundReport, Mapping[int, int], Mapping[int, int]], None] = lambda *_: None,
    ) -> None:
        self._driver, self._wire = driver, wire
        lower = driver.lower
        self._link = NodeLink(
            task, lower.assignment, wire,
            dtype=lower.dtype, adaptation=lower.adaptation_elsewhere, without=without, on_placed=on_placed,
        )  # fmt: skip
        self._total_steps: int = driver.task.total_steps
        self._evaluate_every, self._on_round, self._unfinished = evaluate_every, on_round, unfinished
        self._report = RoundReport()
        self._goal = (0, False)  # of the current round: the step at which it stops, and whether it evaluates
        self._recovered_at, self._attempts = (-1, 0), 0
        self._lost: NodeLost | None = None  # a node that went when its round was over

    @property
    def placement(self) -> Placement:
        """Which node hosts which Uppers; known from the first round on."""
        return self._link.placement

    def summary(self) -> None:
        """Log the networks being trained."""
        if self._total_steps:  # predictions have none
            about, name = self._driver.lower.about, type(self).__name__
            log.info("%s: %s, %s steps in all", name, about, self._total_steps)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Run a round; return no message for Flower to send.

        With the stream transport every node gets one message, which opens its streams, and answers it when the round
        is over. Flower itself would wait without end for the answer of a node that was started again at once: the
        message counts as delivered, and the node as online.

        Raises
        ------
        PslError
            If nodes or positions are missing, or the round fails: the error that came first, be it the Lower's or a
            node's.
        """
        if self._driver.looks_due:
            self._collect_looks(grid)
        # Flower counts rounds from where a run resumes, perhaps amid a round; ours keep their original ends.
        task, step = self._driver.task, self._driver.lower.step
        self._goal = round_goal(task, step, self._evaluate_every, unfinished=self._unfinished)
        self._unfinished = False
        if not self._driver.needs_nodes:
            stop_step, evaluate = self._goal
            absent = self._driver.absent_for_good
            self._report = self._driver.run(None, stop_step, evaluate=evaluate, absent=absent)
            return []
        self._ensure_open(grid)
        self._report = self._round(grid, self._run)
        return []

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Return the Lower's weights and the round's means."""
        steps = self._report.steps
        self._on_round(server_round, self._report, self._link.bytes_up(), self._link.bytes_down())
        if self._lost is not None:
            self._link.close()
        metrics = MetricRecord({"step": self._driver.lower.step})
        if steps:
            metrics["loss"] = sum(step.loss.full for step in steps) / len(steps)
        return ArrayRecord(self._driver.lower.lower.state_dict()), metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return no message: a round's evaluation uses the streams that its training opened."""
        return []

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Return the metrics of the test split, if this round ran through it."""
        return MetricRecord({**self._report.metrics}) if self._report.metrics else None

    def collect(self, grid: Grid) -> dict[int, dict[str, torch.Tensor]]:
        """Ask every node for its Upper models' weights, as only the owner of the model may; by Upper.

        Raises
        ------
        NodeError, PeerLost
            If a node fails, or is lost and does not come back within the options' `node_timeout_s`.
        PositionMissing
            If no node holds some position by then.
        """
        return self._link.collect(grid, self._driver.lower.saved)

    def keep(self, step: int, saved: Mapping[int, int]) -> None:
        """Let all parties keep one more checkpoint than the newest: the Lower that of a step, the others of `saved`."""
        self._driver.keep(step)
        self._link.keep(saved)

    def close(self) -> None:
        """End all streams; safe to call again."""
        self._link.close()

    def _open(self, grid: Grid, lost: NodeLost | PeerLost | None) -> None:
        self._link.open_in_time(grid, self._driver.lower.saved, lost)
        self._lost = None
        if not self.placement.simulated:
            self._driver.commit_start()

    def _ensure_open(self, grid: Grid) -> None:
        if self._link.is_open and self._link.has_returned(grid):
            self._link.close()
        if not self._link.is_open:
            self._open(grid, self._lost)

    def _collect_looks(self, grid: Grid) -> None:
        """Ask the nodes for all that the rounds from now on take of them, and part from them."""
        self._ensure_open(grid)
        self._round(grid, self._look)
        self._link.close()
        self._lost = None  # parties lost after the last answer are not needed

    def _look(self, exchange: Exchange) -> RoundReport:
        return self._driver.look(exchange, self.placement.absent)

    def _run(self, exchange: Exchange) -> RoundReport:
        stop_step, evaluate = self._goal
        return self._driver.run(exchange, stop_step, evaluate=evaluate, absent=self.placement.absent)

    def _round(self, grid: Grid, work: Callable[[Exchange], RoundReport]) -> RoundReport:
        """Do the work of a round, again from the last checkpoint where a node was lost."""
        while True:
            exchange = self._link.flower_exchange
            try:
                return work(exchange) if exchange is not None else self._stream_round(grid, work)
            except (PeerLost, NodeLost) as error:
                self._recover(grid, error)

    def _stream_round(self, grid: Grid, work: Callable[[Exchange], RoundReport]) -> RoundReport:
        """Tell the nodes to open their streams, run the round over them in a thread, and handle the nodes' replies."""
        messages = self._link.stream_messages(self._driver.party_step, self._driver.lower.saved)
        thread = _RoundThread(lambda: self._link.over_streams(work))
        thread.start()
        refusals: list[NodeError] = []

        def hear(reply: Message) -> None:
            # A node that refuses opens no stream, which the Lower would wait for. A lost one is waited for.
            failure = self._link.reported_failure([reply])
            if failure is not None and not isinstance(failure, NodeLost) and thread.is_alive() and not refusals:
                refusals.append(failure)
                self._link.abort(str(failure))

        replies = tell(grid, messages, thread.is_over, hear)
        outcome, reported = thread.result(), self._link.reported_failure(replies)
        if isinstance(outcome, RoundReport):
            lost = reported or self._link.unanswered(replies)
            if isinstance(lost, NodeLost) and not self.placement.simulated:
                log.warning("%s, after the round was over", lost)
                self._lost = lost
            elif lost is not None:
                raise lost
            return outcome
        if isinstance(outcome, PeerLost) and not refusals and reported is not None:
            # The Lower only saw that a node did not come, or went; the node's own words say why.
            raise reported from outcome
        if isinstance(outcome, ProtocolError) and refusals:
            raise refusals[0] from outcome
        raise outcome

    def _recover(self, grid: Grid, error: PeerLost | NodeLost) -> None:
        """Go back to the last committed step and wait for all nodes; then the round can be started again.

        Raises
        ------
        PslError
            The error itself, in a simulation, whose actors do not come back, or when nothing has been committed or kept
            since the last attempts; or why the nodes did not come back in time.
        """
        if self.placement.simulated:
            raise error
        step = self._driver.go_back()
        headway = self._driver.headway
        self._attempts = self._attempts + 1 if headway == self._recovered_at else 1
        self._recovered_at = headway
        if self._attempts > _MOST_ATTEMPTS:
            raise error
        log.warning(
            "%s; all go back to step %d, the last that all have saved, and wait up to %g s for the nodes",
            error, step, self._wire.node_timeout_s,
        )  # fmt: skip
        self._link.close()
        self._open(grid, error)


class _RoundThread(threading.Thread):
    """Runs a function and keeps what it returned or raised."""

    def __init__(self, function: Callable[[], RoundReport]) -> None:
        super().__init__(name="psl-round", daemon=True)
        self._function = function
        self._result: RoundReport | BaseException | None = None

    def run(self) -> None:
        """Run the function."""
        try:
            self._result = self._function()
        except BaseException as error:
            self._result = error

    def is_over(self, timeout_s: float) -> bool:
        """Wait at most this long; True if the function has ended."""
        self.join(timeout_s)
        return not self.is_alive()

    def result(self) -> RoundReport | BaseException:
        """Wait for the end and return the outcome."""
        self.join()
        assert self._result is not None
        return self._result
