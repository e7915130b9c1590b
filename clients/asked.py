"""A question that an Upper node is asked, with what its handler needs (`psl_flower.wire.questions`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from flwr.app import Context
from flwr.clientapp import ClientApp

from clients.host import Build, Host
from psl_flower.flower import answering
from psl_flower.wire.questions import Parcel, Question, Received, TaskQuestion

Q = TypeVar("Q", bound=Question)
T = TypeVar("T", bound=TaskQuestion)


@dataclass(frozen=True, slots=True)
class Asked(Generic[Q]):
    """A question received."""

    question: Q
    received: Received  #: Its parts and tensors.
    context: Context
    build: Build  #: Makes the engine of one Upper.

    def host(self: Asked[T]) -> Host:
        """Return this node's view of the task."""
        return Host(self.context, self.question.task, self.build)


Handler = Callable[[Asked[Any]], Parcel]


def register(app: ClientApp, handlers: Mapping[type[Question], Handler], build: Build) -> None:
    """Let an app answer questions; see `psl_flower.flower.answering.register`."""
    answering.register(app, {kind: _with_build(handler, build) for kind, handler in handlers.items()})


def _with_build(handler: Handler, build: Build) -> answering.Handler:
    return lambda question, received, context: handler(Asked(question, received, context, build))
