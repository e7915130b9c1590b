"""The questions that a strategy asks nodes, as Flower messages (`psl_flower.wire.questions`)."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping

from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid

from psl_flower.errors import NodeError, NodeLost, PeerLost
from psl_flower.text import printable
from psl_flower.wire.messages import MAX_TEXT
from psl_flower.wire.questions import CONFIG_RECORD, AskInventory, Parcel, Question, Received, Tensors

# What a node reports because the Lower ended the exchange; the Lower knows the cause itself.
_CONSEQUENCES = ("PeerLost", "ProtocolError")
# Flower's codes for a node, or its process, that is gone; the others are errors that a second attempt would not mend.
_GONE = (
    ErrorCode.MESSAGE_UNAVAILABLE,
    ErrorCode.REPLY_MESSAGE_UNAVAILABLE,
    ErrorCode.NODE_UNAVAILABLE,
    ErrorCode.CLIENT_APP_CRASHED,
)
# Ray's name for the error of a node's process that ran out of memory.
_OUT_OF_MEMORY = "OutOfMemoryError"
# How often replies are looked for, in seconds. Flower's simulation would look every 0.1 s.
_PULL_INTERVAL_S = 0.005
_DEPLOYED_PULL_INTERVAL_S = 0.5
# The same while replies can hardly be there yet, since nodes work together with the Lower. As often as Flower does.
_WORKING_PULL_INTERVAL_S = 0.1
_DEPLOYED_WORKING_PULL_INTERVAL_S = 3.0
# Longest wait for a node's answer once there is nothing more for it to do. Flower takes up to about 65 s to report
# that a node, or its ClientApp, is gone, and its report is clearer.
ANSWER_TIMEOUT_S = 90.0
# A node silent for this long gets one more question; Flower reports a lost ClientApp sooner.
# If a ClientApp is killed just as it ends, its SuperNode (1.42) adds a second answer, and sends each answer with
# the next one only from then on.
REMIND_AFTER_S = 75.0

log = logging.getLogger("psl_flower")


def quiet_requests() -> None:
    """Let the client of Flower's requests log no line for each of them at INFO, unless its level was set already."""
    requests = logging.getLogger("httpx")
    if requests.level == logging.NOTSET:
        requests.setLevel(logging.WARNING)


def is_simulation(grid: Grid) -> bool:
    """Return True if the grid is that of Flower's simulation, which alone has a pull interval."""
    return hasattr(grid, "pull_interval")


def message(
    node: int,
    question: Question,
    parts: Mapping[int, bytes] | None = None,
    tensors: Mapping[str, Mapping[int, Tensors]] | None = None,
) -> Message:
    """Return the message that asks a node, by its id; parts and tensors as in `Parcel`."""
    parcel = Parcel(question, parts or {}, tensors or {})
    arrays = {name: ArrayRecord(state) for name, state in parcel.arrays().items()}
    return Message(RecordDict({CONFIG_RECORD: ConfigRecord({**parcel.values()}), **arrays}), node, question.kind)


def received(reply: Message, node: str) -> Received:
    """Return a reply's content, unread; `node` names the sender in errors."""
    return Received(reply.content if reply.has_content() else None, node)


def failure_of(reply: Message, node: str) -> NodeError | None:
    """Return the failure that a reply reports, Flower's or the node's own, NodeLost if it may pass; None if none."""
    if reply.has_error():
        reason = (reply.error.reason or "").strip().splitlines()
        lost = NodeLost if reply.error.code in _GONE else NodeError
        said = printable(reason[-1], MAX_TEXT) if reason else "no reason given"
        if any(_OUT_OF_MEMORY in line for line in reason):
            said = "out of memory, so Ray ended it; close other programs, or set a smaller batch size"
        return lost(f"{node}: {said} (Flower error {reply.error.code})")
    failed = received(reply, node).failure()
    if failed is None or failed.kind in _CONSEQUENCES:
        return None
    kind = printable(failed.kind, MAX_TEXT)
    return NodeError.reported(kind, f"{node}: {printable(failed.message, MAX_TEXT)} ({kind})")


