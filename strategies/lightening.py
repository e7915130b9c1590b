"""What the nodes of a lightening are asked besides training: to take weights and files, to quantise, to measure.

Patches and smashed data of training stay where they are; what comes here are models, and the smashed data of the few
images that the Lower's quantisation is calibrated on.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from flwr.app import ArrayRecord, Message, MessageType
from flwr.serverapp import Grid
from numpy.typing import NDArray

from psl_flower.engine.exchange import WireFormat
from psl_flower.errors import NodeError, NodeLost, PeerLost
from psl_flower.wire.node_messages import Measured, NodeTask, encode
from psl_flower.wire.plan import pack_samples
from strategies.link import NodeLink, TransportOptions
from strategies.messages import ask, content, decoded, values
from strategies.nodes import Placement, task_for

log = logging.getLogger("psl_flower")

Tensors = Mapping[str, torch.Tensor]
# Values and tensors that a question carries for one Upper.
Question = Callable[[int], tuple[dict[str, bytes], dict[str, Tensors]]]

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
    options : TransportOptions
        How long to wait for nodes and answers.
    """

    def __init__(self, grid: Grid, task: NodeTask, assignment: tuple[int, ...], options: TransportOptions) -> None:
        self._grid, self._task, self._timeout_s = grid, task, options.step_timeout_s
        # Single messages: nothing here needs all nodes at once.
        apart = TransportOptions(
            transport="flower", node_timeout_s=options.node_timeout_s, step_timeout_s=options.step_timeout_s
        )
        self._link = NodeLink(task, assignment, False, WireFormat(), apart)

    def ready(self) -> None:
        """Ask every node whether it can take part.

        Raises
        ------
        NodeError, PeerLost
            If a node cannot, or does not answer; also of the other methods.
        """
        self._ask("ready", {}, lambda m: ({}, {}))

    def place(self, weights: Mapping[int, Tensors], teacher: Mapping[int, Tensors]) -> None:
        """Put the weights in place that a training begins with, by Upper; `teacher` is empty if there is none."""

        def question(m: int) -> tuple[dict[str, bytes], dict[str, Tensors]]:
            return {}, {f"upper-{m}": weights[m]} | ({f"teacher-{m}": teacher[m]} if teacher else {})

        self._ask("place", {}, question)

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
        common: dict[str, bytes | int] = {"samples": pack_samples(samples_B), "bits": bits}
        placement, replies = self._ask("quantise", common, lambda m: ({f"upper-{m}": models[m]}, {}))
        light: dict[int, bytes] = {}
        smashed: dict[int, torch.Tensor] = {}
        for node, reply in replies.items():
            for m in placement.hosts[node]:
                made, record = values(reply).get(f"upper-{m}"), reply.content.array_records.get(f"smashed-{m}")
                if not isinstance(made, bytes) or record is None:
                    raise NodeError(f"{placement.names[node]}: did not return Upper {m} in int8")
                light[m], smashed[m] = made, record.to_torch_state_dict()["smashed"]
        return [light[m] for m in sorted(light)], [smashed[m] for m in sorted(smashed)]

    def keep(self, files: Sequence[bytes]) -> None:
        """Put Uppers' files in place, by Upper."""
        self._ask("keep", {}, lambda m: ({f"upper-{m}": files[m]}, {}))

    def measure(self, name: str, *, batch: int, threads: int) -> Measured:
        """Return how fast the named node runs the files that are in place there.

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
        common: dict[str, bytes | int] = {"batch": batch, "threads": threads}
        placement, replies = self._ask("measure", common, lambda m: ({}, {}), only=name)
        ((node, reply),) = replies.items()
        return decoded(reply, "measured", Measured, placement.names[node])

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
        self, action: str, common: Mapping[str, bytes | int], question: Question, only: str = ""
    ) -> tuple[Placement, dict[int, Message]]:
        """Ask all nodes, or only one, and return where Uppers are and the replies by node id."""
        for attempt in range(1, _MOST_ATTEMPTS + 1):
            placement = self._placement()
            nodes = [self.find(only)] if only else list(placement.hosts)
            messages = [self._message(node, placement, action, common, question) for node in nodes]
            try:
                return placement, ask(self._grid, messages, self._timeout_s, placement.names)
            except (PeerLost, NodeLost) as error:
                if placement.simulated or attempt == _MOST_ATTEMPTS:
                    raise
                log.warning("%s; asking again when all nodes are there", error)
                self._link.close()
        raise AssertionError("the last attempt returns or raises")

    def _message(
        self, node: int, placement: Placement, action: str, common: Mapping[str, bytes | int], question: Question
    ) -> Message:
        hosted = placement.hosts[node]
        carried = content({"task": encode(task_for(self._task, hosted)), **common})
        for m in hosted:
            given, tensors = question(m)
            carried.config_records["psl"].update(given)
            for name, weights in tensors.items():
                carried.array_records[name] = ArrayRecord({key: value.cpu() for key, value in weights.items()})
        return Message(carried, node, f"{MessageType.QUERY}.lighten_{action}")


def _registered(grid: Grid, node: int) -> set[str]:
    """Return the name that a node is registered by, where Flower knows one."""
    return {info.name for info in grid.get_nodes() if info.node_id == node and info.name}
