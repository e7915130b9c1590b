"""The Upper node's ClientApp: reports its stores, trains over streams or single messages, sends its model on request.

A node with the role of the Adaptation Net's server runs the same app, and hosts that net in place of Uppers.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack, closing, suppress

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
from clients.messages import LOWER, Asked, Handler, register
from psl_flower.engine.adaptation import AdaptationNode
from psl_flower.engine.exchange import WireFormat
from psl_flower.engine.stateless import stateless
from psl_flower.engine.streams import serve
from psl_flower.engine.upper import UpperEngine
from psl_flower.errors import FrameMismatch, PslError
from psl_flower.patches.store import PatchStore
from psl_flower.sealed.audit import AuditLog
from psl_flower.sealed.authorisation import answer
from psl_flower.wire import questions
from psl_flower.wire.frames import decode_frame, frame_bytes
from psl_flower.wire.messages import Failed, Hello
from psl_flower.wire.node_messages import Inventory, NodeTask, StreamTicket
from psl_flower.wire.questions import Parcel, Question, Tensors
from psl_flower.wire.stream import UpperStream, connect


def upper_app(build: Build = build_engine) -> ClientApp:
    """Return the ClientApp of an Upper node.

    Parameters
    ----------
    build : callable
        Makes the engine of one Upper; the default makes those of this app, another one serves models of your own.
    """
    app = ClientApp()
    register(app, {**_HANDLERS, **lightening.HANDLERS}, build)
    return app


def _inventory(asked: Asked[questions.AskInventory]) -> Parcel:
    context = asked.context
    if is_simulated(context):
        partition, count = int(context.node_config["partition-id"]), int(context.node_config["num-partitions"])
        return Parcel(Inventory(partition=partition, num_partitions=count, slots=simulation_slots()))
    own_tls(context)  # what is wrong with certificates is said at the start of the run
    if serves_adaptation(context):
        return Parcel(Inventory(adaptation=True))
    return Parcel(_inventory_of(own_stores(context)))


def _claim(asked: Asked[questions.AskClaims]) -> Parcel:
    host = asked.host()
    return Parcel(_inventory_of(host.open_store(m) for m in host.task.parties))


def _inventory_of(stores: Iterable[PatchStore]) -> Inventory:
    claims = []
    for store in stores:
        with closing(store):
            claims.append(claim_of(store))
    return Inventory(claims=tuple(claims))


def _stream(asked: Asked[questions.OpenStreams]) -> Parcel:
    """Open one stream for each party hosted here and serve them until the round is over."""
    host, ticket = asked.host(), asked.question.ticket
    host.prepare_process()
    parties: dict[int, tuple[UpperEngine | AdaptationNode, UpperStream]] = {}
    with ExitStack() as opened:
        for m in host.task.parties:
            party = opened.enter_context(closing(host.engine(m, asked.build)))
            try:
                check_averaging_allowed(asked.context, party)
                party.go_to(ticket.step, ticket.saved.get(m))
            except Exception as error:
                with suppress(PslError):  # the Lower may be gone already
                    _report(host, ticket, party, error)
                raise
            parties[m] = (party, opened.enter_context(_connect(host, ticket, party)))
        wire = _wire(host.task, next(iter(parties.values()))[0])
        serve(parties, wire, host.task.timeout_s)
    return Parcel()


def _step(asked: Asked[questions.TakeStep]) -> Parcel:
    """Do one step of every party hosted here, each from its state on disk."""
    host, question = asked.host(), asked.question
    host.prepare_process()
    answers: dict[int, bytes] = {}
    for m in host.task.parties:
        frame = asked.received.part(m)
        with closing(host.engine(m, asked.build)) as engine:
            check_averaging_allowed(asked.context, engine)
            party, wire = stateless(engine, host.checkpoints(m).folder / "live.pt"), _wire(host.task, engine)
            expected = party.expects(wire, question.step, question.saved.get(m))
            answers[m] = frame_bytes(party.reply(decode_frame(bytearray(frame), expected, peer=LOWER), wire))
    return Parcel(parts=answers)


def _collect(asked: Asked[questions.GiveWeights]) -> Parcel:
    host = asked.host()
    weights: dict[int, Tensors] = {}
    for m in host.task.parties:
        with closing(host.engine(m, asked.build)) as engine:
            if not isinstance(engine, UpperEngine):
                raise FrameMismatch(f"{LOWER}: expected to be asked for an Upper: the Adaptation Net is not collected")
            if m not in asked.question.saved:
                raise FrameMismatch(f"{LOWER}: expected the step of Upper {m}, received none")
            engine.go_to(asked.question.saved[m])
            weights[m] = engine.model.state_dict()
    return Parcel(tensors={"upper": weights})


def _restore(asked: Asked[questions.SealForRestorers]) -> Parcel:
    """Answer an authorisation of restorers: log it, then seal the patches asked for to its recipients."""
    answers: dict[int, bytes] = {}
    for opened, log in asked.host().sealed_stores():
        with closing(opened.store) as store:
            request = asked.question.request
            sealed = answer(request, opened.signed, store, opened.node, AuditLog(log), seen=opened.seen)
            answers[store.meta.upper] = sealed
    return Parcel(parts=answers)


_HANDLERS: dict[type[Question], Handler] = {
    questions.AskInventory: _inventory,
    questions.AskClaims: _claim,
    questions.OpenStreams: _stream,
    questions.TakeStep: _step,
    questions.GiveWeights: _collect,
    questions.SealForRestorers: _restore,
}


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


def _wire(task: NodeTask, party: UpperEngine | AdaptationNode) -> WireFormat:
    return WireFormat(activations=task.activations, gradients=task.gradients, dtype=party.dtype)


app = upper_app()
