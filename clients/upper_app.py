"""The Upper node's ClientApp: reports its stores, trains over streams or single messages, sends its model on request.

A node with the role of the Adaptation Net's server runs the same app, and hosts that net in place of Uppers.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import closing

from flwr.clientapp import ClientApp

from clients import auditing, lightening
from clients.asked import Asked, Handler, register
from clients.host import Build, build_engine, own_stores, serves_adaptation
from psl_flower.engine.upper import claim_of
from psl_flower.flower.answering import open_streams, take_step
from psl_flower.flower.node_config import is_simulated, own_tls, simulated_inventory
from psl_flower.patches.store import PatchStore
from psl_flower.sealed.audit import AuditLog
from psl_flower.sealed.authorisation import answer
from psl_flower.wire import questions
from psl_flower.wire.node_messages import Inventory
from psl_flower.wire.questions import Parcel, Question, Tensors


def upper_app(build: Build = build_engine) -> ClientApp:
    """Return the ClientApp of an Upper node.

    Parameters
    ----------
    build : callable
        Makes the engine of one Upper; by default of this app's models. Pass another to serve your own models.
    """
    app = ClientApp()
    register(app, {**_HANDLERS, **lightening.HANDLERS}, build)
    return app


def _inventory(asked: Asked[questions.AskInventory]) -> Parcel:
    context = asked.context
    if is_simulated(context):
        return Parcel(simulated_inventory(context))
    own_tls(context)  # errors in certificates show at the start of the run
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
    return open_streams(asked.host(), asked.question)


def _step(asked: Asked[questions.TakeStep]) -> Parcel:
    return take_step(asked.host(), asked.question, asked.received)


def _collect(asked: Asked[questions.GiveWeights]) -> Parcel:
    host = asked.host()
    host.check_collecting()
    weights: dict[int, Tensors] = {}
    for m in host.task.parties:
        with host.upper_after(m, asked.question.saved) as engine:
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


def _place(asked: Asked[questions.PlaceUppers]) -> Parcel:
    """Keep the file of weights that the Uppers here begin with, if this node's operator allows it."""
    host = asked.host()
    for m in host.task.parties:
        host.keep_weights(m, asked.received.part(m))
    return Parcel()


_HANDLERS: dict[type[Question], Handler] = {
    questions.AskInventory: _inventory,
    questions.AskClaims: _claim,
    questions.OpenStreams: _stream,
    questions.TakeStep: _step,
    questions.GiveWeights: _collect,
    questions.SealForRestorers: _restore,
    questions.PlaceUppers: _place,
    questions.SmashImages: auditing.smash,
}


app = upper_app()
