"""The real ServerApp and ClientApps in one process: a Grid of threads in place of Flower's processes and network."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, Error, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

from clients.host import Host
from clients.upper_app import app as client_app
from psl_flower.config import RunConfig
from psl_flower.patches.store import store_folder
from server.app import app as server_app

_PAUSE_S = 0.005


def config_in(workspace: Path, settings: Mapping[str, Any]) -> RunConfig:
    """Return the configuration of a run with these settings, given as Python names, in a workspace."""
    given = {name.replace("_", "-"): value for name, value in settings.items()}
    return RunConfig.from_mapping(given | {"workspace": str(workspace)})


def engines_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nodes, which are processes otherwise, not draw initial weights from one generator at once."""
    lock, make = threading.Lock(), Host.party

    def alone(host: Host, m: int) -> Any:
        with lock:
            return make(host, m)

    monkeypatch.setattr(Host, "party", alone)


class InProcessGrid(Grid):
    """A real node for each Upper, numbered from 100, with the store of a set and a state of its own.

    Parameters
    ----------
    stores : Path
        Folder of the set.
    state : Path
        Under which each node gets a folder.
    num_nodes : int
        Nodes; Upper m is on node 100 + m.

    Attributes
    ----------
    config : dict
        The configuration of each node.
    gone, unreachable, silent : set of int
        Nodes that are no longer there, which Flower knows and does not list; that it still lists, but answers for as it
        does for a lost node; and that it lists and that never answer, as a node that is stopped.
    late : set of int
        Nodes that send each answer with the next one only, as Flower's SuperNode may for the rest of its life.
    on_message : callable
        Called with every message before its node gets it.
    allowed : dict
        What all nodes' own configurations allow besides.
    """

    def __init__(self, stores: Path, state: Path, num_nodes: int) -> None:
        self.state = {100 + m: state / f"node-{m}" for m in range(num_nodes)}
        self.config = {
            node: {"store": str(store_folder(stores, node - 100)), "state": str(folder)}
            for node, folder in self.state.items()
        }
        self.gone: set[int] = set()
        self.unreachable: set[int] = set()
        self.silent: set[int] = set()
        self.late: set[int] = set()
        self._held: dict[int, Message] = {}
        self.on_message: Callable[[Message], None] = lambda message: None
        self.allowed: dict[str, bool] = {"lighten": True}
        self.client_app = client_app
        self._replies: dict[str, Message] = {}
        self._threads: list[threading.Thread] = []

    def set_run(self, run: Any) -> None: ...

    @property
    def run(self) -> Any: ...

    def create_message(self, *_: Any, **__: Any) -> Message:
        raise AssertionError("no strategy of ours calls this")

    def get_node_ids(self) -> Iterable[int]:
        return [node for node in self.config if node not in self.gone]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        pushed = []
        for message in messages:
            message.metadata.__dict__["_message_id"] = str(uuid.uuid4())
            pushed.append(message.metadata.message_id)
            self.on_message(message)
            if message.metadata.dst_node_id in self.silent:
                continue
            if message.metadata.dst_node_id in self.gone | self.unreachable:
                error = Error(ErrorCode.NODE_UNAVAILABLE, "the node is gone")
                self._replies[pushed[-1]] = Message(error, reply_to=message)
                continue
            self._threads.append(threading.Thread(target=self._handle, args=(message,), daemon=True))
            self._threads[-1].start()
        return pushed

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return [self._replies.pop(name) for name in list(message_ids) if name in self._replies]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        waiting = set(self.push_messages(messages))
        replies: list[Message] = []
        while waiting:
            found = list(self.pull_messages(waiting))
            replies += found
            waiting -= {reply.metadata.reply_to_message_id for reply in found}
            time.sleep(_PAUSE_S)
        return replies

    def serve(self, **settings: Any) -> None:
        """Let the ServerApp do a run with these settings, given as Python names."""
        self.begin()
        given = {name.replace("_", "-"): value for name, value in settings.items()}
        server_app(self, Context(1, 1, {}, RecordDict(), given))
        self.join()

    def begin(self) -> None:
        """Be in a run, as Flower's executor says before it calls an app; messages carry it."""
        TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1

    def join(self) -> None:
        """Wait for all nodes."""
        for thread in self._threads:
            thread.join(timeout=20)
            assert not thread.is_alive(), "a node still waits for the Lower"

    def _handle(self, message: Message) -> None:
        node = message.metadata.dst_node_id
        config: dict[str, bool | float | int | str] = {**self.config[node], **self.allowed}
        reply = self.client_app(message, Context(1, node, config, RecordDict(), {}))
        sent = self._held.pop(node, None) if node in self.late else reply
        if node in self.late:
            self._held[node] = reply
        if sent is not None:
            self._replies[sent.metadata.reply_to_message_id] = sent
