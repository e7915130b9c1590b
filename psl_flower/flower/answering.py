"""Reads and answers questions to a node (`psl_flower.wire.questions`), for any kind of parties."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing, suppress
from typing import Any, Protocol

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from psl_flower.engine.checkpoints import Checkpoints
from psl_flower.engine.exchange import WireFormat
from psl_flower.engine.party import Party
from psl_flower.engine.stateless import stateless
from psl_flower.engine.streams import serve
from psl_flower.errors import PslError
from psl_flower.flower.node_config import own_tls
from psl_flower.system.exposure import close_ray
from psl_flower.system.machine import forbid_core_dumps
from psl_flower.wire.frames import decode_frame, frame_bytes
from psl_flower.wire.messages import Failed, Hello
from psl_flower.wire.node_messages import NodeTask, StreamTicket
from psl_flower.wire.questions import CONFIG_RECORD, OpenStreams, Parcel, Question, Received, TakeStep
from psl_flower.wire.stream import UpperStream, connect

close_ray()  # Flower's simulation loads the ClientApp before it starts Ray

LOWER = "the Lower"

Handler = Callable[[Any, Received, Context], Parcel]


class Hosting(Protocol):
    """A node's view of a task."""

    @property
    def context(self) -> Context:
        """Flower's."""

    @property
    def task(self) -> NodeTask:
        """From the server."""

    def prepare_process(self) -> None:
        """Set how this process uses memory and threads."""

    def checkpoints(self, m: int) -> Checkpoints:
        """Return where a party's states are kept."""

    def party(self, m: int) -> Party:
        """Return a party that this node hosts."""

    def check_allowed(self, party: Party) -> None:
        """Raise ConfigError if this node's operator has not allowed what the run does with the party."""


def register(app: ClientApp, handlers: Mapping[type[Question], Handler]) -> None:
    """Let an app answer questions; an error that a user can meet is answered as a failure, without a traceback.

    A handler takes the question, the parts and tensors that came with it, and Flower's Context.
    """
    for kind, handler in handlers.items():
        _register(app, kind, handler)


def _register(app: ClientApp, kind: type[Question], handler: Handler) -> None:
    category, action = kind.kind.split(".")

    def answer(message: Message, context: Context) -> Message:
        forbid_core_dumps()  # a handler may open a store with the node's key
        received = Received(message.content, LOWER)
        try:
            parcel = handler(received.record(kind), received, context)
        except PslError as error:
            parcel = Parcel(Failed.of(error))
        arrays = {name: ArrayRecord(state) for name, state in parcel.arrays().items()}
        return Message(RecordDict({CONFIG_RECORD: ConfigRecord({**parcel.values()}), **arrays}), reply_to=message)

    (app.train if category == "train" else app.query)(action)(answer)


def open_streams(host: Hosting, question: OpenStreams) -> Parcel:
    """Open one stream for each party hosted here and serve them until the round is over."""
    ticket = question.ticket
    host.prepare_process()
    parties: dict[int, tuple[Party, UpperStream]] = {}
    with ExitStack() as opened:
        for m in host.task.parties:
            party = opened.enter_context(closing(host.party(m)))
            try:
                host.check_allowed(party)
                party.go_to(ticket.step, ticket.saved.get(m))
            except Exception as error:
                with suppress(PslError):  # the server may be gone already
                    _report(host, ticket, party, error)
                raise
            parties[m] = (party, opened.enter_context(_connect(host, ticket, party)))
        wire = _wire(host.task, next(iter(parties.values()))[0])
        serve(parties, wire, host.task.timeout_s)
    return Parcel()


def take_step(host: Hosting, question: TakeStep, received: Received) -> Parcel:
    """Do one step of every party hosted here, each from its state on disk."""
    host.prepare_process()
    answers: dict[int, bytes] = {}
    for m in host.task.parties:
        frame = received.part(m)
        with closing(host.party(m)) as engine:
            host.check_allowed(engine)
            party, wire = stateless(engine, host.checkpoints(m).folder / "live.pt"), _wire(host.task, engine)
            expected = party.expects(wire, question.step, question.saved.get(m))
            answers[m] = frame_bytes(party.reply(decode_frame(bytearray(frame), expected, peer=LOWER), wire))
    return Parcel(parts=answers)


def _connect(host: Hosting, ticket: StreamTicket, party: Party) -> UpperStream:
    claim = party.claim
    hello = Hello(
        run=host.task.run,
        node=ticket.node,
        upper=claim.upper,
        positions=claim.positions,
        num_samples=claim.num_samples,
        dataset=claim.dataset,
        token=ticket.tokens[claim.upper],
    )
    timeout_s, own = host.task.timeout_s, own_tls(host.context)
    return connect(ticket.host, ticket.port, hello, cafile_pem=ticket.cert_pem, timeout_s=timeout_s, own=own)


def _report(host: Hosting, ticket: StreamTicket, party: Party, error: Exception) -> None:
    """Tell the server at once why this party does not take part, so that it need not wait for it."""
    with _connect(host, ticket, party) as stream:
        stream.fail(Failed.of(error))


def _wire(task: NodeTask, party: Party) -> WireFormat:
    return WireFormat(activations=task.activations, gradients=task.gradients, dtype=party.dtype)
