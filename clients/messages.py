"""Questions as a node reads them and answers them (`psl_flower.wire.questions`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from clients.host import Build, Host
from psl_flower.errors import PslError
from psl_flower.system.machine import forbid_core_dumps
from psl_flower.wire.messages import Failed
from psl_flower.wire.questions import CONFIG_RECORD, Parcel, Question, Received, TaskQuestion

LOWER = "the Lower"

Q = TypeVar("Q", bound=Question)
T = TypeVar("T", bound=TaskQuestion)


@dataclass(frozen=True, slots=True)
class Asked(Generic[Q]):
    """A question that has come.

    Attributes
    ----------
    question : Question
        The question.
    received : Received
        The parts and tensors that came with it.
    context : Context
        Flower's.
    build : callable
        Makes the engine of one Upper.
    """

    question: Q
    received: Received
    context: Context
    build: Build

    def host(self: Asked[T]) -> Host:
        """Return this node's view of the task."""
        return Host(self.context, self.question.task)


Handler = Callable[[Asked[Any]], Parcel]


def register(app: ClientApp, handlers: Mapping[type[Question], Handler], build: Build) -> None:
    """Let an app answer questions; an error that a user can meet is answered as a failure, without a traceback."""
    for kind, handler in handlers.items():
        _register(app, kind, handler, build)


def _register(app: ClientApp, kind: type[Question], handler: Handler, build: Build) -> None:
    category, action = kind.kind.split(".")

    def answer(message: Message, context: Context) -> Message:
        forbid_core_dumps()  # every handler opens stores with the node's key
        received = Received(message.content, LOWER)
        try:
            parcel = handler(Asked(received.record(kind), received, context, build))
        except PslError as error:
            parcel = Parcel(Failed.of(error))
        arrays = {name: ArrayRecord(state) for name, state in parcel.arrays().items()}
        return Message(RecordDict({CONFIG_RECORD: ConfigRecord({**parcel.values()}), **arrays}), reply_to=message)

    (app.train if category == "train" else app.query)(action)(answer)
