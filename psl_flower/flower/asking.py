"""One question to each node that hosts Uppers of a run, by single messages."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import TypeVar

from flwr.serverapp import Grid

from psl_flower.flower.messages import ask, message
from psl_flower.flower.placement import Placement
from psl_flower.wire.node_messages import NodeTask
from psl_flower.wire.questions import Question, Received, Tensors

Value = TypeVar("Value")


def ask_hosts(
    grid: Grid,
    placement: Placement,
    task: NodeTask,
    question: Callable[[NodeTask], Question],
    timeout_s: float,
    *,
    parts: Mapping[int, bytes] | None = None,
    tensors: Mapping[str, Mapping[int, Tensors]] | None = None,
    only: int | None = None,
    may_take_long: bool = False,
) -> dict[int, Received]:
    """Ask all hosts of Uppers, or the node `only`, and return their answers by Upper.

    `question` is called with the task of each node, which names the Uppers that it hosts; their parts and tensors go
    with it. `timeout_s` and `may_take_long` are those of `psl_flower.flower.messages.ask`.

    Raises
    ------
    NodeError, PeerLost
        If a node fails or does not answer.
    """
    hosts = placement.hosts if only is None else {only: placement.hosts[only]}
    messages = []
    for node, hosted in hosts.items():
        own = {name: _of(hosted, states) for name, states in (tensors or {}).items()}
        messages.append(message(node, question(task.hosting(hosted)), _of(hosted, parts or {}), own))
    answers = ask(grid, messages, timeout_s, placement.names, may_take_long=may_take_long)
    return {m: answers[node] for node, hosted in hosts.items() for m in hosted}


def _of(hosted: Collection[int], values: Mapping[int, Value]) -> dict[int, Value]:
    return {m: value for m, value in values.items() if m in hosted}
