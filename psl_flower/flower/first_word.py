"""Early heartbeats from a ClientApp's process to its SuperNode, sent before it loads Flower.

Flower gives a process 30 s for its first heartbeat, and otherwise starts another one, without limit. On an overloaded
host, loading Flower alone takes longer. So this module sends heartbeats before most imports, and repeats them until
Flower sends its own.
"""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Sequence
from itertools import pairwise

# Each is good for a minute.
_EVERY_S, _TIMES = 20.0, 15
_PATH, _KIND = "/v1/runtime/send-task-heartbeat", "application/protobuf"


def speak(arguments: Sequence[str]) -> threading.Thread | None:
    """Start a thread that sends heartbeats to a SuperNode; return it, None if none are needed.

    `arguments` are those with which Flower starts its ClientApp program. Over TLS none are sent, since loading TLS
    takes time as well; `psl-supernode` by itself uses plain HTTP within the host.
    """
    given = dict(pairwise(arguments))
    address, token = given.get("--runtime-api-address", ""), given.get("--token", "")
    if "--insecure" not in arguments or not address or not token:
        return None
    thread = threading.Thread(target=_repeat, args=(address, token), daemon=True)
    thread.start()
    return thread


def _repeat(address: str, token: str) -> None:
    for _ in range(_TIMES):
        if not _say(address, token):
            return
        time.sleep(_EVERY_S)


def _say(address: str, token: str) -> bool:
    """Return True if the SuperNode accepted the heartbeat; Flower itself reports the reason if not."""
    try:
        connection = http.client.HTTPConnection(address, timeout=_EVERY_S)
        connection.request("POST", _PATH, headers={"content-type": _KIND, "accept": _KIND, "flwr-task-token": token})
        status = connection.getresponse().status
        connection.close()
    except (OSError, http.client.HTTPException):
        return False
    return status == http.client.OK
