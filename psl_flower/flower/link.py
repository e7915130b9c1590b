"""The strategy's link to its nodes: who hosts what, the transport that is open, and the bytes that have passed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

import msgspec
import torch
from flwr.app import Message
from flwr.serverapp import Grid

from psl_flower.config.wire import WireSettings
from psl_flower.engine.exchange import Exchange, WireFormat
from psl_flower.engine.streams import StreamExchange
from psl_flower.errors import ConfigError, NodeError, NodeLost, PeerLost, PositionMissing, PslError, RunError
from psl_flower.flower.asking import ask_hosts
from psl_flower.flower.flower_exchange import FlowerExchange
from psl_flower.flower.messages import failure_of, message
from psl_flower.flower.node_names import last_holders
from psl_flower.flower.placement import Placement, holders_of, place
from psl_flower.flower.waiting import once_nodes_are_online
from psl_flower.wire.credentials import endpoint_identity
from psl_flower.wire.endpoint import ExchangeEndpoint
from psl_flower.wire.messages import ADAPTATION
from psl_flower.wire.node_messages import ADAPTATION_CLAIM, NodeTask, StreamTicket
from psl_flower.wire.questions import GiveWeights, OpenStreams
from psl_flower.wire.tls import TlsIdentity, is_loopback, is_wildcard

log = logging.getLogger("psl_flower")

Result = TypeVar("Result")


class NodeLink:
    """Finds the nodes, opens and closes the transport between the Lower and them, and names them.

    Parameters
    ----------
    task : NodeTask
        The task sent to nodes; `parties` is filled in for each.
    assignment : tuple[int, ...]
        assignment[p] is the Upper of position p.
    wire : WireSettings
        How the parties reach each other, and how long to wait for nodes; codecs are those of the task.
    dtype : torch.dtype
        In which the Lower computes.
    adaptation : bool
        Whether a node hosts the Adaptation Net.
    without : frozenset[int]
        Uppers to leave out, on any node.
    on_placed : callable
        Called with every new Placement.
    """

    def __init__(
        self,
        task: NodeTask,
        assignment: tuple[int, ...],
        wire: WireSettings,
        *,
        dtype: torch.dtype = torch.float32,
        adaptation: bool = False,
        without: frozenset[int] = frozenset(),
        on_placed: Callable[[Placement], None] = lambda placement: None,
    ) -> None:
        self._task, self._assignment, self._wire = task, assignment, wire
        self._format = WireFormat(activations=task.activations, gradients=task.gradients, dtype=dtype)
        self._adaptation, self._without = adaptation, without
        self._on_placed = on_placed
        self._placement: Placement | None = None
        # The node, by Flower's id, that last hosted each Upper or the Adaptation Net; and what to call it.
        self._held: dict[int, int] = {}
        self._holder_names: dict[int, str] = {}
        self._endpoint: ExchangeEndpoint | None = None
        self._exchange: StreamExchange | FlowerExchange | None = None
        self._asked: list[Message] = []
        # Bytes by party over exchanges that have been closed.
        self._up: dict[int, int] = {}
        self._down: dict[int, int] = {}

    @property
    def placement(self) -> Placement:
        """Which node hosts which Uppers; known once the link has been open.

        Raises
        ------
        RunError
            Before that.
        """
        if self._placement is None:
            raise RunError("no round has been run, so the nodes are not known yet")
        return self._placement

    @property
    def is_open(self) -> bool:
        """Whether there is an exchange."""
        return self._exchange is not None

    @property
    def flower_exchange(self) -> FlowerExchange | None:
        """The exchange over Flower messages, if that is the transport and it is open."""
        return self._exchange if isinstance(self._exchange, FlowerExchange) else None

    def place(self, grid: Grid, *, absent_allowed: bool = False, collecting: bool = False) -> Placement:
        """Ask the nodes what they hold and place every Upper; see `psl_flower.flower.placement.place`.

        A refused node that seems to be needed ends a run at its start only. Later all have been there, so the
        missing one is another, lost node.
        """
        wire = self._wire
        refused_ends = self._placement is None and not collecting and wire.on_missing_node != "continue"
        try:
            self._placement = place(
                grid, self._assignment, wire.transport, self._task, wire.node_timeout_s,
                without=self._without, absent_allowed=absent_allowed, refused_ends=refused_ends,
                adaptation=self._adaptation and not collecting, adaptation_node=wire.adaptation_node,
            )  # fmt: skip
        except (PeerLost, NodeLost, PositionMissing) as error:
            names = self._task.names
            known = last_holders(error, self._held, self._holder_names, self._assignment, names)
            if known:
                error.args = (f"{error}; {known}",)
            raise
        self._holder_names |= self._placement.names
        self._held |= {m: node for node, hosted in self._placement.parties.items() for m in hosted}
        if not collecting:  # training is over
            self._on_placed(self._placement)
        return self._placement

    def open_in_time(self, grid: Grid, saved: Mapping[int, int], lost: PslError | None = None) -> None:
        """Place the Uppers and open the transport once all nodes are online, or without the missing ones if allowed.

        `saved` has the step of the state that each party is to start from; the flower transport tells them so. `lost`
        is the cause, if nodes are looked for because one was lost.

        Raises
        ------
        PslError
            Why not all nodes could be had in time.
        """
        try:
            self._once_nodes_are_online(lambda: self._open(self.place(grid), grid, saved))
        except (PeerLost, NodeLost, PositionMissing) as error:
            if self._wire.on_missing_node != "continue":
                raise error from lost
            self._open(self.place(grid, absent_allowed=True), grid, saved)
            log.warning("%s; continuing without: %s", error, self.placement.absence(self._assignment))

    def place_in_time(self, grid: Grid) -> Placement:
        """Place all parties once their nodes are online, within `node_timeout_s`; errors as `open_in_time`."""
        return self._once_nodes_are_online(lambda: self.place(grid))

    def has_returned(self, grid: Grid) -> bool:
        """Return True if a node has come that holds an Upper which was absent when the link was opened."""
        absent = set(self.placement.absent) - self._without
        return bool(
            absent and absent & holders_of(grid, self.placement.parties, self._wire.node_timeout_s, self._task.epoch)
        )

    def keep(self, saved: Mapping[int, int]) -> None:
        """Let the parties keep the checkpoints of these steps, from their next message on."""
        self._task = msgspec.structs.replace(self._task, kept=dict(saved))
        if isinstance(self._exchange, FlowerExchange):
            self._exchange.keep(saved)

    def close(self) -> None:
        """Close the transport; the byte counts are kept. Safe to call again."""
        if self._exchange is not None:
            self._up, self._down = self.bytes_up(), self.bytes_down()
            self._exchange = None
        if self._endpoint is not None:
            self._endpoint.close()

    def bytes_up(self) -> dict[int, int]:
        """Return bytes of frames from each party so far."""
        return _sum(self._up, self._exchange.bytes_up() if self._exchange is not None else {})

    def bytes_down(self) -> dict[int, int]:
        """Return bytes of frames to each party so far."""
        return _sum(self._down, self._exchange.bytes_down() if self._exchange is not None else {})

    def stream_messages(self, step: int, saved: Mapping[int, int]) -> list[Message]:
        """Return the message for each node that makes it open its streams for a round.

        The Lower has applied `step` steps; `saved` has the step of the state that each party is to start from.
        """
        assert self._endpoint is not None
        identity = server_identity(self._wire)
        if identity is not None:
            self._endpoint.renew(identity)
        self._asked = [
            message(node, OpenStreams(task=self._task.hosting(hosted), ticket=self._ticket(node, hosted, step, saved)))
            for node, hosted in self.placement.parties.items()
        ]
        return self._asked

    def over_streams(self, work: Callable[[Exchange], Result]) -> Result:
        """Wait for all streams, do the work over them, and tell the nodes that it is over.

        Raises
        ------
        PeerLost
            If a node does not come in time.
        PslError
            Whatever the work raises.
        """
        assert self._endpoint is not None and isinstance(self._exchange, StreamExchange)
        parties = [m for hosted in self.placement.parties.values() for m in hosted]
        try:
            self._endpoint.wait_for(parties, self._wire.node_timeout_s)
            result = work(self._exchange)
            self._exchange.finish(self.placement.claims)  # the Adaptation Net's part was over before
        except BaseException as error:
            # All nodes must end their handlers: a node receives nothing else before it has answered.
            self._endpoint.abort(str(error) if isinstance(error, PslError) else type(error).__name__)
            raise
        return result

    def abort(self, reason: str) -> None:
        """End the exchange over streams, from any thread; connected nodes receive the reason."""
        assert self._endpoint is not None
        self._endpoint.abort(reason)

    def reported_failure(self, replies: Iterable[Message]) -> NodeError | None:
        """Return the first failure that nodes report in reply to the last `stream_messages`, if any."""
        names = self._names_asked()
        failures = [failure_of(reply, names.get(reply.metadata.reply_to_message_id, "a node")) for reply in replies]
        return next((failure for failure in failures if failure is not None), None)

    def unanswered(self, replies: Iterable[Message]) -> NodeLost | None:
        """Return an error that names the nodes without a reply to the last `stream_messages`; None if all replied."""
        names = self._names_asked()
        for reply in replies:
            names.pop(reply.metadata.reply_to_message_id, None)
        return NodeLost(f"no answer from {', '.join(names.values())}") if names else None

    def _names_asked(self) -> dict[str, str]:
        """Return the names of the nodes that were sent the last `stream_messages`, by message."""
        # By the message answered, not by the sender: Flower's own error replies carry no sender.
        return {asked.metadata.message_id: self.placement.names[asked.metadata.dst_node_id] for asked in self._asked}

    def collect(self, grid: Grid, saved: Mapping[int, int]) -> dict[int, dict[str, torch.Tensor]]:
        """Return the weights of all Upper models after `saved` steps, by Upper; for the owner of the model alone.

        Nodes that are lost are waited for, and asked again: what they saved after a step stays unchanged.

        Raises
        ------
        PositionMissing
            If no node holds some Upper, nor has within `node_timeout_s`.
        PeerLost, NodeError
            If a node fails, or is lost and does not come back in that time; one that is simulated never does.
        FrameMismatch
            If a node leaves an Upper out.
        """

        def question(task: NodeTask) -> GiveWeights:
            return GiveWeights(task=task, saved={m: saved[m] for m in task.parties})

        def collect_from(placement: Placement) -> dict[int, dict[str, torch.Tensor]]:
            answers = ask_hosts(grid, placement, self._task, question, self._wire.node_timeout_s)
            return {m: answer.tensors("upper", m) for m, answer in answers.items()}

        known = self._placement
        if known is not None and not known.absent:
            try:
                return collect_from(known)
            except (PeerLost, NodeLost) as error:
                if known.simulated:
                    raise
                log.warning("%s; asking again once all nodes are back", error)
        return self._once_nodes_are_online(lambda: collect_from(self.place(grid, collecting=True)))

    def _once_nodes_are_online(self, work: Callable[[], Result]) -> Result:
        return once_nodes_are_online(work, self._wire.node_timeout_s, simulated=lambda: self._is_simulated)

    @property
    def _is_simulated(self) -> bool:
        return self._placement is not None and self._placement.simulated

    def _open(self, placement: Placement, grid: Grid, saved: Mapping[int, int]) -> None:
        wire = self._wire
        if placement.transport == "flower":
            self._exchange = FlowerExchange(grid, placement, self._task, self._format, saved, wire.step_timeout_s)
            return
        self._endpoint = ExchangeEndpoint(
            wire.exchange_host,
            wire.exchange_port,
            run=self._task.run,
            tls=server_identity(wire),
            advertise=wire.exchange_advertise or None,
            allow_plaintext=wire.exchange_plaintext_on_untrusted_network,
            names=self._task.names,
        )
        self._exchange = StreamExchange(self._endpoint, self._format, wire.step_timeout_s)

    def _ticket(self, node: int, hosted: tuple[int, ...], step: int, saved: Mapping[int, int]) -> StreamTicket:
        assert self._endpoint is not None
        claims = [ADAPTATION_CLAIM if m == ADAPTATION else self.placement.claims[m] for m in hosted]
        tokens = {
            c.upper: self._endpoint.issue_ticket(c.upper, node, c.positions, c.num_samples, c.dataset) for c in claims
        }
        return StreamTicket(
            host=self._endpoint.host,
            port=self._endpoint.port,
            cert_pem=self._endpoint.cert_pem,
            node=node,
            tokens=tokens,
            step=step,
            saved={m: saved[m] for m in hosted},
        )


def server_identity(wire: WireSettings) -> TlsIdentity | None:
    """Return the exchange endpoint's TLS identity, read from its files now; None for plaintext.

    Raises
    ------
    ConfigError
        If one of the operator's files cannot be used, or there is no address to send to nodes.
    """
    advertised = wire.exchange_advertise or wire.exchange_host
    if is_wildcard(advertised):
        raise ConfigError(f"exchange-advertise: {advertised} is every address; set the one that nodes connect to")
    all_loopback = is_loopback(wire.exchange_host) and is_loopback(advertised)
    given = wire.exchange_cert or wire.exchange_key or wire.exchange_client_ca
    if wire.exchange_plaintext_on_untrusted_network or (all_loopback and not given):
        return None
    return endpoint_identity(
        advertised, cert=wire.exchange_cert, key=wire.exchange_key, client_ca=wire.exchange_client_ca
    )


def _sum(left: Mapping[int, int], right: Mapping[int, int]) -> dict[int, int]:
    return {m: left.get(m, 0) + right.get(m, 0) for m in sorted({*left, *right})}
