"""The ClientApp of a node in a training over parties with models and data of their own."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import msgspec
import torch
from flwr.app import Context
from flwr.clientapp import ClientApp

from psl_flower.engine.checkpoints import Checkpoints
from psl_flower.errors import ConfigError, FrameMismatch, PositionError
from psl_flower.flower.answering import LOWER, AnyParty, open_streams, register, take_step
from psl_flower.flower.node_config import is_simulated, own_setting, own_state, own_tls, simulation_slots
from psl_flower.flower.of_app import OfApp
from psl_flower.split.engines import SideEngine
from psl_flower.split.local import side_of
from psl_flower.split.sent import Sent
from psl_flower.split.side import PartySide, Reader
from psl_flower.system.machine import keep_freed_memory
from psl_flower.wire import questions
from psl_flower.wire.node_messages import Claim, Inventory, NodeTask, decode
from psl_flower.wire.questions import Parcel, Received

# Makes what a party brings, from its name and Flower's Context.
MakeParty = Callable[[str, Context], PartySide]


class SideSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What nodes build their side from, as `NodeTask.settings` carries it.

    Attributes
    ----------
    seed : int
        The run's.
    sent : tuple of Sent
        By party, what its model returns for one sample.
    """

    seed: int
    sent: tuple[Sent, ...]


def split_client(party: MakeParty) -> ClientApp:
    """Return the ClientApp of a node that is a party.

    A real node is the party that its own configuration names (`--node-config "party='NAME'"`); simulated ones are
    allotted the parties. Data and weights stay on the node: what leaves it are the outputs of the model.

    Parameters
    ----------
    party : callable
        Called with the party's name and Flower's Context; returns what the party brings. It is called anew for each
        round or message, under the seed of the party, so the weights that it draws are the same each time.
    """
    app, make = ClientApp(), OfApp(party)

    def stream(question: questions.OpenStreams, received: Received, context: Context) -> Parcel:
        return open_streams(SideHost(context, question.task, make), question)

    def step(question: questions.TakeStep, received: Received, context: Context) -> Parcel:
        return take_step(SideHost(context, question.task, make), question, received)

    def claims(question: questions.AskClaims, received: Received, context: Context) -> Parcel:
        host = SideHost(context, question.task, make)
        return Parcel(Inventory(claims=tuple(host.claim(m) for m in question.task.parties)))

    def inventory(question: questions.AskInventory, received: Received, context: Context) -> Parcel:
        return Parcel(_inventory(question.names, context, make))

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


def _inventory(names: tuple[str, ...], context: Context, party: MakeParty) -> Inventory:
    if is_simulated(context):
        partition, count = int(context.node_config["partition-id"]), int(context.node_config["num-partitions"])
        return Inventory(partition=partition, num_partitions=count, slots=simulation_slots())
    own_tls(context)  # what is wrong with certificates is said at the start of the run
    name = own_setting(context, "party")
    if not name:
        return Inventory()
    if name not in names:
        raise ConfigError(f"node-config party: {name!r} is none of this run's parties: {', '.join(names)}")
    # Its rows are counted and their ids compared; which seed the model is made under does not matter here.
    return Inventory(claims=(_claim(names.index(name), name, side_of(party, name, context, 0)),))


def _claim(m: int, name: str, side: PartySide) -> Claim:
    order = Reader(side, f"party {name!r}").order
    return Claim(upper=m, positions=(m,), num_samples=order.num_rows, dataset=order.fingerprint)


@dataclass(frozen=True, slots=True)
class SideHost:
    """A node's view of a task: implements `psl_flower.flower.answering.Hosting`.

    Parameters
    ----------
    context : Context
        Flower's.
    task : NodeTask
        From the server.
    make : callable
        Makes what a party brings.
    """

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
        simulated = is_simulated(self.context)
        root = Path(self.task.state) if simulated else own_state(self.context) / self.task.run
        return Checkpoints(root / self._name(m))

    def claim(self, m: int) -> Claim:
        """Return a party's claim."""
        with closing(self.party(m)) as engine:
            return engine.claim

    def party(self, m: int) -> SideEngine:
        """Return a party that this node hosts.

        Raises
        ------
        PositionError
            If a real node's own configuration names another one.
        PslError
            If something is wrong with its data or model.
        """
        name = self._name(m)
        if not is_simulated(self.context) and own_setting(self.context, "party") != name:
            raise PositionError(f"this node is not party {name!r}; its node-config names another one")
        settings = decode(self.task.settings, SideSettings, LOWER)
        if len(settings.sent) != len(self.task.names):
            raise FrameMismatch(
                f"{LOWER}: expected a shape for each of {len(self.task.names)} parties, received {len(settings.sent)}"
            )
        side = side_of(self.make, name, self.context, settings.seed)
        return SideEngine(m, name, settings.sent[m], side, self.checkpoints(m))

    def _name(self, m: int) -> str:
        if not 0 <= m < len(self.task.names):
            raise FrameMismatch(f"{LOWER}: expected one of {len(self.task.names)} parties, received number {m}")
        return self.task.names[m]

    def check_allowed(self, party: AnyParty) -> None:
        """Do nothing: what a party brings is its own, and no weights leave or enter."""
