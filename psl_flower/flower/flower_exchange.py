"""The flower transport, as the Lower sees it: whole frames in Flower messages, one for each node and exchange."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec
from flwr.serverapp import Grid

from psl_flower.engine.exchange import Exchange, WireFormat
from psl_flower.flower.messages import ask, message
from psl_flower.flower.placement import Placement
from psl_flower.wire.frames import Expectation, Frame, decode_frame, frame_bytes, raise_ending
from psl_flower.wire.messages import party_names
from psl_flower.wire.node_messages import NodeTask
from psl_flower.wire.questions import TakeStep


class FlowerExchange(Exchange):
    """Implements `psl_flower.engine.exchange.Exchange` over Flower's Grid.

    The task goes with every message, since a node's process may know nothing of the last one; `saved`, the step of the
    state that each party starts from, until the party has trained past it. One exchange takes at most `timeout_s`
    seconds.
    """

    def __init__(
        self,
        grid: Grid,
        placement: Placement,
        task: NodeTask,
        wire: WireFormat,
        saved: Mapping[int, int],
        timeout_s: float,
    ) -> None:
        super().__init__(wire, [m for hosted in placement.parties.values() for m in hosted])
        self._grid, self._placement, self._task, self._timeout_s = grid, placement, task, timeout_s
        self._saved = dict(saved)

    def carry(
        self, frames: Mapping[int, Frame], expected: Mapping[int, Expectation], meanwhile: Callable[[], None]
    ) -> dict[int, Frame]:
        """Exchange frames with the nodes that host these parties; see `Exchange.carry`."""
        hosts = {node: [m for m in hosted if m in frames] for node, hosted in self._placement.parties.items()}
        hosts = {node: hosted for node, hosted in hosts.items() if hosted}
        messages = []
        for node, hosted in hosts.items():
            sent = {m: frame_bytes(frames[m]) for m in hosted}
            question = TakeStep(
                task=self._task.hosting(hosted),
                step=frames[hosted[0]].message.steps_applied,
                saved={m: self._saved[m] for m in hosted if m in self._saved},
            )
            messages.append(message(node, question, sent))
            for m in hosted:
                self._down[m] += len(sent[m])
                if frames[m].message.changes_state:
                    self._saved.pop(m, None)  # from then on a party keeps its own state between messages
        replies = ask(self._grid, messages, self._timeout_s, self._placement.names, meanwhile)
        answers: dict[int, Frame] = {}
        for node, hosted in hosts.items():
            for m in hosted:
                who = party_names([m], self._task.names)
                reply, peer = replies[node].part(m), f"{who} on {self._placement.names[node]}"
                # A bytearray is decoded in place; bytes would be copied.
                answers[m] = decode_frame(bytearray(reply), expected[m], peer=peer)
                raise_ending(answers[m], peer)
                self._up[m] += len(reply)
        return answers

    def keep(self, saved: Mapping[int, int]) -> None:
        """Let the parties keep the checkpoints of these steps."""
        self._task = msgspec.structs.replace(self._task, kept=dict(saved))
