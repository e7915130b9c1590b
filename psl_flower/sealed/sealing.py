"""Makes one generation of a sealed dataset: segments in every store, then labels, then the manifest.

The owner's manifest is the commit point. What comes before it is either invisible to readers (segments that
no manifest names) or a copy of what will be committed. After every segment a signed draft is saved, so that
an interrupted sealing is continued, and ends with the same manifest to the byte.

Shape suffixes: B batch, P positions of the grid, C channels, h and w pixels of a patch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from psl_flower.errors import KeyMismatch, StoreNotFound
from psl_flower.patches.assignment import positions_by_upper
from psl_flower.patches.cutting import Chunk
from psl_flower.sealed import data_keys, envelope, shares
from psl_flower.sealed import manifest as manifests
from psl_flower.sealed.contents import digests_of, split_digests
from psl_flower.sealed.folder import Folder
from psl_flower.sealed.identities import Identity, PublicIdentity
from psl_flower.sealed.labels import LabelBook
from psl_flower.sealed.manifest import DRAFT_FILE, LOCK_FILE, Manifest, SignedManifest, SplitRange
from psl_flower.sealed.secret import Secret
from psl_flower.sealed.segment import SegmentWriter
from psl_flower.sealed.suite import Purpose, context
from psl_flower.system.files import DISK, Disk, disk_errors, locked, read_file, write_file

KIND = envelope.DocumentKind(b"PSLDRAFT", Purpose.SIGN_DRAFT, "draft")
MAX_SEGMENT_SAMPLES = 16384
_SEGMENT_BYTES = 256 << 20
_BLOCK_BYTES = 64 << 20
_MAX_BLOCK, _MIN_BLOCK = 4096, 16


class Draft(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A generation in the making."""

    manifest: Manifest  #: Future manifest, with the segments finished so far.
    source: str  #: Source that the samples are taken from.
    labels: bytes = b""  #: Labels of the new samples so far (u32 each), sealed to the owner; empty for a rotation.
    #: Digests of the new samples so far (16 bytes each), sealed to the owner; empty for a rotation, and in drafts of
    #: earlier versions.
    contents: bytes = b""
    #: Whether images are numbered in the secret order (`numbering`), not in that of their source.
    secret_order: bool = False


class Sealing:
    """One generation in the making.

    `out` is the owner's folder: manifest, draft, labels. The stores' folders and data keys are in order; `close` wipes
    the keys. `snapshot` (N,) has the labels of all samples, to be repeated for new readers (a rotation).
    """

    def __init__(
        self,
        out: Path,
        draft: Draft,
        owner: Identity,
        keys: list[Secret],
        folders: list[Folder],
        *,
        snapshot: NDArray[np.int64] | None = None,
        disk: Disk = DISK,
    ) -> None:
        self._out, self._owner, self._keys, self._folders, self._disk = out, owner, keys, folders, disk
        self._begun, self._snapshot = draft, snapshot
        self._manifest = draft.manifest
        self._labels = bytearray(_open(draft, draft.labels, Purpose.LABELS_FOR_OWNER, owner))
        self._contents = bytearray(_open(draft, draft.contents, Purpose.CONTENTS_FOR_OWNER, owner))
        self._writers: list[SegmentWriter] = []
        self._in_segment = 0
        self._splits = list(draft.manifest.splits)
        self._pixels = draft.manifest.pixels

    @property
    def done(self) -> int:
        """Samples added, those of earlier generations included."""
        return sum(part.count for part in self._manifest.stores[0].segments) + self._in_segment

    @property
    def new_contents(self) -> list[bytes]:
        """Digests of this generation's samples so far."""
        return split_digests(bytes(self._contents))

    @property
    def room(self) -> int:
        """Samples that still fit into the current segment; a batch must not be larger."""
        return self._manifest.segment_samples - self._in_segment

    def add(self, patches_BPChw: NDArray[np.uint8]) -> None:
        """Add B samples, at most `room`, to all stores."""
        assert 0 < len(patches_BPChw) <= self.room
        if not self._writers:
            first, number = self.done, len(self._manifest.stores[0].segments)
            for folder, store, key in zip(self._folders, self._manifest.stores, self._keys, strict=True):
                self._writers.append(SegmentWriter(folder, self._manifest, store, key, segment=number, first=first))
        for writer, store in zip(self._writers, self._manifest.stores, strict=True):
            writer.append(np.ascontiguousarray(patches_BPChw[:, list(store.positions)]))
        self._in_segment += len(patches_BPChw)
        if self.room == 0:
            self._finish_segment()

    def add_chunk(self, chunk: Chunk) -> None:
        """Add new samples, at most `room`, with their labels and the sums of their pixels."""
        last = self._splits[-1] if self._splits else None
        if last is not None and last.name == chunk.split:
            self._splits[-1] = msgspec.structs.replace(last, count=last.count + len(chunk.labels_B))
        else:
            self._splits.append(SplitRange(name=chunk.split, first=self.done, count=len(chunk.labels_B)))
        self._labels += chunk.labels_B.astype("<u4").tobytes()
        self._contents += b"".join(digests_of(chunk.patches_BPChw))
        self._pixels += chunk.pixels
        self.add(chunk.patches_BPChw)

    def commit(self) -> SignedManifest:
        """Finish the segments, write labels and manifest; the draft stays until `drop_draft`."""
        self._finish_segment()
        labels, book = np.frombuffer(bytes(self._labels), "<u4").astype(np.int64), LabelBook(self._out, self._disk)
        number, found = self._manifest.labels_version, self._manifest.labels_digest
        if self._snapshot is not None:
            number, found = book.add_snapshot(self._manifest, self._owner, self._snapshot, "rotation")
        elif len(labels):
            first = self._manifest.num_samples - len(labels)
            number, found = book.add_images(self._manifest, self._owner, first=first, labels=labels)
        self._manifest = msgspec.structs.replace(self._manifest, labels_version=number, labels_digest=found)
        signed = manifests.sign(self._manifest, self._owner)
        for folder in self._folders:
            folder.write(manifests.FILE, signed.data)
        write_file(self._out / manifests.FILE, signed.data, mode=0o644, disk=self._disk)
        return signed

    def close(self) -> None:
        """Drop an unfinished segment and forget the keys. What `commit` made stays."""
        for writer in self._writers:
            writer.abort()
        self._writers.clear()
        for key in self._keys:
            key.wipe()

    def save(self) -> None:
        """Save the draft."""
        labels, contents = (
            self._owner.public.seal(bytes(plain), _info(self._manifest, purpose)) if plain else b""
            for plain, purpose in (
                (self._labels, Purpose.LABELS_FOR_OWNER),
                (self._contents, Purpose.CONTENTS_FOR_OWNER),
            )
        )
        draft = msgspec.structs.replace(self._begun, manifest=self._manifest, labels=labels, contents=contents)
        data = envelope.sign(KIND, envelope.encode(draft), [self._owner])
        write_file(self._out / DRAFT_FILE, data, mode=0o600, disk=self._disk)

    def _finish_segment(self) -> None:
        if not self._writers:
            return
        stores = []
        for writer, store in zip(self._writers, self._manifest.stores, strict=True):
            writer.finish()
            stores.append(msgspec.structs.replace(store, segments=(*store.segments, writer.entry)))
        self._writers.clear()
        self._in_segment = 0
        self._manifest = msgspec.structs.replace(
            self._manifest, stores=tuple(stores), splits=tuple(self._splits), pixels=self._pixels
        )
        self._manifest = msgspec.structs.replace(self._manifest, num_samples=self.done)
        self.save()


