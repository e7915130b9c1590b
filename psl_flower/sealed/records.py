"""Records: one sample's patches, encrypted.

    16 sample id | 12 nonce | ciphertext | 16 tag

The sample id is HMAC-SHA-256(id key, global sample index as u64)[:16]; the id key belongs to one store of one
epoch, so no two stores share an id. Within a block the records stand in the order of their ids, which is as
good as random: the place in the file does not tell the place in the dataset either. The associated data is

    32 SHA-256 of the header without its MAC | 16 sample id | u64 slot in the segment

and so binds magic, version, suite, dataset, store, epoch, positions, shape and dtype. Nonces are random; a
record key serves one segment of at most 2^32 records, so that two meet with odds under 2^-33.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Iterable

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from numpy.typing import NDArray

from psl_flower.errors import RecordDamaged, RecordDuplicated, RecordForeign
from psl_flower.sealed.header import SegmentHeader
from psl_flower.sealed.secret import Secret
from psl_flower.sealed.suite import ID_BYTES, NONCE_BYTES, Purpose, derive, digest

_PREFIX_BYTES = ID_BYTES + NONCE_BYTES


class SampleIds:
    """Pseudonyms of samples in one store."""

    __slots__ = ("_key",)

    def __init__(self, data_key: Secret, store: bytes) -> None:
        self._key = derive(data_key, store, Purpose.SAMPLE_ID)

    def of(self, samples: Iterable[int]) -> list[bytes]:
        """Return the 16-byte pseudonyms of global sample indices."""
        key = self._key.reveal()
        return [hmac.digest(key, sample.to_bytes(8, "little"), "sha256")[:ID_BYTES] for sample in samples]

    def order(self, first: int, count: int, block: int) -> tuple[list[bytes], NDArray[np.int64]]:
        """Return the pseudonyms by slot, and each sample's slot, of a segment (count,)."""
        ids: list[bytes] = []
        slots = np.empty(count, np.int64)
        for start in range(0, count, block):
            names = self.of(range(first + start, first + min(start + block, count)))
            by_name = sorted(range(len(names)), key=names.__getitem__)
            slots[start + np.asarray(by_name)] = start + np.arange(len(names))
            ids += [names[k] for k in by_name]
        return ids, slots

    def wipe(self) -> None:
        """Forget the key."""
        self._key.wipe()


class RecordCipher:
    """Seals and opens the records of one segment."""

    __slots__ = ("_aad_prefix", "_aead")

    def __init__(self, header: SegmentHeader, data_key: Secret) -> None:
        with header.record_key(data_key) as key:
            self._aead = ChaCha20Poly1305(key.reveal())
        self._aad_prefix = digest(header.body())

    def seal(self, sample_id: bytes, slot: int, patches: bytes) -> bytes:
        """Return the record of one sample."""
        nonce = secrets.token_bytes(NONCE_BYTES)
        return sample_id + nonce + self._aead.encrypt(nonce, patches, self._aad(sample_id, slot))

    def open(self, record: bytes, sample_id: bytes, slot: int) -> bytes | None:
        """Return the patches of one sample; None if the record is not the one that belongs here."""
        if record[:ID_BYTES] != sample_id:
            return None
        try:
            return self._aead.decrypt(
                record[ID_BYTES:_PREFIX_BYTES], record[_PREFIX_BYTES:], self._aad(sample_id, slot)
            )
        except InvalidTag:
            return None

    def diagnose(self, record: bytes, slot: int, ids: list[bytes], where: str) -> Exception:
        """Return the error for a record that `open` refused."""
        found, wanted = record[:ID_BYTES], ids[slot]
        if found == wanted or self.open(wanted + record[ID_BYTES:], wanted, slot) is not None:
            return RecordDamaged(f"{where}: record {slot} was changed; run `psl verify`")
        if found in ids:
            return RecordDuplicated(
                f"{where}: record {slot} is that of another sample of this segment; run `psl verify`"
            )
        return RecordForeign(f"{where}: record {slot} does not belong to this segment; run `psl verify`")

    def _aad(self, sample_id: bytes, slot: int) -> bytes:
        return self._aad_prefix + sample_id + slot.to_bytes(8, "little")
