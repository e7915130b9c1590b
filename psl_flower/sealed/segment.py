"""Segments: the immutable files of a store, each written whole, committed by rename, never changed.

    header | records | 32-byte digest of each record

The digests at the end let anyone name the record that was changed; what they are worth is decided by the
Merkle root in the signed manifest. An interrupted ingest continues at the next segment.

Shape suffixes: B batch, K positions of this Upper, C channels, h and w pixels of a patch.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from psl_flower.errors import (
    HeaderDamaged,
    TrailingBytes,
    TruncatedFile,
    WrongDataset,
    WrongEpoch,
    WrongSegment,
    WrongStore,
)
from psl_flower.patches.store import check_patches
from psl_flower.sealed import merkle
from psl_flower.sealed.folder import FileDraft, Folder
from psl_flower.sealed.header import SegmentHeader, header_bytes, segment_bytes
from psl_flower.sealed.manifest import Manifest, SegmentEntry, StoreEntry, segment_file
from psl_flower.sealed.records import RecordCipher, SampleIds
from psl_flower.sealed.secret import Secret
from psl_flower.sealed.suite import DIGEST_BYTES, digest, equal

_SCAN_RECORDS = 256


class SegmentWriter:
    """Fills one segment. The file appears under its name with `finish`.

    The manifest is of the generation that is being made, `store` the store's entry in it; the data key is not kept.
    `segment` is the number of the segment in the store, `first` the global index of its first sample.
    """

    def __init__(
        self,
        folder: Folder,
        manifest: Manifest,
        store: StoreEntry,
        data_key: Secret,
        *,
        segment: int,
        first: int,
    ) -> None:
        self.header = SegmentHeader(
            dataset=manifest.dataset,
            store=store.store,
            epoch=manifest.epoch,
            generation=manifest.generation,
            segment=segment,
            upper=store.upper,
            first=first,
            block=manifest.block,
            patch_shape=manifest.description.stored_shape,
            positions=store.positions,
            salt=secrets.token_bytes(32),
        )
        self._ids = SampleIds(data_key, store.store)
        self._cipher = RecordCipher(self.header, data_key)
        self._head = self.header.sealed(data_key)
        self._waiting: list[bytes] = []
        self._leaves: list[bytes] = []
        self._entry: SegmentEntry | None = None
        self._where = f"{folder.name}/{segment_file(manifest.epoch, segment)}"
        self._draft: FileDraft = folder.draft(segment_file(manifest.epoch, segment))
        self._draft.write(self._head)

    def append(self, patches_BKChw: NDArray[np.uint8]) -> None:
        """Append the patches (B, K, C, h, w), uint8, of B further samples; StoreError if these are not the store's."""
        check_patches(patches_BKChw, (len(self.header.positions), *self.header.patch_shape), self._where)
        for patches in patches_BKChw:
            self._waiting.append(patches.tobytes())
            if len(self._waiting) == self.header.block:
                self._write_block()

    def finish(self) -> None:
        """Make the segment durable and visible."""
        if self._waiting:
            self._write_block()
        self._draft.write(b"".join(self._leaves))
        self._draft.commit()
        self._entry = SegmentEntry(
            segment=self.header.segment,
            generation=self.header.generation,
            first=self.header.first,
            count=len(self._leaves),
            header=digest(self._head),
            records=merkle.root(self._leaves),
        )
        self._ids.wipe()

    def abort(self) -> None:
        """Drop what was written; harmless after `finish`."""
        self._waiting.clear()
        self._ids.wipe()
        self._draft.abort()

    @property
    def entry(self) -> SegmentEntry:
        """What the manifest says of the segment; only after `finish`."""
        assert self._entry is not None, "the segment is not finished"
        return self._entry

    def _write_block(self) -> None:
        start = len(self._leaves)
        names = self._ids.of(range(self.header.first + start, self.header.first + start + len(self._waiting)))
        for slot, k in enumerate(sorted(range(len(names)), key=names.__getitem__), start):
            record = self._cipher.seal(names[k], slot, self._waiting[k])
            self._leaves.append(merkle.leaf(record))
            self._draft.write(record)
        self._waiting.clear()


def check_head(
    folder: Folder, manifest: Manifest, store: StoreEntry, entry: SegmentEntry
) -> tuple[SegmentHeader, bytes]:
    """Check a segment's length and header against the manifest. Needs no key.

    Raises
    ------
    StoreNotFound
        If the file is missing.
    TruncatedFile, TrailingBytes
        If its length is not exactly what the manifest implies.
    UnknownFormat, UnknownVersion, HeaderDamaged
        If the header is not one, or not the signed one.
    WrongDataset, WrongStore, WrongEpoch, WrongSegment
        If the header is that of another segment.
    """
    file = segment_file(manifest.epoch, entry.segment)
    where = f"{folder.name}/{file}"
    size, length = folder.size(file), header_bytes(len(store.positions))
    data = folder.ranges(file, [0], min(size, length))[0]
    header = SegmentHeader.parse(data, len(store.positions), where)
    if not equal(digest(data), entry.header):
        _explain(header, manifest, store, entry, where)
    expected = segment_bytes(header, entry.count)
    if size < expected:
        raise TruncatedFile(f"{where} has {size} bytes of {expected}")
    if size > expected:
        raise TrailingBytes(f"{where}: {size - expected} bytes follow the segment's end")
    return header, data


def scan(
    folder: Folder, manifest: Manifest, entry: SegmentEntry, header: SegmentHeader
) -> Iterator[tuple[bytes, bytes]]:
    """Yield each record of a segment and the digest that its table has for it, in order of their slots."""
    file = segment_file(manifest.epoch, entry.segment)
    table = header.num_bytes + entry.count * header.record_bytes
    for start in range(0, entry.count, _SCAN_RECORDS):
        slots = range(start, min(start + _SCAN_RECORDS, entry.count))
        at = header.num_bytes + slots[0] * header.record_bytes
        records = folder.ranges(file, [at], len(slots) * header.record_bytes)[0]
        digests = folder.ranges(file, [table + slots[0] * DIGEST_BYTES], len(slots) * DIGEST_BYTES)[0]
        for k in range(len(slots)):
            record = records[k * header.record_bytes : (k + 1) * header.record_bytes]
            yield record, digests[k * DIGEST_BYTES : (k + 1) * DIGEST_BYTES]


def _explain(header: SegmentHeader, manifest: Manifest, store: StoreEntry, entry: SegmentEntry, where: str) -> None:
    if header.dataset != manifest.dataset:
        raise WrongDataset(f"{where} is a segment of another dataset")
    if header.epoch != manifest.epoch:
        raise WrongEpoch(f"{where} is of epoch {header.epoch}, expected {manifest.epoch}")
    if (header.store, header.upper, header.positions) != (store.store, store.upper, store.positions):
        raise WrongStore(f"{where} is a segment of another store (Upper {header.upper}, expected {store.upper})")
    found = (header.generation, header.segment, header.first)
    if found != (entry.generation, entry.segment, entry.first):
        raise WrongSegment(
            f"{where} is segment {header.segment} of generation {header.generation}, not the one expected"
        )
    raise HeaderDamaged(f"{where}: the header is not the one that the manifest was signed for")
