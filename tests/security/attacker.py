"""Hostile connections to an exchange endpoint with TLS, many at once; a program of its own.

    python -S attacker.py HOST PORT COUNT SECONDS < FRAMES

FRAMES is what an honest node sent once: its Hello and more. COUNT connections without TLS are opened at once and held;
meanwhile others come over TLS in every way of `WAYS`, again and again until SECONDS are over.
"""

import asyncio
import contextlib
import resource
import ssl
import struct
import sys
from collections.abc import Awaitable, Callable

Send = Callable[[bytes], Awaitable[None]]
Way = Callable[[Send, bytes], Awaitable[None]]


async def silent(send: Send, frames: bytes) -> None:
    pass


async def random_bytes(send: Send, frames: bytes) -> None:
    await send(bytes((7 * n * n + 13) % 251 for n in range(4096)))


async def wrong_token(send: Send, frames: bytes) -> None:
    hello = bytearray(frames[: 20 + struct.unpack_from("<I", frames, 8)[0]])
    at = hello.index(b"\xc4\x20") + 2  # MessagePack: 32 bytes follow
    hello[at : at + 32] = b"?" * 32
    await send(bytes(hello))


async def replayed(send: Send, frames: bytes) -> None:
    await send(frames)


async def huge(send: Send, frames: bytes) -> None:
    await send(struct.pack("<4sIIQ", b"PSLF", 1, 2**32 - 1, 2**60) + bytes(64))


async def almost_complete(send: Send, frames: bytes) -> None:
    """Send the largest greeting that is permitted but for one byte, so that the endpoint keeps it."""
    await send(struct.pack("<4sIIQ", b"PSLF", 1, 2**16, 0) + bytes(2**16 - 1))


async def slow(send: Send, frames: bytes) -> None:
    for byte in frames:
        await send(bytes([byte]))
        await asyncio.sleep(0.1)


WAYS: tuple[Way, ...] = (silent, random_bytes, wrong_token, replayed, huge, almost_complete, slow)


async def attack(host: str, port: int, way: Way, frames: bytes, context: ssl.SSLContext | None) -> None:
    with contextlib.suppress(OSError, EOFError):
        reader, writer = await asyncio.open_connection(host, port, ssl=context)

        async def send(data: bytes) -> None:
            writer.write(data)
            await writer.drain()

        await way(send, frames)
        await reader.read()
        writer.close()


async def again_and_again(host: str, port: int, way: Way, frames: bytes) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    while True:
        await attack(host, port, way, frames, context)
        await asyncio.sleep(0.05)


async def main(host: str, port: int, count: int, seconds: float, frames: bytes) -> None:
    plain = (silent, silent, random_bytes, replayed)
    attacks = [attack(host, port, plain[n % len(plain)], frames, None) for n in range(count)]
    tasks = [asyncio.ensure_future(task) for task in attacks]
    tasks += [asyncio.ensure_future(again_and_again(host, port, way, frames)) for way in WAYS for _ in range(3)]
    await asyncio.sleep(seconds)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    given = sys.argv[1:]
    asyncio.run(main(given[0], int(given[1]), int(given[2]), float(given[3]), sys.stdin.buffer.read()))
