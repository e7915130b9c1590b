"""The last answer of a ClientApp whose process was killed, given to its SuperNode at once.

Flower notices it only after a minute, by missing heartbeats, and its server hears nothing before. So a node's program
for ClientApps writes down which message it works on, and is followed by another program if a signal ends it, as when
the machine's memory is full. That one answers the message with the error that Flower would give.
"""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path
from typing import Any

from flwr.app import Context, Message, RecordDict
from flwr.app.error import Error
from flwr.app.message import remove_content_from_message
from flwr.common.constant import ErrorCode, SubStatus
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Message as ProtoMessage

# Where a program of psl-supernode finds the name of the file for the message that it works on.
NOTE = "PSL_NODE_MESSAGE"
_REASON = "ClientApp was killed, by the system where memory is short, or by somebody."


def note(message: Message | None) -> None:
    """Write down which message this process works on, without what it says, or that it has answered it (None)."""
    content = message_to_proto(remove_content_from_message(message)).SerializeToString() if message else b""
    Path(os.environ[NOTE]).write_bytes(content)


def answer_in_its_place(
    runtime_api_address: str, token: str, insecure: bool, certificates: bytes | None = None, **_: object
) -> None:
    """Answer the message that was written down with an error, in place of a process that was killed before it could.

    Parameters
    ----------
    runtime_api_address, token, insecure, certificates
        The SuperNode's API and the process's right to it, as Flower's `run_clientapp` takes them.

    Raises
    ------
    OSError, httpx.HTTPError
        If nothing was written down, or the SuperNode is gone as well.
    """
    run_clientapp: Any = import_module("flwr.supernode.runtime.run_clientapp")
    client = run_clientapp.RuntimeHttpClient.from_server_address(
        server_address=runtime_api_address,
        insecure=insecure,
        root_certificates=certificates,
        interceptors=[
            run_clientapp.RuntimeVersionHttpInterceptor(component_name="flwr-clientapp"),
            run_clientapp.RuntimeTokenHttpInterceptor(token),
        ],
    )
    if noted := Path(os.environ[NOTE]).read_bytes():
        message = message_from_proto(ProtoMessage.FromString(noted))
        metadata = message.metadata
        context = Context(metadata.run_id, metadata.dst_node_id, {}, RecordDict(), {})
        reply = Message(Error(ErrorCode.CLIENT_APP_CRASHED, _REASON), reply_to=message)
        run_clientapp.push_message(client, reply, context)
    # Flower waits for this process's heartbeats otherwise, and then answers a second time.
    run_clientapp.push_task_output(client, None, SubStatus.FAILED, _REASON)
    client.close()
