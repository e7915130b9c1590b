"""Single messages to the nodes of a run, for what needs no streams; asked again where a node is lost."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping

from flwr.serverapp import Grid

from psl_flower.config.wire import WireSettings
from psl_flower.errors import NodeLost, PeerLost
from psl_flower.flower.asking import ask_hosts
from psl_flower.flower.link import NodeLink
from psl_flower.flower.placement import Placement
from psl_flower.wire.node_messages import NodeTask
from psl_flower.wire.questions import Question, Received, Tensors

log = logging.getLogger("psl_flower")

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
            node = None if only is None else only()  # a node that came back may have another id
            try:
                return ask_hosts(
                    self._grid, placement, self._task, question, self._timeout_s,
                    parts=parts, tensors=tensors, only=node, may_take_long=True,
                )  # fmt: skip
            except (PeerLost, NodeLost) as error:
                if placement.simulated or attempt == _MOST_ATTEMPTS:
                    raise
                log.warning("%s; asking again once all nodes are back", error)
                self._link.close()
        raise AssertionError("the last attempt returns or raises")
