"""The flower transport, as the Lower sees it: whole frames in Flower messages, one for each node and exchange."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from flwr.app import Message, MessageType
from flwr.serverapp import Grid

from psl_flower.engine.exchange import Down, Up, WireFormat, up_of
from psl_flower.errors import FrameMismatch
from psl_flower.node_task import NodeTask, encode
from psl_flower.wire.frames import decode_frame, frame_bytes, raise_ending
from psl_flower.wire.messages import Step
from strategies.messages import ask, content, values
from strategies.nodes import Placement, task_for


class FlowerExchange:
    """Implements `psl_flower.engine.exchange.Exchange` over Flower's Grid.

    Parameters
    ----------
    grid : Grid
        Flower's.
    placement : Placement
        Which node hosts which Uppers.
    task : NodeTask
        The run's; goes with every message, since a node's process may know nothing of the last one.
    wire : WireFormat
        Codecs and dtype.
    saved : mapping
        The step of the state that each Upper starts from; told with the first exchange only.
    timeout_s : float
        Longest time of one exchange, in seconds.
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
        self._grid, self._placement, self._wire, self._timeout_s = grid, placement, wire, timeout_s
        self._tasks = {node: encode(task_for(task, hosted)) for node, hosted in placement.hosts.items()}
        uppers = [m for hosted in placement.hosts.values() for m in hosted]
        self._saved = dict(saved)
        self._up, self._down = dict.fromkeys(uppers, 0), dict.fromkeys(uppers, 0)

    def exchange(
        self,
        down: Mapping[int, Down],
        shapes: Mapping[int, tuple[int, ...]] | None,
        meanwhile: Callable[[], None],
    ) -> dict[int, Up]:
        """Exchange frames with all nodes; see `Exchange.exchange`."""
        messages = []
        for node, hosted in self._placement.hosts.items():
            parts: dict[str, bytes | int] = {"task": self._tasks[node], "step": _steps_applied(down[hosted[0]].step)}
            for m in hosted:
                frame = frame_bytes(self._wire.down_frame(down[m]))
                self._down[m] += len(frame)
                parts[f"upper-{m}"] = frame
                if m in self._saved:
                    parts[f"saved-{m}"] = self._saved[m]
            messages.append(Message(content(parts), node, f"{MessageType.QUERY}.step"))
        replies = ask(self._grid, messages, self._timeout_s, self._placement.names, meanwhile)
        self._saved.clear()  # from now on they have states of their own between messages
        answers: dict[int, Up] = {}
        for node, hosted in self._placement.hosts.items():
            received = values(replies[node])
            for m in hosted:
                peer = f"Upper {m} on {self._placement.names[node]}"
                frame = received.get(f"upper-{m}")
                if not isinstance(frame, bytes):
                    raise FrameMismatch(f"{peer}: expected a frame, received none")
                wanted = self._wire.expect_up(down[m].step, shapes[m] if shapes else None)
                # A bytearray is decoded in place; bytes would be copied.
                answer = decode_frame(bytearray(frame), wanted, peer=peer)
                raise_ending(answer, peer)
                self._up[m] += len(frame)
                answers[m] = up_of(answer)
        return answers

    def bytes_up(self) -> dict[int, int]:
        """Return bytes of frames from each Upper so far."""
        return dict(self._up)

    def bytes_down(self) -> dict[int, int]:
        """Return bytes of frames to each Upper so far."""
        return dict(self._down)


def _steps_applied(step: Step) -> int:
    """Return the number of steps that an Upper must have applied when this step reaches it."""
    if step.gradient_of is not None:
        return step.gradient_of.step
    return step.plan.id.step if step.plan is not None else 0
