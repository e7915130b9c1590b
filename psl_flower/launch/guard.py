"""The local SuperLink's own process: it serves this user alone, and ends with the process that started it.

    python -m psl_flower.launch.guard HOME PROGRAM ARGUMENTS...

Flower's SuperLink takes runs from anybody who reaches its port, and a run's ServerApp may do all that its user may. So
a request is refused unless the kernel lists the other end of its connection as a socket of this user. Standard input
is the lifeline: when it ends, the SuperLink and all that it started are killed, and its folder HOME is removed.
"""

from __future__ import annotations

import os
import runpy
import socket
import sys
import threading
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

from psl_flower.launch import home
from psl_flower.system.exposure import GUARDED

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Scope]]
Send = Callable[[Scope], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]
Address = tuple[str, int]

# In every answer, so that the process that starts the SuperLink knows that the guard works.
HEADER = "psl-guard"
_CONNECTIONS = Path("/proc/net/tcp")
_ESTABLISHED, _NO_SOCKET = "01", "0"
# The kernel's table is read in pieces, and may change between them.
_LOOKS = 3


def is_of_this_user(client: Address, server: Address) -> bool:
    """Check if the other end of an IPv4 connection on this machine is a socket of this user, and still open.

    Both are address and port: `client` of the other end, `server` of ours.
    """
    ends = [_as_listed(client), _as_listed(server)]
    for _ in range(_LOOKS):
        with _CONNECTIONS.open() as table:
            for line in table:
                columns = line.split()
                if columns[1:3] == ends:
                    state, user, inode = columns[3], columns[7], columns[9]
                    # A socket that was left or closed is listed with user 0.
                    return state == _ESTABLISHED and inode != _NO_SOCKET and user == str(os.geteuid())
    return False


def can_tell() -> bool:
    """Check if the kernel lists the owners of sockets: it does on Linux, and not in every sandbox."""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        accepted, _ = server.accept()
        with accepted:
            return _CONNECTIONS.exists() and is_of_this_user(client.getsockname(), server.getsockname())


def _as_listed(address: Address) -> str:
    host, port = address
    return f"{int.from_bytes(socket.inet_aton(host), sys.byteorder):08X}:{port:04X}"


class OnlyThisUser:
    """Passes requests of this user on to an ASGI application, and refuses all others.

    Where the kernel does not list owners (`can_tell`), all are passed on, and the simulation counts as open.
    """

    def __init__(self, application: Application, *, tells: bool) -> None:
        self._application, self._tells = application, tells

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""

        async def send_marked(message: Scope) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), (HEADER.encode(), b"1")]
            await send(message)

        if scope["type"] == "lifespan" or not self._tells or is_of_this_user(scope["client"], scope["server"]):
            await self._application(scope, receive, send_marked)
        elif scope["type"] == "http":
            await send_marked({"type": "http.response.start", "status": 403})
            await send({"type": "http.response.body", "body": b"this SuperLink serves the user who started it\n"})
        else:
            await send({"type": "websocket.close"})


def main() -> None:
    """Run the SuperLink in this process."""
    import uvicorn

    folder, program = Path(sys.argv[1]), sys.argv[2]
    # Children inherit standard input; none may hold the lifeline, or read from it.
    lifeline = os.dup(0)
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    threading.Thread(target=_end_with, args=(lifeline, folder), daemon=True).start()
    serve, tells = uvicorn.run, can_tell()

    def run(app: Application, **options: Any) -> None:
        # Or a header of the request would say who the client is.
        serve(OnlyThisUser(app, tells=tells), **{**options, "proxy_headers": False})

    vars(uvicorn)["run"] = run
    if tells:
        os.environ[GUARDED] = "1"
    sys.argv[:] = sys.argv[2:]
    runpy.run_path(program, run_name="__main__")


def _end_with(lifeline: int, folder: Path) -> None:
    while os.read(lifeline, 1):
        pass
    home.end(folder)
    os._exit(1)


if __name__ == "__main__":
    main()