def ask(
    grid: Grid,
    messages: Iterable[Message],
    timeout_s: float,
    names: Mapping[int, str],
    meanwhile: Callable[[], None] = lambda: None,
    *,
    leave_out_lost: bool = False,
    failed: dict[int, NodeError] | None = None,
    may_take_long: bool = False,
) -> dict[int, Received]:
    """Send one message to each of several nodes, do `meanwhile`, and return the answers by node id.

    With `leave_out_lost`, nodes that are gone or silent are not in the result, and are no error. With `failed`, the
    failures that nodes report of themselves go there. What `may_take_long` is not asked again of a silent node.

    Raises
    ------
    NodeError
        At the first other node that reports a failure.
    PeerLost
        If a node has not answered after `timeout_s` seconds; the message names it.
    """
    sent = list(messages)
    node_of = dict(zip(grid.push_messages(sent), (message.metadata.dst_node_id for message in sent), strict=True))
    meanwhile()
    answers: dict[int, Received] = {}
    lost: set[int] = set()
    pause_s = _PULL_INTERVAL_S if is_simulation(grid) else _DEPLOYED_PULL_INTERVAL_S
    deadline, reminder = time.monotonic() + timeout_s, None if may_take_long else _Reminder(grid, names)
    while len(answers) + len(lost) < len(node_of):
        # By the message answered, not by the sender: Flower's own error replies carry no sender.
        waited_for = [message for message, node in node_of.items() if node not in answers and node not in lost]
        for reply in grid.pull_messages(waited_for):
            node = node_of[reply.metadata.reply_to_message_id]
            name = names.get(node, f"node {node}")
            failure = failure_of(reply, name)
            if leave_out_lost and isinstance(failure, NodeLost):
                lost.add(node)
            elif failed is not None and failure is not None and not isinstance(failure, NodeLost):
                failed[node] = failure
                lost.add(node)
            elif failure is not None:
                if isinstance(failure, NodeLost):
                    failure.nodes = (node,)
                raise failure
            else:
                answers[node] = received(reply, name)
        if len(answers) + len(lost) < len(node_of):
            if time.monotonic() > deadline:
                if leave_out_lost:
                    return answers
                silent = tuple(node for node in node_of.values() if node not in answers and node not in lost)
                named = ", ".join(names.get(node, str(node)) for node in silent)
                lost_nodes = PeerLost(
                    f"no answer within {timeout_s:g} s from {named}, which may be at work on another run"
                )
                lost_nodes.nodes = silent
                raise lost_nodes
            if reminder is not None:
                reminder.remind(node for node in node_of.values() if node not in answers and node not in lost)
            time.sleep(pause_s)
    return answers


def tell(
    grid: Grid,
    messages: Iterable[Message],
    is_over: Callable[[float], bool],
    on_reply: Callable[[Message], None] = lambda reply: None,
) -> list[Message]:
    """Send messages that nodes answer once they have worked together with the Lower; return the replies.

    `is_over` waits for the end of the Lower's work, that many seconds at most, and returns whether it has ended.
    `on_reply` is called with each reply as it comes: one before the end may be a node's refusal. Replies that have not
    come `ANSWER_TIMEOUT_S` seconds after the end are missing.
    """
    # A message to a node that is not registered any more has no id, and no answer.
    sent = list(messages)
    node_of = dict(zip(grid.push_messages(sent), (message.metadata.dst_node_id for message in sent), strict=True))
    waiting = {message_id for message_id in node_of if message_id}
    replies: list[Message] = []

    def all_answered() -> bool:
        if waiting:
            for reply in grid.pull_messages(waiting.copy()):
                replies.append(reply)
                waiting.discard(reply.metadata.reply_to_message_id)
                on_reply(reply)
        return not waiting

    simulated = is_simulation(grid)
    while not is_over(_WORKING_PULL_INTERVAL_S if simulated else _DEPLOYED_WORKING_PULL_INTERVAL_S):
        all_answered()  # a node that is gone for a moment shows only in that moment
    deadline, reminder = time.monotonic() + ANSWER_TIMEOUT_S, _Reminder(grid)
    while not all_answered() and time.monotonic() < deadline:
        reminder.remind(node_of[message_id] for message_id in waiting)
        time.sleep(_PULL_INTERVAL_S if simulated else _DEPLOYED_PULL_INTERVAL_S)
    return replies


class _Reminder:
    """Sends overdue nodes one more question, without waiting for its answer. Does nothing in a simulation."""

    def __init__(self, grid: Grid, names: Mapping[int, str] | None = None) -> None:
        self._grid, self._names = grid, names or {}
        self._at = math.inf if is_simulation(grid) else time.monotonic() + REMIND_AFTER_S

    def remind(self, silent: Iterable[int]) -> None:
        """Do so, if it is time, and has not been done."""
        if time.monotonic() < self._at:
            return
        self._at, nodes = math.inf, list(silent)
        for node in nodes:
            name = self._names.get(node, f"node {node}")
            log.info(
                "%s has not answered for %g s; asking once more (is it at work on another run?)", name, REMIND_AFTER_S
            )
        self._grid.push_messages([message(node, AskInventory()) for node in nodes])
