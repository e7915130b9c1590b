"""Records of ours in Flower messages, as a node reads and writes them; see `strategies.messages` for the other side."""

from __future__ import annotations

from collections.abc import Mapping

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict

from clients.host import Host
from psl_flower.errors import FrameMismatch
from psl_flower.wire.node_messages import NodeTask, decode

_RECORD = "psl"
LOWER = "the Lower"


def values(message: Message) -> dict[str, object]:
    """Return what a message carries; empty if it holds no such record."""
    record = message.content.config_records.get(_RECORD)
    return dict(record) if record is not None else {}


def content(given: Mapping[str, bytes], tensors: Mapping[str, ArrayRecord] | None = None) -> RecordDict:
    """Return the content of a reply."""
    return RecordDict({_RECORD: ConfigRecord(dict(given)), **(tensors or {})})


def host_of(message: Message, context: Context) -> Host:
    """Return the node's view of the task that a message carries; raises FrameMismatch if it carries none."""
    return Host(context, decode(values(message).get("task"), NodeTask, LOWER))


def number(value: object, what: str) -> int:
    """Return a value that must be a whole number; raises FrameMismatch if it is none."""
    if not isinstance(value, int):
        raise FrameMismatch(f"{LOWER}: expected {what}, received {type(value).__name__}")
    return value


def some_bytes(value: object, what: str) -> bytes:
    """Return a value that must be bytes; raises FrameMismatch if it is not."""
    if not isinstance(value, bytes):
        raise FrameMismatch(f"{LOWER}: expected {what}, received {type(value).__name__}")
    return value
