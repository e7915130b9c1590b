"""The header of a segment: what its records are, and a MAC that only the store's data key can have made.

    offset  bytes
         0      8  magic "PSLSTORE"
         8      2  version (1)
        10      2  suite (1)
        12      2  dtype (1: unsigned 8-bit)
        14      2  number of positions K
        16     16  dataset
        32     16  store
        48      4  epoch
        52      4  generation
        56      4  segment
        60      4  Upper
        64      8  first sample
        72      4  block: samples that are shuffled together
        76      4  channels
        80      4  height of a patch with its margin
        84      4  width of a patch with its margin
        88      8  zero
        96     32  salt, random per segment
       128    4*K  positions, ascending
             +32  HMAC-SHA-256 over all above (key commitment)

Integers are little-endian and unsigned.
"""

from __future__ import annotations

import hmac
import math
import struct
from itertools import pairwise
from typing import Any

import msgspec

from psl_flower.errors import HeaderDamaged, KeyMismatch, TruncatedFile, UnknownFormat, UnknownVersion
from psl_flower.sealed.secret import Secret
from psl_flower.sealed.suite import (
    DIGEST_BYTES,
    ID_BYTES,
    NONCE_BYTES,
    SUITE,
    TAG_BYTES,
    Purpose,
    derive,
    digest,
    equal,
)

MAGIC = b"PSLSTORE"
VERSION = 1
DTYPE_UINT8 = 1
MAX_RECORD_BYTES = 1 << 28
_FIXED = struct.Struct("<8sHHHH16s16sIIIIQIIII8s32s")
# Its fields from the dataset to the block, which equal those of `SegmentHeader`.
_PLAIN_FIELDS = ("dataset", "store", "epoch", "generation", "segment", "upper", "first", "block")
_MAC_BYTES = 32
STORE_AT = slice(32, 48)  # where a header has the store's name


class SegmentHeader(msgspec.Struct, frozen=True, kw_only=True):
    """What the records of a segment are."""

    #: Random names of the dataset and the store, 16 bytes each.
    dataset: bytes
    store: bytes
    #: Key epoch (from 1), manifest generation that added it (from 1), number in the store (from 0), Upper (from 0).
    epoch: int
    generation: int
    segment: int
    upper: int
    first: int  #: Global index of its first sample.
    block: int  #: Samples that are shuffled together; the last block may be shorter.
    patch_shape: tuple[int, int, int]  #: (C, h, w), the margin included.
    positions: tuple[int, ...]  #: Grid positions, ascending.
    salt: bytes  #: 32 random bytes.

    @property
    def plain_bytes(self) -> int:
        """Bytes of one sample's patches."""
        return len(self.positions) * math.prod(self.patch_shape)

    @property
    def record_bytes(self) -> int:
        """Bytes of one record on disk."""
        return ID_BYTES + NONCE_BYTES + self.plain_bytes + TAG_BYTES

    @property
    def num_bytes(self) -> int:
        """Bytes of the header on disk, MAC included."""
        return header_bytes(len(self.positions))

    def body(self) -> bytes:
        """Return the header without its MAC."""
        fixed = _FIXED.pack(
            MAGIC, VERSION, SUITE, DTYPE_UINT8, len(self.positions), *(getattr(self, name) for name in _PLAIN_FIELDS),
            *self.patch_shape, bytes(8), self.salt,
        )  # fmt: skip
        return fixed + struct.pack(f"<{len(self.positions)}I", *self.positions)

    def sealed(self, data_key: Secret) -> bytes:
        """Return the header with its MAC."""
        body = self.body()
        return body + self._mac(body, data_key)

    def check(self, data: bytes, data_key: Secret, where: str) -> None:
        """Check the MAC; raises KeyMismatch if this key did not make it."""
        if not equal(data[-_MAC_BYTES:], self._mac(data[:-_MAC_BYTES], data_key)):
            raise KeyMismatch(f"{where}: the header was not made with this store's key")

    def _mac(self, body: bytes, data_key: Secret) -> bytes:
        with derive(data_key, self.salt, Purpose.HEADER_MAC, self.store) as key:
            return hmac.digest(key.reveal(), body, "sha256")

    def record_key(self, data_key: Secret) -> Secret:
        """Derive the key of this segment's records, bound to the whole header."""
        return derive(data_key, self.salt, Purpose.RECORD, digest(self.body()))

    @classmethod
    def parse(cls, data: bytes, num_positions: int, where: str) -> SegmentHeader:
        """Read a header of `num_positions` positions and check its form, not its MAC.

        Raises
        ------
        UnknownFormat, UnknownVersion, TruncatedFile, HeaderDamaged
            If it is not a header of this version.
        """
        if data[: len(MAGIC)] != MAGIC[: len(data)]:
            raise UnknownFormat(f"{where} is not a patch store segment")
        if len(data) < header_bytes(num_positions):
            raise TruncatedFile(f"{where} ends within its header")
        _, version, suite, dtype, found, *rest = _FIXED.unpack_from(data)
        if version != VERSION or suite != SUITE:
            raise UnknownVersion(
                f"{where}: version {version} with suite {suite} is unknown; this program knows 1 and 1"
            )
        *plain, channels, height, width, zero, salt = rest
        positions = struct.unpack_from(f"<{num_positions}I", data, _FIXED.size)
        fields: dict[str, Any] = dict(zip(_PLAIN_FIELDS, plain, strict=True))
        header = cls(**fields, patch_shape=(channels, height, width), positions=positions, salt=salt)
        ascending = num_positions > 0 and all(a < b for a, b in pairwise(positions))
        sound = ascending and header.block > 0 and 0 < header.plain_bytes <= MAX_RECORD_BYTES
        if found != num_positions or dtype != DTYPE_UINT8 or zero != bytes(8) or not sound:
            raise HeaderDamaged(f"{where}: a field of the header is out of bounds")
        return header


def header_bytes(num_positions: int) -> int:
    """Bytes of a header on disk."""
    return _FIXED.size + 4 * num_positions + _MAC_BYTES


def segment_bytes(header: SegmentHeader, count: int) -> int:
    """Bytes of a whole segment of `count` samples: header, records, digests."""
    return header.num_bytes + count * (header.record_bytes + DIGEST_BYTES)
