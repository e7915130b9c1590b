"""The last answer of a ClientApp that ends before it has answered, given to its SuperNode at once.

Flower notices a killed one only after a minute without heartbeats, and the server receives nothing before; Flower does
not notice at all if one is asked to end, as when its parent process is gone. So a node's ClientApp program writes down
the message it works on, and answers it with Flower's own error when it ends. If it is killed, as when memory is
full, another program answers in its place.
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

from psl_flower.errors import RunError
from psl_flower.system.files import write_file

# Where a program of psl-supernode finds the name of the file for the message that it works on.
NOTE = "PSL_NODE_MESSAGE"
_REASON = "ClientApp was killed or ended before it had answered, by the system where memory is short, or by somebody."


def note(message: Message | None) -> None:
    """Record which message this process is handling, without its content, or None once it has answered.

    Raises
    ------
    RunError
        If the disk refuses.
    """
    content = message_to_proto(remove_content_from_message(message)).SerializeToString() if message else b""
    write_file(Path(os.environ[NOTE]), content, RunError, mode=0o600, durable=False)


def answer_unanswered(client: object) -> None:
    """Answer the message that was written down, if it was not answered, with an error.

    `client` is Flower's RuntimeHttpClient, of the process whose message it is.

    Raises
    ------
    OSError, httpx.HTTPError
        If nothing was written down, or the SuperNode is gone as well.
    """
    if not (noted := Path(os.environ[NOTE]).read_bytes()):
        return
    message = message_from_proto(ProtoMessage.FromString(noted))
    metadata = message.metadata
    context = Context(metadata.run_id, metadata.dst_node_id, {}, RecordDict(), {})
    reply = Message(Error(ErrorCode.CLIENT_APP_CRASHED, _REASON), reply_to=message)
    _flower().push_message(client, reply, context)


def answer_in_its_place(
    runtime_api_address: str, token: str, insecure: bool, certificates: bytes | None = None, **_: object
) -> None:
    """Do so in place of a process that was killed, and say that it has ended.

    The arguments are the SuperNode's API and the process's right to it, as Flower's `run_clientapp` takes them. Raises
    what `answer_unanswered` does.
    """
    flower = _flower()
    client = flower.RuntimeHttpClient.from_server_address(
        server_address=runtime_api_address,
        insecure=insecure,
        root_certificates=certificates,
        interceptors=[
            flower.RuntimeVersionHttpInterceptor(component_name="flwr-clientapp"),
            flower.RuntimeTokenHttpInterceptor(token),
        ],
    )
    answer_unanswered(client)
    # Flower waits for this process's heartbeats otherwise, and then answers a second time.
    flower.push_task_output(client, None, SubStatus.FAILED, _REASON)
    client.close()


def _flower() -> Any:
    return import_module("flwr.supernode.runtime.run_clientapp")  # whose package has a function of this name
