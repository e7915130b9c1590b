"""The Upper node's ClientApp: says what it holds, trains over streams or single messages, gives its model if asked.

A node with the role of the Adaptation Net's server runs the same app, and hosts that net in place of Uppers.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, closing, suppress
from functools import partial

from flwr.app import ArrayRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from clients import lightening
from clients.host import (
    Build,
    Host,
    build_engine,
    check_averaging_allowed,
    claim_of,
    claim_of_party,
    is_simulated,
    own_stores,
    own_tls,
    serves_adaptation,
    simulation_slots,
)
from clients.messages import LOWER, content, host_of, number, some_bytes, values
from psl_flower.engine.adaptation import AdaptationNode
from psl_flower.engine.exchange import WireFormat
from psl_flower.engine.stateless import forgetful
from psl_flower.engine.streams import serve
from psl_flower.engine.upper import UpperEngine
from psl_flower.errors import FrameMismatch, PslError
from psl_flower.sealed.audit import AuditLog
from psl_flower.sealed.remote import answer
from psl_flower.system.machine import forbid_core_dumps
from psl_flower.wire.frames import decode_frame, frame_bytes
from psl_flower.wire.messages import Failed, Hello, party_names
from psl_flower.wire.node_messages import Claim, Inventory, NodeTask, StreamTicket, decode, encode
from psl_flower.wire.stream import UpperStream, connect

_STEPS = "a number of steps"

Handler = Callable[[Message, Context], RecordDict]


def upper_app(build: Build = build_engine) -> ClientApp:
    """Return the ClientApp of an Upper node.

    Parameters
    ----------
    build : callable
        Makes the engine of one Upper; the default makes those of this app, another one serves models of your own.
    """
    app = ClientApp()

    @app.query("inventory")
    def inventory(message: Message, context: Context) -> Message:
        return _answer(message, context, _inventory)

    @app.query("claim")
    def claim(message: Message, context: Context) -> Message:
        return _answer(message, context, _claim)

    @app.train("stream")
    def stream(message: Message, context: Context) -> Message:
        return _answer(message, context, partial(_stream, build=build))

    @app.query("step")
    def step(message: Message, context: Context) -> Message:
        return _answer(message, context, partial(_step, build=build))

    @app.query("collect")
    def collect(message: Message, context: Context) -> Message:
        return _answer(message, context, partial(_collect, build=build))

    @app.query("restore")
    def restore(message: Message, context: Context) -> Message:
        return _answer(message, context, _restore)

    @app.query("lighten_ready")
    def lighten_ready(message: Message, context: Context) -> Message:
        return _answer(message, context, lightening.ready)

    @app.query("lighten_place")
    def lighten_place(message: Message, context: Context) -> Message:
        return _answer(message, context, lightening.place)

    @app.query("lighten_quantise")
    def lighten_quantise(message: Message, context: Context) -> Message:
        return _answer(message, context, lightening.quantise)

    @app.query("lighten_keep")
    def lighten_keep(message: Message, context: Context) -> Message:
        return _answer(message, context, lightening.keep)

    @app.query("lighten_measure")
    def lighten_measure(message: Message, context: Context) -> Message:
        return _answer(message, context, lightening.measure)

    return app


def _inventory(message: Message, context: Context) -> RecordDict:
    if is_simulated(context):
        partition, count = int(context.node_config["partition-id"]), int(context.node_config["num-partitions"])
        return content(
            {"inventory": encode(Inventory(partition=partition, num_partitions=count, slots=simulation_slots()))}
        )
    own_tls(context)  # what is wrong with certificates is said at the start of the run
    if serves_adaptation(context):
        return content({"inventory": encode(Inventory(adaptation=True))})
    claims = []
    for store in own_stores(context):
        claims.append(claim_of(store))
        store.close()
    return content({"inventory": encode(Inventory(claims=tuple(claims)))})


def _claim(message: Message, context: Context) -> RecordDict:
    host = host_of(message, context)
    claims: list[Claim] = []
    for m in host.task.parties:
        store = host.open_store(m)
        claims.append(claim_of(store))
        store.close()
    return content({"inventory": encode(Inventory(claims=tuple(claims)))})


def _stream(message: Message, context: Context, build: Build) -> RecordDict:
    """Open one stream for each party hosted here and serve them until the round is over."""
    host = host_of(message, context)
    ticket = decode(values(message).get("ticket"), StreamTicket, LOWER)
    host.prepare_process()
    parties: dict[int, tuple[UpperEngine | AdaptationNode, UpperStream]] = {}
    with ExitStack() as opened:
        for m in host.task.parties:
            party = opened.enter_context(closing(host.engine(m, build)))
            try:
                check_averaging_allowed(context, party)
                party.go_to(ticket.step, ticket.saved.get(m))
            except Exception as error:
                with suppress(PslError):  # the Lower may be gone already
                    _report(host, ticket, party, error)
                raise
            parties[m] = (party, opened.enter_context(_connect(host, ticket, party)))
        wire = _wire(host.task, next(iter(parties.values()))[0])
        serve(parties, wire, host.task.timeout_s)
    return content({})


def _step(message: Message, context: Context, build: Build) -> RecordDict:
    """Do one step of every party hosted here, each from its state on disk."""
    host = host_of(message, context)
    host.prepare_process()
    received = values(message)
    step = number(received.get("step"), _STEPS)
    answers: dict[str, bytes] = {}
    for m in host.task.parties:
        frame = received.get(f"party-{m}")
        if not isinstance(frame, bytes):
            raise FrameMismatch(f"{LOWER}: expected a frame for {party_names([m])}, received none")
        with closing(host.engine(m, build)) as engine:
            check_averaging_allowed(context, engine)
            party, wire = forgetful(engine, host.checkpoints(m).folder / "live.pt"), _wire(host.task, engine)
            saved = number(received.get(f"saved-{m}"), _STEPS) if f"saved-{m}" in received else None
            down = decode_frame(bytearray(frame), party.expects(wire, step, saved), peer=LOWER)
            answers[f"party-{m}"] = frame_bytes(party.reply(down, wire))
    return content(answers)


def _collect(message: Message, context: Context, build: Build) -> RecordDict:
    host = host_of(message, context)
    received = values(message)
    records: dict[str, ArrayRecord] = {}
    for m in host.task.parties:
        with closing(host.engine(m, build)) as engine:
            if not isinstance(engine, UpperEngine):
                raise FrameMismatch(f"{LOWER}: expected to be asked for an Upper: the Adaptation Net is not collected")
            engine.go_to(number(received.get(f"saved-{m}"), _STEPS))
            weights = engine.model.state_dict()
        records[f"upper-{m}"] = ArrayRecord({name: value.cpu() for name, value in weights.items()})
    return RecordDict({**records})


def _restore(message: Message, context: Context) -> RecordDict:
    """Answer an authorisation of restorers: log it, then seal the patches asked for to its recipients."""
    request = some_bytes(values(message).get("request"), "an authorisation")
    answers: dict[str, bytes] = {}
    for opened, log in host_of(message, context).sealed_stores():
        with closing(opened.store) as store:
            answers[f"upper-{store.meta.upper}"] = answer(request, opened.signed, store, opened.node, AuditLog(log))
    return content(answers)


def _connect(host: Host, ticket: StreamTicket, party: UpperEngine | AdaptationNode) -> UpperStream:
    claim = claim_of_party(party)
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


def _report(host: Host, ticket: StreamTicket, party: UpperEngine | AdaptationNode, error: Exception) -> None:
    """Tell the Lower at once why this party does not take part, so that it need not wait for it."""
    with _connect(host, ticket, party) as stream:
        stream.fail(Failed.of(error))


def _answer(message: Message, context: Context, handler: Handler) -> Message:
    """Let a handler make the reply; a failure that a user can meet becomes part of it, without a traceback."""
    forbid_core_dumps()  # every handler opens stores with the node's key
    try:
        reply = handler(message, context)
    except PslError as error:
        reply = content({"failure": encode(Failed.of(error))})
    return Message(reply, reply_to=message)


def _wire(task: NodeTask, party: UpperEngine | AdaptationNode) -> WireFormat:
    return WireFormat(activations=task.activations, gradients=task.gradients, dtype=party.dtype)


app = upper_app()
