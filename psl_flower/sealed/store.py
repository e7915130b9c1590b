"""A sealed patch store, read at random.

Shape suffixes: B batch, K positions of this Upper, C channels, h and w pixels of a patch.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from psl_flower.errors import StoreError, StoreNotFound, WrongNodeKey
from psl_flower.patches.store import StoreMeta, check_samples
from psl_flower.sealed import manifest as manifests
from psl_flower.sealed.data_keys import open_as_node
from psl_flower.sealed.folder import Folder
from psl_flower.sealed.folders import open_folder
from psl_flower.sealed.header import STORE_AT, SegmentHeader
from psl_flower.sealed.identities import Identity, PublicIdentity, Role
from psl_flower.sealed.manifest import Manifest, SegmentEntry, SignedManifest, StoreEntry, segment_file
from psl_flower.sealed.records import RecordCipher, SampleIds
from psl_flower.sealed.secret import Secret
from psl_flower.sealed.seen import SeenBook
from psl_flower.sealed.segment import check_head
from psl_flower.sealed.suite import Purpose, derive


class SealedStore:
    """The patches of one Upper, encrypted on disk; implements `PatchStore`.

    Every record that is read was authenticated as the one of this sample, in this slot, of this segment,
    store, epoch and dataset. Reading draws nothing at random and changes nothing on disk.
    """

    def __init__(self, folder: Folder, manifest: Manifest, entry: StoreEntry, data_key: Secret) -> None:
        """Open with the given data key; `open` is for nodes.

        Raises
        ------
        StoreError
            If a segment's length or header is not what the manifest says, or the key is not the store's.
        """
        self._folder, self._entry = folder, entry
        self._meta = msgspec.structs.replace(manifest.description.meta_of(entry.upper), epoch=manifest.epoch)
        self._ids = SampleIds(data_key, entry.store)
        self._noise_key = derive(data_key, entry.store, Purpose.CODE_NOISE)
        self._segments: list[_OpenSegment] = []
        for part in entry.segments:
            header, data = check_head(folder, manifest, entry, part)
            name = segment_file(manifest.epoch, part.segment)
            header.check(data, data_key, f"{folder.name}/{name}")
            self._segments.append(_OpenSegment(name, header, part, RecordCipher(header, data_key), self._ids))
        self._ends = np.cumsum([part.count for part in entry.segments], dtype=np.int64)
        self._record_shape = (len(entry.positions), *self._meta.patch_shape)
        self._closed = False

    @classmethod
    def open(
        cls,
        place: str | Path,
        node: Identity,
        *,
        owner: PublicIdentity | None = None,
        seen: SeenBook | None = None,
        manifest: SignedManifest | None = None,
    ) -> SealedStore:
        """Open a store as its node.

        `place` is a folder, or any URL that fsspec opens. The manifest to hold the store to is by default the copy in
        it; `owner` is trusted to have signed it, and one older than what this node has `seen` is refused.

        Raises
        ------
        WrongNodeKey
            If the store was made for another node.
        StoreError
            If anything in it is not what the manifest says; see the subclasses.
        """
        folder = open_folder(place)
        signed = manifest or manifests.load_copy(folder, owner)
        if seen is not None:
            seen.check(signed)
        entry = _entry_for(folder, signed, node.expect(Role.NODE).public)
        with open_as_node(signed.manifest, entry, node, folder.name) as data_key:
            return cls(folder, signed.manifest, entry, data_key)

    @property
    def meta(self) -> StoreMeta:
        """What the store holds."""
        return self._meta

    def __len__(self) -> int:
        """Return the number of samples."""
        return self._meta.num_samples

    def __repr__(self) -> str:
        """Show place, Upper and number of samples; no key."""
        return f"SealedStore({self._folder.name!r}, upper={self._meta.upper}, samples={len(self)})"

    def read(self, samples_B: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return the patches (B, K, C, h, w) of the given sample indices, in their order.

        Raises
        ------
        StoreError
            If the store is closed, or the indices are not a row of integers or out of range.
        RecordDamaged, RecordDuplicated, RecordForeign
            If a record is not the one stored for its sample.
        """
        if self._closed:
            raise StoreError(f"{self._folder.name}: the store is closed")
        check_samples(samples_B, len(self), self._folder.name)
        samples_B = samples_B.astype(np.int64)
        out_BN = np.empty((len(samples_B), int(np.prod(self._record_shape))), np.uint8)
        segments_B = np.searchsorted(self._ends, samples_B, side="right")
        for number in np.unique(segments_B).tolist():
            rows = np.flatnonzero(segments_B == number)
            self._segments[number].read(self._folder, samples_B[rows], rows, out_BN)
        return out_BN.reshape(len(samples_B), *self._record_shape)

    def noise_key(self) -> bytes:
        """Return 32 bytes that follow from the store's data key; StoreError if the store is closed."""
        if self._closed:
            raise StoreError(f"{self._folder.name}: the store is closed")
        return self._noise_key.reveal()

    def close(self) -> None:
        """Release files and keys; reading afterwards raises StoreError. Closing twice is harmless."""
        self._closed = True
        self._segments.clear()
        self._ids.wipe()
        self._noise_key.wipe()
        self._folder.close()


class _OpenSegment:
    def __init__(
        self, name: str, header: SegmentHeader, entry: SegmentEntry, cipher: RecordCipher, ids: SampleIds
    ) -> None:
        self._name, self._header, self._entry, self._cipher, self._ids = name, header, entry, cipher, ids
        self._slots: NDArray[np.int32] | None = None

    def read(
        self, folder: Folder, samples_B: NDArray[np.int64], rows: NDArray[np.intp], out: NDArray[np.uint8]
    ) -> None:
        if self._slots is None:
            # Four bytes per sample are kept; the pseudonyms themselves are derived again when needed.
            self._slots = self._ids.order(self._entry.first, self._entry.count, self._header.block)[1].astype(np.int32)
        samples = samples_B.tolist()
        slots = self._slots[samples_B - self._entry.first].tolist()
        head, length = self._header.num_bytes, self._header.record_bytes
        records = folder.ranges(self._name, [head + slot * length for slot in slots], length)
        for row, slot, name, record in zip(rows.tolist(), slots, self._ids.of(samples), records, strict=True):
            patches = self._cipher.open(record, name, slot)
            if patches is None:
                ids = self._ids.order(self._entry.first, self._entry.count, self._header.block)[0]
                raise self._cipher.diagnose(record, slot, ids, f"{folder.name}/{self._name}")
            out[row] = np.frombuffer(patches, np.uint8)


def _entry_for(folder: Folder, signed: SignedManifest, node: PublicIdentity) -> StoreEntry:
    """Return the entry of the store in a folder; if one node holds several, the first header tells which.

    Raises
    ------
    WrongNodeKey
        If no store was made for this node.
    """
    mine = [entry for entry in signed.manifest.stores if entry.node == str(node)]
    if not mine:
        raise WrongNodeKey(f"{folder.name}: this store was not made for node {node.fingerprint}")
    file = segment_file(signed.manifest.epoch, 0)
    if len(mine) > 1:
        # It only chooses among entries; the header that it comes from is checked afterwards.
        with contextlib.suppress(StoreNotFound):
            header = folder.ranges(file, [0], min(folder.size(file), STORE_AT.stop))[0]
            mine = [entry for entry in mine if entry.store == header[STORE_AT]] or mine
    return mine[0]
