"""Single messages to the nodes of a run, for what needs no streams."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Collection, Mapping
from typing import TypeVar

from flwr.serverapp import Grid

from psl_flower.config.wire import WireSettings
from psl_flower.errors import NodeLost, PeerLost
from psl_flower.flower.link import NodeLink
from psl_flower.flower.messages import ask, message
from psl_flower.flower.placement import Placement
from psl_flower.wire.node_messages import NodeTask
from psl_flower.wire.questions import Question, Received, Tensors

log = logging.getLogger("psl_flower")

Value = TypeVar("Value")

_MOST_ATTEMPTS = 3


class AskedNodes:
    """Asks the nodes of a run, or of a part of it, by single messages.

    If a node is lost, the question is repeated once all are connected; answers do not depend on how often it is asked.
    """

    def __init__(self, grid: Grid, task: NodeTask, assignment: tuple[int, ...], wire: WireSettings) -> None:
        self._grid, self._task, self._timeout_s = grid, task, wire.step_timeout_s
        # Single messages: nothing here needs all nodes at once.
        self._link = NodeLink(task, assignment, dataclasses.replace(wire, transport="flower"))

    def placement(self) -> Placement:
        """Return the placement of Uppers on nodes, finding the nodes first if necessary."""
        if not self._link.is_open:
            self._link.open_in_time(self._grid, {})
        return self._link.placement

    def ask(
        self,
        question: Callable[[NodeTask], Question],
        parts: Mapping[int, bytes] | None = None,
        tensors: Mapping[str, Mapping[int, Tensors]] | None = None,
        only: Callable[[], int] | None = None,
    ) -> dict[int, Received]:
        """Ask all nodes, or the one whose id `only` returns, each with its parts and tensors; return answers by Upper.

        Raises
        ------
        NodeError, PeerLost
            If a node cannot do it, or does not answer.
        """
        for attempt in range(1, _MOST_ATTEMPTS + 1):
            placement = self.placement()
            messages = []
            for node in placement.hosts if only is None else [only()]:  # a node that came back may have another id
                hosted = placement.hosts[node]
                own = {name: _of(hosted, states) for name, states in (tensors or {}).items()}
                messages.append(message(node, question(self._task.hosting(hosted)), _of(hosted, parts or {}), own))
            try:
                answers = ask(self._grid, messages, self._timeout_s, placement.names, may_take_long=True)
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
