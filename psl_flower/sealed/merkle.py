"""Merkle tree over a segment's records as in RFC 6962: SHA-256, leaf prefix 0, node prefix 1."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

EMPTY_ROOT = hashlib.sha256(b"").digest()


def leaf(record: bytes) -> bytes:
    """Digest of one record."""
    return hashlib.sha256(b"\0" + record).digest()


def root(leaves: Iterable[bytes]) -> bytes:
    """Root over leaf digests, in memory that grows with the logarithm of their number."""
    peaks: list[tuple[int, bytes]] = []  # (height, digest) of perfect subtrees, highest first
    for digest in leaves:
        height = 0
        while peaks and peaks[-1][0] == height:
            digest = _node(peaks.pop()[1], digest)
            height += 1
        peaks.append((height, digest))
    if not peaks:
        return EMPTY_ROOT
    top = peaks.pop()[1]
    while peaks:
        top = _node(peaks.pop()[1], top)
    return top


def _node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\1" + left + right).digest()
