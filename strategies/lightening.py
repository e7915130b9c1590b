"""What the nodes of a lightening are asked besides training: to take weights and files, to quantise, to measure.

Patches and smashed data of training stay where they are; what comes here are models, and the smashed data of the few
images that the Lower's quantisation is calibrated on.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TypeVar

import numpy as np
import torch
from flwr.serverapp import Grid
from numpy.typing import NDArray

from psl_flower.config.wire import WireSettings
from psl_flower.errors import NodeError, NodeLost, PeerLost
from psl_flower.flower.link import NodeLink
from psl_flower.flower.messages import ask, message
from psl_flower.flower.nodes import Placement
from psl_flower.wire import questions
from psl_flower.wire.node_messages import Measured, NodeTask
from psl_flower.wire.plan import pack_samples
from psl_flower.wire.questions import Question, Received, Tensors

log = logging.getLogger("psl_flower")

Value = TypeVar("Value")

_MOST_ATTEMPTS = 3


class LightNodes:
    """The nodes of one part of a lightening: a training, or a judgement.

    Where a node is lost, the question is asked again when all are there; every answer to it is the same.

    Parameters
    ----------
    grid : Grid
        Flower's.
    task : NodeTask
        Of this part.
    assignment : tuple[int, ...]
        assignment[p] is the Upper of position p.
    wire : WireSettings
        How long to wait for nodes and answers.
    """

    def __init__(self, grid: Grid, task: NodeTask, assignment: tuple[int, ...], wire: WireSettings) -> None:
        self._grid, self._task, self._timeout_s = grid, task, wire.step_timeout_s
        # Single messages: nothing here needs all nodes at once.
        self._link = NodeLink(task, assignment, dataclasses.replace(wire, transport="flower"))

    def ready(self) -> None:
        """Check that every node can take part.

        Raises
        ------
        NodeError, PeerLost
            If a node cannot, or does not answer; also of the other methods.
        """
        self._ask(lambda task: questions.LightenReady(task=task))

    def place(self, weights: Mapping[int, Tensors], teacher: Mapping[int, Tensors]) -> None:
        """Put the weights in place that a training begins with, by Upper; `teacher` is empty if there is none."""
        self._ask(lambda task: questions.LightenPlace(task=task), tensors={"upper": weights, "teacher": teacher})

    def quantise(
        self, models: Sequence[bytes], samples_B: NDArray[np.int64], bits: int
    ) -> tuple[list[bytes], list[torch.Tensor]]:
        """Return Uppers in int8, calibrated on the nodes' own patches of these samples, and their smashed data.

        Parameters
        ----------
        models : sequence of bytes
            ONNX in float32, by Upper.
        samples_B : ndarray
            Global sample indices (B,) int64.
        bits : {7, 8}
            Of weights.
        """
        packed, parts = pack_samples(samples_B), dict(enumerate(models))
        answers = self._ask(lambda task: questions.LightenQuantise(task=task, samples=packed, bits=bits), parts)
        light = [answers[m].part(m) for m in range(len(models))]
        return light, [answers[m].tensors("smashed", m)["smashed"] for m in range(len(models))]

    def keep(self, files: Sequence[bytes]) -> None:
        """Put Uppers' files in place, by Upper."""
        self._ask(lambda task: questions.LightenKeep(task=task), dict(enumerate(files)))

    def measure(self, name: str, *, batch: int, threads: int) -> Measured:
        """Return the speed at which the named node runs the files in place there.

        Parameters
        ----------
        name : str
            Flower's id of the node, the name that it is registered by, or that of a simulated node.
        batch, threads : int
            As `psl_flower.lightening.judging.measure_speed` and `open_session` take them.

        Raises
        ------
        NodeError
            If there is no such node.
        """
        answers = self._ask(lambda task: questions.LightenMeasure(task=task, batch=batch, threads=threads), only=name)
        return next(iter(answers.values())).record(Measured)

    def find(self, name: str) -> int:
        """Return the id of the node of that name.

        Raises
        ------
        NodeError
            If there is none among those that host Uppers.
        """
        placement = self._placement()
        known = {node: {str(node), placement.names[node], *_registered(self._grid, node)} for node in placement.hosts}
        found = [node for node, names in known.items() if {name, f"node {name}"} & names]
        if len(found) != 1:
            there = ", ".join(sorted(placement.names[node] for node in placement.hosts))
            raise NodeError(f"target: {'no' if not found else 'more than one'} node {name!r} (there: {there})")
        return found[0]

    def _placement(self) -> Placement:
        if not self._link.is_open:
            self._link.open_in_time(self._grid, {})
        return self._link.placement

    def _ask(
        self,
        question: Callable[[NodeTask], Question],
        parts: Mapping[int, bytes] | None = None,
        tensors: Mapping[str, Mapping[int, Tensors]] | None = None,
        only: str = "",
    ) -> dict[int, Received]:
        """Ask all nodes, or only one, and return their answers by Upper; each is sent its own parts and tensors."""
        for attempt in range(1, _MOST_ATTEMPTS + 1):
            placement = self._placement()
            messages = []
            for node in [self.find(only)] if only else placement.hosts:
                hosted = placement.hosts[node]
                own = {name: _of(hosted, states) for name, states in (tensors or {}).items()}
                messages.append(message(node, question(self._task.hosting(hosted)), _of(hosted, parts or {}), own))
            try:
                answers = ask(self._grid, messages, self._timeout_s, placement.names)
            except (PeerLost, NodeLost) as error:
                if placement.simulated or attempt == _MOST_ATTEMPTS:
                    raise
                log.warning("%s; asking again once all nodes are back", error)
                self._link.close()
            else:
                return {m: answer for node, answer in answers.items() for m in placement.hosts[node]}
        raise AssertionError("the last attempt returns or raises")


def _of(hosted: Collection[int], values: Mapping[int, Value]) -> dict[int, Value]:
    return {m: value for m, value in values.items() if m in hosted}


def _registered(grid: Grid, node: int) -> set[str]:
    """Return the name that a node is registered by, where Flower knows one."""
    return {info.name for info in grid.get_nodes() if info.node_id == node and info.name}
