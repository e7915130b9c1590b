"""Asks the nodes for weights of their Upper models, and for answers to restorers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from flwr.serverapp import Grid

from psl_flower.flower.messages import ask, message
from psl_flower.flower.placement import Placement
from psl_flower.wire.node_messages import NodeTask
from psl_flower.wire.questions import GiveWeights, Question, Received, SealForRestorers


def collect_weights(
    grid: Grid, placement: Placement, task: NodeTask, saved: Mapping[int, int], timeout_s: float
) -> dict[int, dict[str, torch.Tensor]]:
    """Return the weights of all Upper models, by Upper, as only the owner of the model may ask for them.

    `saved` is the step of the state that is wanted of each Upper; `timeout_s` the longest wait for the answers, in
    seconds.

    Raises
    ------
    NodeError, PeerLost
        If a node fails or does not answer.
    FrameMismatch
        If it leaves an Upper out.
    """

    def question(hosted: tuple[int, ...]) -> Question:
        return GiveWeights(task=task.hosting(hosted), saved={m: saved[m] for m in hosted})

    answers = _answers(grid, placement, question, timeout_s)
    return {m: answer.tensors("upper", m) for m, answer in answers}


def collect_answers(
    grid: Grid, placement: Placement, task: NodeTask, request: bytes, timeout_s: float
) -> dict[int, bytes]:
    """Return all nodes' answers to an authorisation of restorers, by Upper; the server can read none of them.

    Parameters and errors are those of `collect_weights`, but for `request`: the signed authorisation, as
    `psl_flower.sealed.authorisation.authorise` wrote it. A node that refuses is a NodeError, in its own words.
    """

    def question(hosted: tuple[int, ...]) -> Question:
        return SealForRestorers(task=task.hosting(hosted), request=request)

    return {m: answer.part(m) for m, answer in _answers(grid, placement, question, timeout_s)}


def _answers(
    grid: Grid, placement: Placement, question: Callable[[tuple[int, ...]], Question], timeout_s: float
) -> Iterator[tuple[int, Received]]:
    """Ask all nodes what `question` says of the Uppers that they host; yield each Upper's answer."""
    messages = [message(node, question(hosted)) for node, hosted in placement.hosts.items()]
    for node, answer in ask(grid, messages, timeout_s, placement.names).items():
        for m in placement.hosts[node]:
            yield m, answer
