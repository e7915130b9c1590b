"""Another user of this machine who asks a SuperLink for all sorts of things; a program of its own.

    python -S stranger.py USER PORT PATH < REQUEST

Becomes USER, then asks in every way of `ask`; prints one JSON object: the status of each answer, 0 for none. REQUEST is the
body of a POST to PATH. The last way hangs up before the answer, when the kernel lists the connection as nobody's.
"""

import encodings.idna  # noqa: F401 - once another user, this program may not read Python's own files
import http.client
import json
import os
import sys
from collections.abc import Iterator
from contextlib import suppress

FORGED = {"X-Forwarded-For": "127.0.0.1", "Forwarded": "for=127.0.0.1", "X-Real-IP": "127.0.0.1"}


def ask(port: int, path: str, body: bytes) -> Iterator[tuple[str, int]]:
    proto = {"Content-Type": "application/protobuf"}
    ways = {
        "health": ("GET", "/health", b"", {}),
        "run": ("POST", path, body, proto),
        "forged": ("POST", path, body, {**proto, **FORGED}),
    }
    for name, (method, place, sent, headers) in ways.items():
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        connection.request(method, place, sent, headers)
        yield name, connection.getresponse().status
    for name in [f"gone-{n}" for n in range(20)]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        connection.request("POST", path, body, proto)
        connection.close()
        yield name, 0


def become(user: int) -> None:
    with suppress(PermissionError):  # a test that is not root has nobody else to become
        os.setgroups([])
    os.setgid(user)
    os.setuid(user)


if __name__ == "__main__":
    request = sys.stdin.buffer.read()
    become(int(sys.argv[1]))
    print(json.dumps(dict(ask(int(sys.argv[2]), sys.argv[3], request))))
