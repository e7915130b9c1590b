"""Writes every frame that an interface sees to a file, as tcpdump would, until its standard input ends.

    python sniffer.py INTERFACE FILE

Prints "ready", and at the end the numbers of frames seen and of frames that were lost. Run in a network namespace.
"""

import selectors
import socket
import struct
import sys

ETH_P_ALL, SOL_PACKET = 3, 263
PACKET_STATISTICS, SO_RCVBUFFORCE = 6, 33


def main(interface: str, path: str) -> None:
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL)) as sock, open(path, "wb") as file:
        sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 256 * 2**20)
        sock.bind((interface, ETH_P_ALL))
        sock.setblocking(False)
        print("ready", flush=True)
        selector = selectors.DefaultSelector()
        selector.register(sock, selectors.EVENT_READ)
        selector.register(sys.stdin, selectors.EVENT_READ)
        ended = False
        while not ended:
            ended = any(key.fileobj is sys.stdin for key, _ in selector.select())
            while True:
                try:
                    file.write(sock.recv(2**18))
                except BlockingIOError:
                    break
        seen, lost = struct.unpack("II", sock.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))
        print(seen, lost, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
