"""A guard for a server on this machine: it answers only requests from the server's own user.

Flower's servers accept runs and hand out messages to every client of their port. The guard refuses a request unless
the kernel lists the other end of its connection as a socket of this user, and refuses requests of web pages in this
user's browser.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Scope]]
Send = Callable[[Scope], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]
Address = tuple[str, int]

# Sent in every answer, so that the process that starts a server can check that the guard works.
HEADER = "psl-guard"
_CONNECTIONS = Path("/proc/net/tcp")
_CONNECTIONS_V6 = "tcp6"
_ESTABLISHED, _NO_SOCKET = "01", "0"
# The kernel's table is read in pieces, and may change between them.
_LOOKS = 3
_WORD_BYTES = 4
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def is_of_this_user(client: Address, server: Address) -> bool:
    """Check if the other end of a connection on this machine is a socket of this user, and still open.

    Both are address and port: `client` of the other end, `server` of ours.

    Raises
    ------
    OSError
        If the kernel lists no connections, or an address is malformed.
    """
    ends = [_as_listed(client), _as_listed(server)]
    listed = _CONNECTIONS.with_name(_CONNECTIONS_V6) if ":" in client[0] else _CONNECTIONS
    for _ in range(_LOOKS):
        with listed.open() as table:
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
    packed = socket.inet_pton(socket.AF_INET6 if ":" in host else socket.AF_INET, host)
    words = [packed[at : at + _WORD_BYTES] for at in range(0, len(packed), _WORD_BYTES)]
    return "".join(f"{int.from_bytes(word, sys.byteorder):08X}" for word in words) + f":{port:04X}"


def is_of_a_page(scope: Scope) -> bool:
    """Check if a request is, or may be, that of a web page in a browser.

    A page's name may be made to lead to this machine after it was loaded (DNS rebinding); its browser then still sends
    that name as Host. Over TLS the certificate has proved the name.
    """
    headers = scope.get("headers", [])
    hosts = [value.decode("latin-1").lower() for name, value in headers if name.lower() == b"host"]
    if any(name.lower() == b"origin" for name, _ in headers):
        return True
    if scope.get("scheme") in ("https", "wss"):
        return False
    address, port = scope["server"]
    own = {f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host in (*LOOPBACK, address)}
    return len(hosts) != 1 or hosts[0] not in own


class OnlyThisUser:
    """Passes requests of this user on to an ASGI application, and refuses all others.

    Requests whose path starts with one of `open_to_all` pass from any client. Where the kernel does not list owners
    (`can_tell`), requests of all users pass, but not those of web pages.
    """

    def __init__(self, application: Application, *, tells: bool, open_to_all: tuple[str, ...] = ()) -> None:
        self._application, self._tells, self._open = application, tells, open_to_all

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""

        async def send_marked(message: Scope) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), (HEADER.encode(), b"1")]
            await send(message)

        if scope["type"] == "lifespan" or self._serves(scope):
            await self._application(scope, receive, send_marked)
        elif scope["type"] == "http":
            await send_marked({"type": "http.response.start", "status": 403})
            await send({"type": "http.response.body", "body": b"this server serves the user who started it\n"})
        else:
            await send({"type": "websocket.close"})

    def _serves(self, scope: Scope) -> bool:
        path: str = scope["path"]
        if path.startswith(self._open):
            return True
        return not is_of_a_page(scope) and (not self._tells or is_of_this_user(scope["client"], scope["server"]))


def guard_servers(*, tells: bool, open_to_all: tuple[str, ...] = ()) -> None:
    """Put `OnlyThisUser` before all applications that this process will serve with uvicorn."""
    import uvicorn

    name = "__init__"
    initialise = getattr(uvicorn.Config, name)

    def guarded(config: object, app: Application, **options: Any) -> None:
        # Or a header of the request would say who the client is.
        only = OnlyThisUser(app, tells=tells, open_to_all=open_to_all)
        initialise(config, only, **{**options, "proxy_headers": False})

    setattr(uvicorn.Config, name, guarded)
