"""Digests of an owner's images, by their content, so that no image is sealed twice when images are appended.

``contents.psl`` in the owner's folder holds a digest of each sample, in order, sealed to the owner: nobody else can ask
whether an image is in the dataset. It covers at least the manifest's samples; if it is missing or shorter, as for
datasets sealed by earlier versions, the digests are made from the stores.

Shape suffixes: B samples, P positions, C channels, h and w pixels of a patch.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from psl_flower.errors import KeyMismatch, StoreNotFound
from psl_flower.patches.cutting import Chunk, PixelSums
from psl_flower.patches.grid import PatchGrid
from psl_flower.patches.store import read_all_positions
from psl_flower.sealed import envelope
from psl_flower.sealed.data_keys import open_root_as_owner
from psl_flower.sealed.folder import Folder
from psl_flower.sealed.identities import Identity
from psl_flower.sealed.labels import LabelBook
from psl_flower.sealed.manifest import Manifest, SignedManifest
from psl_flower.sealed.restore import close_all, open_all
from psl_flower.sealed.suite import Purpose, context
from psl_flower.system.files import DISK, Disk, read_file, write_file

FILE = "contents.psl"
KIND = envelope.DocumentKind(b"PSLCONTS", Purpose.SIGN_CONTENTS, "list of contents")
DIGEST_BYTES = 16
_BATCH = 256


class _Contents(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The digests of all samples, one after another, sealed to the owner."""

    dataset: bytes
    digests: bytes


def digests_of(patches_BPChw: NDArray[np.uint8]) -> list[bytes]:
    """Return each sample's digest of its pixels, of `DIGEST_BYTES` bytes."""
    return [hashlib.blake2b(p.tobytes(), digest_size=DIGEST_BYTES).digest() for p in patches_BPChw]


def split_digests(joined: bytes) -> list[bytes]:
    """Return digests that were written one after another."""
    return [joined[k : k + DIGEST_BYTES] for k in range(0, len(joined), DIGEST_BYTES)]


def write_contents(out: Path, manifest: Manifest, owner: Identity, digests: Sequence[bytes], disk: Disk = DISK) -> None:
    """Write the digests of a dataset's samples; those beyond what the manifest then holds do not count."""
    box = owner.public.seal(b"".join(digests), context(Purpose.CONTENTS_FOR_OWNER, manifest.dataset))
    document = envelope.encode(_Contents(dataset=manifest.dataset, digests=box))
    write_file(out / FILE, envelope.sign(KIND, document, [owner]), mode=0o600, disk=disk)


def read_contents(out: Path, signed: SignedManifest, owner: Identity, folders: Sequence[Folder]) -> list[bytes]:
    """Return the digests of a dataset's samples, in order; made from its stores where they are not written down.

    Raises
    ------
    KeyMismatch
        If the file is another owner's, or of another dataset.
    StoreError
        If it is damaged; without it, if a store is not where it was or is damaged.
    """
    manifest, where = signed.manifest, str(out / FILE)
    try:
        parsed = envelope.parse(KIND, read_file(out / FILE, limit=envelope.MAX_BYTES), where)
    except StoreNotFound:
        return list(_from_stores(signed, owner, folders))
    document = envelope.decode(parsed.payload, _Contents, where)
    plain = owner.open(document.digests, context(Purpose.CONTENTS_FOR_OWNER, manifest.dataset))
    if not parsed.signed_by(owner.public) or plain is None:
        raise KeyMismatch(f"{where}: is another owner's, or another dataset's")
    found = split_digests(plain)[: manifest.num_samples]
    return found if len(found) == manifest.num_samples else list(_from_stores(signed, owner, folders))


def _from_stores(signed: SignedManifest, owner: Identity, folders: Sequence[Folder]) -> Iterator[bytes]:
    manifest = signed.manifest
    with open_root_as_owner(manifest, owner) as root:
        stores = open_all(signed, list(zip(folders, manifest.stores, strict=True)), root)
    try:
        for start in range(0, manifest.num_samples, _BATCH):
            samples_B = np.arange(start, min(start + _BATCH, manifest.num_samples), dtype=np.int64)
            yield from digests_of(read_all_positions(stores, samples_B))
    finally:
        close_all(stores)


class OnlyNew:
    """Passes on those samples that a dataset does not hold yet, whichever split they are in now.

    `digests` are those of the dataset's samples, in order; `owner` reads its labels. `skip` new samples are passed
    over, which an interrupted run has sealed already.

    Attributes
    ----------
    passed : Counter[tuple[str, int]]
        Samples that were not passed on, by split and label as they come now.
    relabelled : dict[int, int]
        Those of them that the dataset holds under another label: their numbers in it, and the labels as they come now.
    """

    def __init__(self, out: Path, signed: SignedManifest, owner: Identity, digests: Sequence[bytes], skip: int) -> None:
        labels_N = LabelBook(out).read(signed.manifest, owner).labels_N
        self._labels = labels_N.tolist()
        self._numbers = {found: number for number, found in enumerate(digests)}
        self._new: dict[bytes, str] = {}
        self._skip = skip
        self._grid: PatchGrid = signed.manifest.grid.patch_grid
        self.passed: Counter[tuple[str, int]] = Counter()
        self.relabelled: dict[int, int] = {}

    def __call__(self, chunk: Chunk) -> Chunk:
        """Return the new samples of a chunk; may be none."""
        kept = []
        for b, (found, label) in enumerate(zip(digests_of(chunk.patches_BPChw), chunk.labels_B.tolist(), strict=True)):
            if found in self._numbers:
                self.passed[chunk.split, label] += 1
                if self._labels[number := self._numbers[found]] != label:
                    self.relabelled[number] = label
            elif self._new.setdefault(found, chunk.split) != chunk.split:
                # New, but in both splits: it is trained on, and would tell nothing in a test.
                self.passed[chunk.split, label] += 1
            elif self._skip:
                self._skip -= 1
            else:
                kept.append(b)
        if len(kept) == len(chunk.labels_B):
            return chunk
        patches_BPChw = chunk.patches_BPChw[kept]
        pixels = PixelSums.zero(patches_BPChw.shape[2])
        if kept and chunk.split == "train":
            pixels = PixelSums.of(self._grid.merge(patches_BPChw).astype(np.uint8, copy=False))
        return replace(chunk, labels_B=chunk.labels_B[kept], patches_BPChw=patches_BPChw, pixels=pixels)
