"""Records of ours in Flower messages, and the questions that a strategy asks nodes.

A message's content is one ConfigRecord named "psl" whose values are bytes (`psl_flower.node_task`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid

from psl_flower.errors import NodeError, NodeLost, PeerLost
from psl_flower.node_task import Failure, Record, decode

RECORD = "psl"
# What a node reports because the Lower ended the exchange; the Lower knows the cause itself.
_CONSEQUENCES = ("PeerLost", "ProtocolError")
# Flower's codes for a node, or its process, that is gone; the others are errors that a second attempt would not mend.
_GONE = (
    ErrorCode.MESSAGE_UNAVAILABLE,
    ErrorCode.REPLY_MESSAGE_UNAVAILABLE,
    ErrorCode.NODE_UNAVAILABLE,
    ErrorCode.CLIENT_APP_CRASHED,
)
# How often replies are looked for, in seconds. Flower's simulation would look every 0.1 s.
_PULL_INTERVAL_S = 0.005
_DEPLOYED_PULL_INTERVAL_S = 0.5


def content(values: Mapping[str, bytes | int]) -> RecordDict:
    """Return a message's content."""
    return RecordDict({RECORD: ConfigRecord(dict(values))})


def values(message: Message) -> Mapping[str, object]:
    """Return what `content` put into a message; empty if it holds no such record."""
    record = message.content.config_records.get(RECORD) if message.has_content() else None
    return dict(record) if record is not None else {}


def failure_of(reply: Message, node: str) -> NodeError | None:
    """Return the failure that a reply reports, Flower's (NodeLost: gone) or the node's own; None if there is none."""
    if reply.has_error():
        reason = (reply.error.reason or "").strip().splitlines()
        kind = NodeLost if reply.error.code in _GONE else NodeError
        return kind(f"{node}: {reason[-1] if reason else 'no reason given'} (Flower error {reply.error.code})")
    failure = values(reply).get("failure")
    if failure is None:
        return None
    told = decode(failure, Failure, node)
    if told.kind in _CONSEQUENCES:
        return None
    return NodeError(f"{node}: {told.message} ({told.kind})")


def ask(
    grid: Grid,
    messages: Iterable[Message],
    timeout_s: float,
    names: Mapping[int, str],
    meanwhile: Callable[[], None] = lambda: None,
    *,
    silent_allowed: bool = False,
) -> dict[int, Message]:
    """Send one message to each of several nodes, do `meanwhile`, and return the replies by node id.

    With `silent_allowed`, nodes that are gone or do not answer in time are left out instead of an error.

    Raises
    ------
    NodeError
        At the first node that reports a failure.
    PeerLost
        If a node has not answered after `timeout_s` seconds; the message names it.
    """
    sent = list(messages)
    node_of = dict(zip(grid.push_messages(sent), (message.metadata.dst_node_id for message in sent), strict=True))
    meanwhile()
    replies: dict[int, Message] = {}
    gone: set[int] = set()
    pause_s = _PULL_INTERVAL_S if hasattr(grid, "pull_interval") else _DEPLOYED_PULL_INTERVAL_S
    deadline = time.monotonic() + timeout_s
    while len(replies) + len(gone) < len(node_of):
        # By the message answered, not by the sender: Flower's own error replies carry no sender.
        for reply in grid.pull_messages([m for m, node in node_of.items() if node not in replies and node not in gone]):
            node = node_of[reply.metadata.reply_to_message_id]
            failure = failure_of(reply, names.get(node, f"node {node}"))
            if silent_allowed and isinstance(failure, NodeLost):
                gone.add(node)
                continue
            if failure is not None:
                raise failure
            replies[node] = reply
        if len(replies) + len(gone) < len(node_of):
            if time.monotonic() > deadline:
                if silent_allowed:
                    return replies
                silent = ", ".join(names.get(node, str(node)) for node in node_of.values() if node not in replies)
                raise PeerLost(f"no answer within {timeout_s:g} s from {silent}")
            time.sleep(pause_s)
    return replies


def decoded(reply: Message, key: str, kind: type[Record], node: str) -> Record:
    """Return the record that a reply holds under a key.

    Raises
    ------
    FrameMismatch
        If it holds none, or it is malformed.
    """
    return decode(values(reply).get(key), kind, node)
