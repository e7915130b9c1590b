"""The ClientApp of a node in a training over parties with their own models and data."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass

import torch
from flwr.app import Context
from flwr.clientapp import ClientApp

from psl_flower.engine.checkpoints import Checkpoints
from psl_flower.engine.party import Party
from psl_flower.errors import ConfigError, FrameMismatch, PositionError
from psl_flower.flower.answering import LOWER, open_streams, register, take_step
from psl_flower.flower.app_function import AppFunction
from psl_flower.flower.messages import quiet_requests
from psl_flower.flower.node_config import is_simulated, own_text, own_tls, simulated_inventory, state_root
from psl_flower.split.engines import SideEngine
from psl_flower.split.labels import LabelEngine
from psl_flower.split.roster import Given, Roster, SideSettings, claim_at, engine_at
from psl_flower.system.machine import keep_freed_memory
from psl_flower.wire import questions
from psl_flower.wire.node_messages import Claim, Inventory, NodeTask, decode
from psl_flower.wire.questions import Parcel, Received

# Makes what a party brings, from its name and Flower's Context.
MakeParty = Callable[[str, Context], Given]


def split_client(party: MakeParty) -> ClientApp:
    """Return the ClientApp of a node that is a party.

    A real node is the party that its own configuration names (`--node-config "party='NAME'"`); simulated ones are
    allotted the parties. Data, labels and weights stay on the node: what leaves it are the outputs of the model.

    Parameters
    ----------
    party : callable
        Called with the party's name and Flower's Context; returns what the party brings: a `PartySide`, a `LabelSide`
        if it has the labels, or both as a tuple. It is called again for each round or message, under the seed of the
        party, so the weights that it draws are the same each time.
    """
    quiet_requests()
    app, make = ClientApp(), AppFunction(party)

    def stream(question: questions.OpenStreams, received: Received, context: Context) -> Parcel:
        return open_streams(SideHost(context, question.task, make), question)

    def step(question: questions.TakeStep, received: Received, context: Context) -> Parcel:
        return take_step(SideHost(context, question.task, make), question, received)

    def claims(question: questions.AskClaims, received: Received, context: Context) -> Parcel:
        host = SideHost(context, question.task, make)
        return Parcel(Inventory(claims=tuple(host.claim(m) for m in question.task.parties)))

    def inventory(question: questions.AskInventory, received: Received, context: Context) -> Parcel:
        return Parcel(_inventory(Roster(question.names, question.labels), context, make))

    register(
        app,
        {
            questions.AskInventory: inventory,
            questions.AskClaims: claims,
            questions.OpenStreams: stream,
            questions.TakeStep: step,
        },
    )
    return app


def _inventory(roster: Roster, context: Context, party: MakeParty) -> Inventory:
    if is_simulated(context):
        return simulated_inventory(context)
    own_tls(context)  # errors in certificates show at the start of the run
    name = own_text(context, "party")
    if not name:
        return Inventory()
    if name not in roster.names:
        known = ", ".join(dict.fromkeys(roster.names))
        raise ConfigError(f"node-config party: {name!r} is none of this run's parties: {known}")
    # Its rows are counted and their ids compared; which seed the model is made under does not matter here.
    brings = roster.brought(party, name, context, 0)
    return Inventory(claims=tuple(claim_at(m, roster, brings) for m in roster.numbers(name)))


@dataclass(frozen=True, slots=True)
class SideHost:
    """A node's view of a task, with the parties that `make` makes: implements `psl_flower.flower.answering.Hosting`."""

    context: Context
    task: NodeTask
    make: MakeParty

    def prepare_process(self) -> None:
        """Set how this process uses memory, and its threads."""
        keep_freed_memory()
        if self.task.threads:
            torch.set_num_threads(self.task.threads)

    def checkpoints(self, m: int) -> Checkpoints:
        """Return where a party's states are kept: a real node chooses that itself (node-config "state")."""
        return self._roster(m).checkpoints(state_root(self.context, self.task), m)

    def claim(self, m: int) -> Claim:
        """Return a party's claim."""
        with closing(self.party(m)) as engine:
            return engine.claim

    def party(self, m: int) -> SideEngine | LabelEngine:
        """Return a party that this node hosts.

        Raises
        ------
        PositionError
            If a real node's own configuration names another one.
        PslError
            If something is wrong with its data or model.
        """
        roster = self._roster(m)
        name = roster.names[m]
        if not is_simulated(self.context) and own_text(self.context, "party") != name:
            raise PositionError(f"this node is not party {name!r}; its node-config names another one")
        settings = decode(self.task.settings, SideSettings, LOWER)
        sending = len(roster.names) - bool(roster.labels)
        if len(settings.sent) != sending:
            raise FrameMismatch(
                f"{LOWER}: expected a shape for each of {sending} parties, received {len(settings.sent)}"
            )
        brings = roster.brought(self.make, name, self.context, settings.seed)
        return engine_at(m, roster, brings, settings, self.checkpoints(m))

    def _roster(self, m: int) -> Roster:
        """Return the run's parties, of which one has the number m."""
        if not 0 <= m < len(self.task.names):
            raise FrameMismatch(f"{LOWER}: expected one of {len(self.task.names)} parties, received number {m}")
        return Roster(self.task.names, self.task.labels)

    def check_allowed(self, party: Party) -> None:
        """Do nothing: what a party brings is its own, and no weights leave or enter."""
