"""The patch-split strategy: holds the Lower model and drives split training through Flower's rounds.

In a ServerApp of your own, with models of your own:

    driver = RoundDriver(LowerEngine(my_lower, None, assignment, ...), task, smashed_shapes, checkpoints)
    strategy = PatchSplit(driver, node_task, wire=WireFormat(), steps_per_round=100, total_steps=1000)
    strategy.start(grid, initial_arrays=ArrayRecord(my_lower.state_dict()), num_rounds=10)

and on the nodes a ClientApp from `clients.upper_app.upper_app(build=...)`, where `build` makes the Upper models.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from psl_flower.engine.exchange import WireFormat
from psl_flower.engine.rounds import RoundDriver, RoundReport
from psl_flower.engine.streams import StreamExchange
from psl_flower.errors import NodeError, PeerLost, PslError, RunError
from psl_flower.node_task import NodeTask, StreamTicket, encode
from psl_flower.wire.endpoint import ExchangeEndpoint
from psl_flower.wire.tls import Identity
from strategies.flower_exchange import FlowerExchange
from strategies.messages import ask, content, failure_of
from strategies.nodes import Placement, place, task_for

log = logging.getLogger("psl_flower")


@dataclass(frozen=True, slots=True, kw_only=True)
class TransportOptions:
    """How the Lower and the nodes reach each other.

    Attributes
    ----------
    transport : {"auto", "stream", "flower"}
        See `strategies.nodes.place`.
    host, port : str, int
        Address that the exchange endpoint binds; port 0 takes a free one.
    advertise : str
        Host that nodes are told; empty for `host`.
    identity : Identity or None
        For TLS; None is refused outside loopback.
    node_timeout_s : float
        Longest wait for nodes to come up and to connect, in seconds.
    step_timeout_s : float
        Longest time of one exchange, in seconds.
    """

    transport: str = "auto"
    host: str = "127.0.0.1"
    port: int = 0
    advertise: str = ""
    identity: Identity | None = None
    node_timeout_s: float = 60.0
    step_timeout_s: float = 600.0


class PatchSplit(Strategy):
    """Trains a Lower model on the server with Upper models on the nodes.

    A Flower round is a number of training steps and, if asked for, a run through the test split. What Flower calls the
    global arrays are the Lower's weights; those of the Uppers stay on their nodes.

    Parameters
    ----------
    driver : RoundDriver
        The Lower's engine, the task and the checkpoints.
    task : NodeTask
        What nodes are told; its `uppers` are filled in for each node.
    wire : WireFormat
        Codecs, and the dtype that the Lower computes in.
    steps_per_round, total_steps : int
        Steps of a round, and of the whole run, which no round exceeds.
    options : TransportOptions
        How the parties reach each other.
    evaluate_every : int
        Rounds between runs through the test split; 0 for none but after the last step.
    on_placed, on_round : callable
        Called with the Placement before the first round, and with (round, RoundReport, bytes up, bytes down by Upper
        so far) after every round.
    """

    def __init__(
        self,
        driver: RoundDriver,
        task: NodeTask,
        *,
        wire: WireFormat,
        steps_per_round: int,
        total_steps: int,
        options: TransportOptions | None = None,
        evaluate_every: int = 1,
        on_placed: Callable[[Placement], None] = lambda placement: None,
        on_round: Callable[[int, RoundReport, Mapping[int, int], Mapping[int, int]], None] = lambda *_: None,
    ) -> None:
        self._driver, self._task, self._wire = driver, task, wire
        self._steps_per_round, self._total_steps = steps_per_round, total_steps
        self._options = options or TransportOptions()
        self._evaluate_every = evaluate_every
        self._on_placed, self._on_round = on_placed, on_round
        self._placement: Placement | None = None
        self._endpoint: ExchangeEndpoint | None = None
        self._exchange: StreamExchange | FlowerExchange | None = None
        self._round: _RoundThread | None = None
        self._asked: list[Message] = []
        self._report = RoundReport()

    @property
    def placement(self) -> Placement:
        """Which node hosts which Uppers; known from the first round on."""
        if self._placement is None:
            raise RunError("no round has been run, so the nodes are not known yet")
        return self._placement

    def summary(self) -> None:
        """Log what is trained."""
        log.info("PatchSplit: %s Uppers, %s steps in all", len(self._driver.lower.positions), self._total_steps)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Start a round.

        With the stream transport, return one message for each node, which opens its streams; the round runs in a
        thread meanwhile. With the flower transport, run the round here and return no message.

        Raises
        ------
        PslError
            If nodes or positions are missing, or the round fails.
        """
        if self._exchange is None:
            self._open(grid)
        done = self._driver.lower.step
        stop_step = min(done + self._steps_per_round, self._total_steps)
        last = stop_step == self._total_steps
        evaluate = last or (self._evaluate_every > 0 and server_round % self._evaluate_every == 0)
        if isinstance(self._exchange, FlowerExchange):
            self._report = self._driver.run(self._exchange, stop_step, evaluate=evaluate)
            return []
        tickets = self._tickets(done)
        self._round = _RoundThread(lambda: self._stream_round(stop_step, evaluate))
        self._round.start()
        self._asked = [
            Message(
                content({"task": encode(task_for(self._task, hosted)), "ticket": encode(tickets[node])}),
                node,
                f"{MessageType.TRAIN}.stream",
            )
            for node, hosted in self.placement.hosts.items()
        ]
        return self._asked

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Finish a round; return the Lower's weights and the round's means.

        Raises
        ------
        PslError
            If the round failed: the error that came first, be it the Lower's or a node's.
        """
        if self._round is not None:
            self._finish_stream_round(list(replies))
        steps = self._report.steps
        if self._exchange is not None:
            self._on_round(server_round, self._report, self._exchange.bytes_up(), self._exchange.bytes_down())
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
        """Return accuracy and loss of the test split, if this round ran through it."""
        predictions = self._report.predictions
        if predictions is None:
            return None
        return MetricRecord({"accuracy": predictions.accuracy, "loss": predictions.loss})

    def collect(self, grid: Grid) -> dict[int, dict[str, torch.Tensor]]:
        """Ask every node for its Upper models' weights, as only the owner of the model may; by Upper.

        Raises
        ------
        NodeError, PeerLost
            If a node fails or does not answer.
        PslError
            If no round was run, since all steps were done before, and nodes or positions are missing.
        """
        if self._placement is None:
            self._place(grid)
        step = self._driver.lower.step
        question = [
            Message(
                content({"task": encode(task_for(self._task, hosted)), "step": step}),
                node,
                f"{MessageType.QUERY}.collect",
            )
            for node, hosted in self.placement.hosts.items()
        ]
        weights: dict[int, dict[str, torch.Tensor]] = {}
        for node, reply in ask(grid, question, self._options.node_timeout_s, self.placement.names).items():
            for m in self.placement.hosts[node]:
                record = reply.content.array_records.get(f"upper-{m}")
                if record is None:
                    raise NodeError(f"{self.placement.names[node]}: did not return the weights of Upper {m}")
                weights[m] = dict(record.to_torch_state_dict())
        return weights

    def close(self) -> None:
        """End all streams; safe to call again."""
        if self._endpoint is not None:
            self._endpoint.close()

    def _place(self, grid: Grid) -> Placement:
        options = self._options
        placement = place(grid, self._driver.lower.assignment, options.transport, self._task, options.node_timeout_s)
        self._placement = placement
        self._on_placed(placement)
        return placement

    def _open(self, grid: Grid) -> None:
        options = self._options
        placement = self._place(grid)
        if placement.transport == "flower":
            self._exchange = FlowerExchange(grid, placement, self._task, self._wire, options.step_timeout_s)
            return
        self._endpoint = ExchangeEndpoint(
            options.host,
            options.port,
            run=self._task.run,
            tls=options.identity,
            advertise=options.advertise or None,
        )
        self._exchange = StreamExchange(self._endpoint, self._wire, options.step_timeout_s)

    def _tickets(self, step: int) -> dict[int, StreamTicket]:
        assert self._endpoint is not None
        tickets = {}
        for node, hosted in self.placement.hosts.items():
            claims = [self.placement.claims[m] for m in hosted]
            tokens = {
                c.upper: self._endpoint.issue_ticket(c.upper, node, c.positions, c.num_samples, c.dataset)
                for c in claims
            }
            tickets[node] = StreamTicket(
                host=self._endpoint.host,
                port=self._endpoint.port,
                cert_pem=self._endpoint.cert_pem,
                node=node,
                tokens=tokens,
                step=step,
            )
        return tickets

    def _stream_round(self, stop_step: int, evaluate: bool) -> RoundReport:
        assert self._endpoint is not None and isinstance(self._exchange, StreamExchange)
        try:
            self._endpoint.wait_for(self._driver.lower.positions, self._options.node_timeout_s)
            report = self._driver.run(self._exchange, stop_step, evaluate=evaluate)
            self._exchange.finish(self._driver.lower.positions)
        except BaseException as error:
            # All nodes must end their handlers, or Flower would wait for their replies.
            self._endpoint.abort(str(error) if isinstance(error, PslError) else type(error).__name__)
            raise
        return report

    def _finish_stream_round(self, replies: list[Message]) -> None:
        assert self._round is not None
        thread, self._round = self._round, None
        outcome = thread.result()
        # By the message answered, not by the sender: Flower's own error replies carry no sender.
        name_of = {asked.metadata.message_id: self.placement.names[asked.metadata.dst_node_id] for asked in self._asked}
        failures = [failure_of(reply, name_of.get(reply.metadata.reply_to_message_id, "a node")) for reply in replies]
        told = next((failure for failure in failures if failure is not None), None)
        if isinstance(outcome, RoundReport):
            if told is not None:
                raise told
            self._report = outcome
        elif isinstance(outcome, PeerLost) and told is not None:
            # The Lower only saw that a node did not come, or went; the node's own words say why.
            raise told from outcome
        else:
            raise outcome


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

    def result(self) -> RoundReport | BaseException:
        """Wait for the end and return the outcome."""
        self.join()
        assert self._result is not None
        return self._result
