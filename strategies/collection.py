"""Asks the nodes for the weights of their Upper models, as only the owner of the model may."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from flwr.app import Message, MessageType
from flwr.serverapp import Grid

from psl_flower.errors import NodeError
from psl_flower.wire.node_messages import NodeTask, encode
from strategies.messages import ask, content
from strategies.nodes import Placement, task_for


def gather_weights(
    grid: Grid, placement: Placement, task: NodeTask, saved: Mapping[int, int], timeout_s: float
) -> dict[int, dict[str, torch.Tensor]]:
    """Return the weights of all Upper models, by Upper.

    Parameters
    ----------
    grid : Grid
        Flower's.
    placement : Placement
        Which node hosts which Uppers.
    task : NodeTask
        The run's.
    saved : mapping
        The step of the state that is wanted of each Upper.
    timeout_s : float
        Longest wait for the answers, in seconds.

    Raises
    ------
    NodeError, PeerLost
        If a node fails or does not answer.
    """
    question = [
        Message(
            content({"task": encode(task_for(task, hosted)), **{f"saved-{m}": saved[m] for m in hosted}}),
            node,
            f"{MessageType.QUERY}.collect",
        )
        for node, hosted in placement.hosts.items()
    ]
    weights: dict[int, dict[str, torch.Tensor]] = {}
    for node, reply in ask(grid, question, timeout_s, placement.names).items():
        for m in placement.hosts[node]:
            record = reply.content.array_records.get(f"upper-{m}")
            if record is None:
                raise NodeError(f"{placement.names[node]}: did not return the weights of Upper {m}")
            weights[m] = dict(record.to_torch_state_dict())
    return weights
