"""The server's requests to the nodes of a lightening, except training: take weights and files, quantise, measure.

Patches and smashed data of training stay where they are; what comes here are models, and the smashed data of the few
images that the Lower's quantisation is calibrated on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from flwr.serverapp import Grid
from numpy.typing import NDArray

from psl_flower.errors import NodeError
from psl_flower.wire import questions
from psl_flower.wire.node_messages import Measured
from psl_flower.wire.plan import pack_samples
from psl_flower.wire.questions import Tensors
from strategies.asked_nodes import AskedNodes


class LightNodes(AskedNodes):
    """The nodes of one part of a lightening: a training, or a judgement; its task is that of this part."""

    def ready(self) -> None:
        """Check that every node can take part.

        Raises
        ------
        NodeError, PeerLost
            If a node cannot, or does not answer; also of the other methods.
        """
        self.ask(lambda task: questions.LightenReady(task=task))

    def place(self, weights: Mapping[int, Tensors], teacher: Mapping[int, Tensors]) -> None:
        """Put a training's initial weights in place, by Upper; `teacher` is empty without a teacher."""
        self.ask(lambda task: questions.LightenPlace(task=task), tensors={"upper": weights, "teacher": teacher})

    def quantise(
        self, models: Sequence[bytes], samples_B: NDArray[np.int64], bits: int
    ) -> tuple[list[bytes], list[torch.Tensor]]:
        """Return Uppers in int8, calibrated on the nodes' own patches of these samples, and their smashed data.

        `models` are ONNX in float32, by Upper, `samples_B` global sample indices (B,) int64; weights get 7 or 8 bits.
        """
        packed, parts = pack_samples(samples_B), dict(enumerate(models))
        answers = self.ask(lambda task: questions.LightenQuantise(task=task, samples=packed, bits=bits), parts)
        light = [answers[m].part(m) for m in range(len(models))]
        return light, [answers[m].tensors("smashed", m)["smashed"] for m in range(len(models))]

    def keep(self, files: Sequence[bytes]) -> None:
        """Put Uppers' files in place, by Upper."""
        self.ask(lambda task: questions.LightenKeep(task=task), dict(enumerate(files)))

    def measure(self, name: str, *, batch: int, threads: int) -> Measured:
        """Return the speed at which the named node runs the files in place there.

        `name` is Flower's id of the node, the name that it is registered by, or that of a simulated node; `batch` and
        `threads` are as `psl_flower.lightening.judging.measure_speed` and `open_session` take them.

        Raises
        ------
        NodeError
            If there is no such node.
        """
        answers = self.ask(
            lambda task: questions.LightenMeasure(task=task, batch=batch, threads=threads), only=lambda: self.find(name)
        )
        return next(iter(answers.values())).record(Measured)

    def find(self, name: str) -> int:
        """Return the id of the node of that name; raises NodeError if no host of Uppers has it."""
        placement = self.placement()
        known = {node: {str(node), placement.names[node], *_registered(self._grid, node)} for node in placement.hosts}
        found = [node for node, names in known.items() if {name, f"node {name}"} & names]
        if len(found) != 1:
            there = ", ".join(sorted(placement.names[node] for node in placement.hosts))
            raise NodeError(f"target: {'no' if not found else 'more than one'} node {name!r} (there: {there})")
        return found[0]


def _registered(grid: Grid, node: int) -> set[str]:
    """Return the name that a node is registered by, if Flower knows one."""
    return {info.name for info in grid.get_nodes() if info.node_id == node and info.name}
