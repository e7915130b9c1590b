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
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from psl_flower.engine.exchange import WireFormat
from psl_flower.engine.rounds import RoundDriver, RoundReport
from psl_flower.engine.streams import StreamExchange
from psl_flower.errors import NodeError, NodeLost, PeerLost, PositionMissing, PslError, RunError
from psl_flower.node_task import NodeTask, StreamTicket, encode
from psl_flower.wire.endpoint import ExchangeEndpoint
from psl_flower.wire.tls import Identity
from strategies.flower_exchange import FlowerExchange
from strategies.messages import ask, content, failure_of
from strategies.nodes import Placement, place, task_for

log = logging.getLogger("psl_flower")

# So often may nodes be lost without a step committed in between; and how long to wait before they are looked for again.
_MOST_ATTEMPTS = 5
_RETRY_S = 2.0


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
    without : frozenset[int]
        Uppers to do without; a run that only evaluates can.
    absent_allowed : bool
        Whether such a run goes on without Uppers that have not come up, or back, within `node_timeout_s`.
    """

    transport: str = "auto"
    host: str = "127.0.0.1"
    port: int = 0
    advertise: str = ""
    identity: Identity | None = None
    node_timeout_s: float = 60.0
    step_timeout_s: float = 600.0
    without: frozenset[int] = frozenset()
    absent_allowed: bool = False


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
        self._grid: Grid | None = None
        self._goal = (0, False)  # of the current round: the step at which it stops, and whether it evaluates
        self._recovered_at, self._attempts = -1, 0
        self._lost: NodeLost | None = None  # a node that went when its round was over
        # Bytes by Upper over exchanges that a recovery has closed.
        self._up: dict[int, int] = {}
        self._down: dict[int, int] = {}

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
        self._grid = grid
        if self._exchange is None:
            self._open_in_time(grid, self._lost)
        stop_step = min(self._driver.lower.step + self._steps_per_round, self._total_steps)
        last = stop_step == self._total_steps
        evaluate = last or (self._evaluate_every > 0 and server_round % self._evaluate_every == 0)
        self._goal = (stop_step, evaluate)
        if isinstance(self._exchange, FlowerExchange):
            self._report = self._flower_round()
            return []
        return self._start_stream_round()

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Finish a round; return the Lower's weights and the round's means.

        Raises
        ------
        PslError
            If the round failed: the error that came first, be it the Lower's or a node's.
        """
        while self._round is not None:
            try:
                self._finish_stream_round(list(replies))
            except (PeerLost, NodeLost) as error:
                assert self._grid is not None
                self._recover(self._grid, error)
                # No deadline of Flower's: a round ends by those of its exchanges.
                replies = self._grid.send_and_receive(self._start_stream_round())
        steps = self._report.steps
        if self._exchange is not None:
            up, down = self._exchange.bytes_up(), self._exchange.bytes_down()
            self._on_round(
                server_round,
                self._report,
                {m: count + self._up.get(m, 0) for m, count in up.items()},
                {m: count + self._down.get(m, 0) for m, count in down.items()},
            )
        if self._lost is not None:
            self._close_exchange()
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

    def _place(self, grid: Grid, *, absent_allowed: bool = False) -> Placement:
        options = self._options
        placement = place(
            grid, self._driver.lower.assignment, options.transport, self._task, options.node_timeout_s,
            without=options.without, absent_allowed=absent_allowed,
        )  # fmt: skip
        self._placement = placement
        self._on_placed(placement)
        return placement

    def _open(self, grid: Grid, *, absent_allowed: bool = False) -> None:
        options = self._options
        placement = self._place(grid, absent_allowed=absent_allowed)
        if not placement.simulated:
            self._driver.commit_start()
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

    def _start_stream_round(self) -> list[Message]:
        """Start the thread that runs the round, and return the message for each node that opens its streams."""
        stop_step, evaluate = self._goal
        tickets = self._tickets(self._driver.lower.step)
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

    def _flower_round(self) -> RoundReport:
        """Run the round over Flower messages, again from the last checkpoint where a node was lost."""
        stop_step, evaluate = self._goal
        while True:
            assert self._exchange is not None and self._grid is not None
            try:
                return self._driver.run(self._exchange, stop_step, evaluate=evaluate, absent=self.placement.absent)
            except (PeerLost, NodeLost) as error:
                self._recover(self._grid, error)

    def _recover(self, grid: Grid, error: PeerLost | NodeLost) -> None:
        """Go back to the last committed step and wait for all nodes; then the round can be started again.

        Raises
        ------
        PslError
            The error itself, in a simulation, whose actors do not come back, or when no step has been committed since
            the last attempts; or why the nodes did not come back in time.
        """
        if self.placement.simulated:
            raise error
        step = self._driver.go_back()
        self._attempts = self._attempts + 1 if step == self._recovered_at else 1
        self._recovered_at = step
        if self._attempts > _MOST_ATTEMPTS:
            raise error
        log.warning(
            "%s; all go back to step %d, the last that all have saved, and wait up to %g s for the nodes",
            error, step, self._options.node_timeout_s,
        )  # fmt: skip
        self._close_exchange()
        self._open_in_time(grid, error)

    def _open_in_time(self, grid: Grid, lost: PslError | None) -> None:
        """Place the Uppers and open the exchange as soon as all nodes are there; raise why they are not in the end."""
        deadline = time.monotonic() + self._options.node_timeout_s
        said = ""
        while True:
            try:
                self._open(grid)
                self._lost = None
                return
            except (PeerLost, NodeLost, PositionMissing) as error:
                if time.monotonic() >= deadline:
                    if not self._options.absent_allowed:
                        raise error from lost
                    self._open(grid, absent_allowed=True)
                    return
                if str(error) != said:
                    said = str(error)
                    log.warning("%s; waiting for it", said)
                time.sleep(_RETRY_S)

    def _close_exchange(self) -> None:
        """Part from all nodes; what they sent and received still counts."""
        if self._exchange is not None:
            for before, now in ((self._up, self._exchange.bytes_up()), (self._down, self._exchange.bytes_down())):
                before.update({m: before.get(m, 0) + count for m, count in now.items()})
            self._exchange = None
        self.close()

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
            self._endpoint.wait_for(self.placement.uppers, self._options.node_timeout_s)
            report = self._driver.run(self._exchange, stop_step, evaluate=evaluate, absent=self.placement.absent)
            self._exchange.finish(self.placement.uppers)
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
            if isinstance(told, NodeLost) and not self.placement.simulated:
                log.warning("%s, after the round was over", told)
                self._lost = told
            elif told is not None:
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
