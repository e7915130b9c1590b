"""A tiny sealed dataset byte by byte: where things are in a segment, what to change, and what is then noticed.

The dataset is small enough to try every byte and every length.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from psl_flower.errors import PslError
from psl_flower.sealed.verify import verify
from tests.vectors.sealed_support import ArraySource, World

SOURCE = ArraySource(train=4, test=1)
SEGMENT = "epoch-0001-segment-000000.psl"
HEADER, RECORD, COUNT = 128 + 2 * 4 + 32, 16 + 12 + 2 * 4 + 16, 5
TABLE = HEADER + COUNT * RECORD


def problems(world: World) -> list[str]:
    """Return the names of the errors that `verify` finds, store by store."""
    return [p.error for store in verify(world.places, world.signed).stores for p in store.problems]


def reader_refuses(world: World, upper: int = 0) -> None:
    with pytest.raises(PslError):
        world.open(upper).read(np.arange(COUNT))


def swap(data: bytes, a: int, b: int) -> bytes:
    """Exchange two records, digests at the end left as they are."""
    parts = records(data)
    parts[a], parts[b] = parts[b], parts[a]
    return data[:HEADER] + b"".join(parts) + data[TABLE:]


def records(data: bytes) -> list[bytes]:
    """Return the sealed records of a segment."""
    return [data[HEADER + k * RECORD : HEADER + (k + 1) * RECORD] for k in range(COUNT)]


def every_change(data: bytes) -> Iterator[bytes]:
    """Yield the data with every byte changed, of every shorter length, and longer."""
    for at in range(len(data)):
        yield data[:at] + bytes([data[at] ^ (1 << (at % 8))]) + data[at + 1 :]
    for length in range(len(data)):
        yield data[:length]
    yield data + b"\0"
    yield data + b"\n"
    yield data + data
