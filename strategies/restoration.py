"""Carries restorers' authorisation to all nodes and their answers back, none of which the server can read."""

from __future__ import annotations

from flwr.app import Message, MessageType
from flwr.serverapp import Grid

from psl_flower.errors import NodeError
from psl_flower.wire.node_messages import NodeTask, encode
from strategies.messages import ask, content, values
from strategies.nodes import Placement, task_for


def gather_answers(
    grid: Grid, placement: Placement, task: NodeTask, request: bytes, timeout_s: float
) -> dict[int, bytes]:
    """Return the answers of all nodes to an authorisation, by Upper.

    Parameters
    ----------
    grid : Grid
        Flower's.
    placement : Placement
        Which node hosts which Uppers.
    task : NodeTask
        The run's.
    request : bytes
        The signed authorisation, as `psl_flower.sealed.remote.authorise` wrote it.
    timeout_s : float
        Longest wait for the answers, in seconds.

    Raises
    ------
    NodeError
        If a node refuses, in its own words, or leaves a store out.
    PeerLost
        If a node does not answer.
    """
    question = [
        Message(
            content({"task": encode(task_for(task, hosted)), "request": request}), node, f"{MessageType.QUERY}.restore"
        )
        for node, hosted in placement.hosts.items()
    ]
    answers: dict[int, bytes] = {}
    for node, reply in ask(grid, question, timeout_s, placement.names).items():
        for m in placement.hosts[node]:
            answer = values(reply).get(f"upper-{m}")
            if not isinstance(answer, bytes):
                raise NodeError(f"{placement.names[node]}: did not answer for Upper {m}")
            answers[m] = answer
    return answers
