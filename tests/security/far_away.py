"""An endpoint, a node far from it, and strangers of many addresses; each a program of its own, on a host of its own.

python far_away.py serve HOST FOLDER COUNT      opens an endpoint, writes what nodes are told, ends with its input
python far_away.py connect FOLDER KNOCK         lets COUNT nodes connect, one after the other; prints the seconds each
                                                took, -1 for none; without KNOCK ("") they do not prove that they
                                                hold a token before they are encrypted
python -S far_away.py flood HOST PORT NETWORK   opens connections from random addresses of NETWORK, and holds many
"""

import ipaddress
import json
import random
import socket
import sys
import time
from collections import deque
from contextlib import suppress
from pathlib import Path

# As many in a second as take all of the endpoint's places many times within a far node's round trip.
HELD, BURST, PAUSE_S = 900, 300, 0.05
# The beginning of TLS, so that they are not even silent.
GREETING = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"
TIMEOUT_S = 20.0
_IPV6_FREEBIND = 78  # from Linux's in6.h: bind to an address that only a route makes ours


def serve(host: str, folder: str, count: str) -> None:
    from psl_flower.wire.endpoint import ExchangeEndpoint
    from psl_flower.wire.tls import ephemeral_identity

    with ExchangeEndpoint(host, run="run", tls=ephemeral_identity([host])) as endpoint:
        tokens = [endpoint.issue_ticket(m, 7, (m,), 50, "data").hex() for m in range(int(count))]
        told = {"host": host, "port": endpoint.port, "certificate": endpoint.cert_pem, "tokens": tokens}
        (Path(folder) / "told.new").write_text(json.dumps(told))
        (Path(folder) / "told.new").rename(Path(folder) / "told.json")
        sys.stdin.read()
        (Path(folder) / "refused.json").write_text(json.dumps(endpoint.refused))


def connect(folder: str, knock: str) -> None:
    from psl_flower.errors import PslError
    from psl_flower.wire import stream
    from psl_flower.wire.messages import Hello

    if not knock:
        stream.knock = lambda token: "none"
    told = json.loads((Path(folder) / "told.json").read_text())
    for m, token in enumerate(told["tokens"]):
        hello = Hello("run", 7, m, (m,), 50, "data", bytes.fromhex(token))
        began = time.monotonic()
        with suppress(PslError):
            made = stream.connect(
                told["host"], told["port"], hello, cafile_pem=told["certificate"], timeout_s=TIMEOUT_S
            )
            print(time.monotonic() - began, flush=True)
            made.close()
            continue
        print(-1, flush=True)


def flood(host: str, port: str, network: str) -> None:
    sources, held = ipaddress.ip_network(network), deque[socket.socket]()
    family = socket.AF_INET if sources.version == 4 else socket.AF_INET6
    while True:
        for _ in range(BURST):
            stranger = socket.socket(family)
            stranger.setblocking(False)
            if family == socket.AF_INET6:
                stranger.setsockopt(socket.IPPROTO_IPV6, _IPV6_FREEBIND, 1)
            with suppress(OSError):
                stranger.bind((str(sources[random.randrange(1, sources.num_addresses - 1)]), 0))
                stranger.connect_ex((host, int(port)))
            held.append(stranger)
        time.sleep(PAUSE_S)
        for stranger in list(held)[-BURST:]:
            with suppress(OSError):
                stranger.send(GREETING)
        while len(held) > HELD:
            held.popleft().close()


if __name__ == "__main__":
    {"serve": serve, "connect": connect, "flood": flood}[sys.argv[1]](*sys.argv[2:])