def new_epoch(
    dataset: bytes,
    epoch: int,
    owner: PublicIdentity,
    assignment: tuple[int, ...],
    nodes: Sequence[PublicIdentity],
    threshold: int,
    restorers: Mapping[str, PublicIdentity],
) -> tuple[dict[str, Any], list[Secret]]:
    """Draw all keys of an epoch; return the fields of the manifest that change with them, and the stores' data keys.

    Raises
    ------
    ConfigError
        If threshold and restorers do not fit each other.
    """
    with Secret.random() as root:
        made = [
            data_keys.new_store(root, dataset, epoch, m, positions, node)
            for m, (positions, node) in enumerate(zip(positions_by_upper(assignment), nodes, strict=True))
        ]
        fields = {
            "epoch": epoch,
            "assignment": assignment,
            "stores": tuple(entry for entry, _ in made),
            "threshold": threshold,
            "restorers": shares.deal(root, dataset, epoch, threshold, restorers),
            "root_commitment": data_keys.root_commitment(root, dataset, epoch),
            "root_for_owner": data_keys.root_for_owner(root, owner, dataset, epoch),
        }
    return fields, [key for _, key in made]


def load_draft(out: Path, owner: PublicIdentity) -> Draft | None:
    """Return the draft that an interrupted sealing left, or None; raises KeyMismatch if it is another owner's."""
    try:
        data = read_file(out / DRAFT_FILE, limit=envelope.MAX_BYTES)
    except StoreNotFound:
        return None
    signed = envelope.parse(KIND, data, str(out / DRAFT_FILE))
    if not signed.signed_by(owner):
        raise KeyMismatch(f"{out / DRAFT_FILE} was left by another owner")
    return envelope.decode(signed.payload, Draft, str(out / DRAFT_FILE))


def is_complete(out: Path) -> bool:
    """Check if a folder holds a dataset, and nothing unfinished."""
    return (out / manifests.FILE).exists() and not (out / DRAFT_FILE).exists()


def is_committed(draft: Draft, current: SignedManifest) -> bool:
    """Check if a draft was committed already, so that only the work after a commit was interrupted."""
    return draft.manifest.generation <= current.manifest.generation


def drop_draft(out: Path, disk: Disk) -> None:
    """Remove the draft, as a command's last step: repeating the command afterwards starts a new one."""
    with disk_errors(out / DRAFT_FILE, "removed"):
        disk.remove(out / DRAFT_FILE)
        disk.sync_folder(out)


def drop_committed(out: Path, owner: PublicIdentity) -> None:
    """Remove the draft of what was committed, so that labels can be corrected; any other stays.

    Raises
    ------
    KeyMismatch
        If it is another owner's.
    """
    with locked(out / LOCK_FILE):
        draft = load_draft(out, owner)
        if draft is not None and is_committed(draft, manifests.load(out, owner)):
            drop_draft(out, DISK)


def sizes(bytes_per_image: int, num_stores: int) -> tuple[int, int]:
    """Return samples per segment and per shuffled block, so that memory stays flat."""
    block = max(_MIN_BLOCK, min(_MAX_BLOCK, _BLOCK_BYTES // bytes_per_image))
    per_store = max(1, bytes_per_image // num_stores)
    return max(block, min(MAX_SEGMENT_SAMPLES, _SEGMENT_BYTES // per_store // block * block)), block


def _info(manifest: Manifest, purpose: Purpose) -> bytes:
    return context(purpose, manifest.dataset, manifest.generation)


def _open(draft: Draft, box: bytes, purpose: Purpose, owner: Identity) -> bytes:
    if not box:
        return b""
    plain = owner.open(box, _info(draft.manifest, purpose))
    if plain is None:
        raise KeyMismatch("the draft's labels and contents were not sealed to this owner")
    return plain
