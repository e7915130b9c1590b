"""Copies frames between two interfaces, each after a while, some never: a stand-in for `tc netem` where it is missing.

    python slow_link.py INTERFACE INTERFACE DELAY_S LOSS SEED

Every frame leaves DELAY_S seconds after it came, either way; a share LOSS of them, drawn by SEED, is dropped. Prints
"ready" and runs until its standard input ends. Run in a network namespace; needs nothing but Python's own library.
"""

from __future__ import annotations

import errno
import random
import select
import socket
import sys
import time
from collections import deque
from collections.abc import Iterator

_ETH_P_ALL, _SOL_PACKET, _SO_RCVBUFFORCE = 3, 263, 33
# With its header a frame comes and goes as the hosts' kernels hold it: up to 64 KiB, not yet cut to the interface's
# size, its checksum not yet computed. Without it, such frames could not be sent on.
_PACKET_VNET_HDR, _PACKET_IGNORE_OUTGOING = 15, 23
_LARGEST_BYTES, _BUFFER_BYTES = 2**17, 64 * 2**20
# No frame there, no room, cable pulled.
_NOTHING_NOW = (errno.EAGAIN, errno.ENOBUFS, errno.ENETDOWN)


class SlowQueue:
    """Frames on their way in one direction; a share `loss` of them, 0 to 1, never leaves."""

    def __init__(self, delay_s: float, loss: float, draw: random.Random) -> None:
        self._delay_s, self._loss, self._draw = delay_s, loss, draw
        self._waiting: deque[tuple[float, bytes]] = deque()

    def put(self, frame: bytes, now: float) -> None:
        """Take a frame that came at `now` (seconds of any clock that does not go back)."""
        if self._draw.random() >= self._loss:
            self._waiting.append((now + self._delay_s, frame))

    def due(self, now: float) -> Iterator[bytes]:
        """Give out, in the order of their coming, the frames that are to leave by `now`."""
        while self._waiting and self._waiting[0][0] <= now:
            yield self._waiting.popleft()[1]

    def next_at(self) -> float:
        """Return when the next frame is to leave; infinity if none waits."""
        return self._waiting[0][0] if self._waiting else float("inf")


def main(first: str, second: str, delay_s: str, loss: str, seed: str) -> None:
    """Forward frames until standard input ends; see the module."""
    draw = random.Random(int(seed))
    with _raw_socket(first) as one, _raw_socket(second) as other:
        queues = {sock: SlowQueue(float(delay_s), float(loss), draw) for sock in (one, other)}
        towards = {one: other, other: one}
        print("ready", flush=True)
        ended = False
        while not ended:
            next_at = min(queue.next_at() for queue in queues.values())
            wait_s = None if next_at == float("inf") else max(0.0, next_at - time.monotonic())
            # Not a selector: those of Linux wait for whole milliseconds.
            readable, _, _ = select.select([*queues, sys.stdin], [], [], wait_s)
            ended = sys.stdin in readable
            for sock, queue in queues.items():
                if sock in readable:
                    _receive_all(sock, queue)
                for frame in queue.due(time.monotonic()):
                    _send(towards[sock], frame)


def _raw_socket(interface: str) -> socket.socket:
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER_BYTES)
    sock.setsockopt(_SOL_PACKET, _PACKET_VNET_HDR, 1)
    sock.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
    sock.setblocking(False)
    sock.bind((interface, _ETH_P_ALL))
    return sock


def _receive_all(sock: socket.socket, queue: SlowQueue) -> None:
    while True:
        try:
            queue.put(sock.recv(_LARGEST_BYTES), time.monotonic())
        except OSError as error:
            if error.errno not in _NOTHING_NOW:
                raise
            return


def _send(sock: socket.socket, frame: bytes) -> None:
    try:
        sock.send(frame)
    except OSError as error:
        # As on a cable: what the other side cannot take now is lost.
        if error.errno not in _NOTHING_NOW:
            raise


if __name__ == "__main__":
    main(*sys.argv[1:])
