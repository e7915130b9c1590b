"""Restoration: k restorers reassemble images, once the audit log records it.

Shape suffixes: B images, C channels, H and W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from psl_flower.errors import RestoreRefused
from psl_flower.patches.store import read_all_positions
from psl_flower.sealed import shares
from psl_flower.sealed.audit import AuditLog
from psl_flower.sealed.data_keys import open_under_root
from psl_flower.sealed.folder import Folder
from psl_flower.sealed.identities import Identity
from psl_flower.sealed.manifest import Manifest, SignedManifest, StoreEntry
from psl_flower.sealed.matching import match_all
from psl_flower.sealed.secret import Secret
from psl_flower.sealed.seen import SeenBook
from psl_flower.sealed.store import SealedStore
from psl_flower.sealed.verify import check_copy

_BATCH = 64


def restore(
    signed: SignedManifest,
    places: Sequence[str | Path],
    restorers: Sequence[Identity],
    images: Sequence[int],
    *,
    why: str,
    log: AuditLog,
    seen: SeenBook | None = None,
) -> Iterator[NDArray[np.uint8]]:
    """Yield the images asked for, (B, C, H, W) at a time, exactly as they were ingested.

    Everything that can be refused is refused, and the audit entry is durable, before the first image is
    yielded.

    Parameters
    ----------
    signed : SignedManifest
        The manifest.
    places : Sequence[str | Path]
        Where all stores are.
    restorers : Sequence[Identity]
        Those who take part; k or more.
    images : Sequence[int]
        Global sample indices.
    why : str
        For the log.
    log : AuditLog
        Where it is written.
    seen : SeenBook, optional
        Refuses a manifest or log older than one seen.

    Raises
    ------
    RestoreRefused
        If those present are not allowed to restore; see the subclasses.
    AuditError
        If the log cannot be trusted.
    StoreError
        If a store is missing or damaged.
    """
    manifest = signed.manifest
    if not images:
        raise RestoreRefused("no image is asked for")
    for image in images:
        manifest.description.split_of(image)
    if seen is not None:
        seen.check(signed)
    with shares.open_root_as_restorers(manifest, restorers) as root:
        stores = open_all(signed, match_all(places, manifest), root)
    try:
        log.append(signed, list({r.public: r for r in restorers}.values()), "restore", images, why, seen=seen)
    except BaseException:
        close_all(stores)
        raise
    return _images(manifest, stores, images)


def open_all(
    signed: SignedManifest,
    folders: Sequence[tuple[Folder, StoreEntry]],
    root: Secret,
    *,
    check_copies: bool = True,
) -> list[SealedStore]:
    """Open stores of a manifest by the root.

    Without `check_copies`, the manifest's copies in the stores may be of other generations, as an interrupted
    rotation leaves them; the records are held to this manifest all the same.

    Raises
    ------
    StoreError
        If one is damaged or of another generation.
    """
    stores: list[SealedStore] = []
    try:
        for folder, entry in folders:
            if check_copies:
                check_copy(folder, signed)
            with open_under_root(signed.manifest, entry, root) as data_key:
                stores.append(SealedStore(folder, signed.manifest, entry, data_key))
    except BaseException:
        close_all(stores)
        raise
    return stores


def close_all(stores: Sequence[SealedStore]) -> None:
    """Close stores."""
    for store in stores:
        store.close()


def _images(manifest: Manifest, stores: Sequence[SealedStore], images: Sequence[int]) -> Iterator[NDArray[np.uint8]]:
    grid = manifest.description.grid()
    try:
        for start in range(0, len(images), _BATCH):
            samples_B = np.asarray(images[start : start + _BATCH], np.int64)
            yield grid.merge(read_all_positions(stores, samples_B)).astype(np.uint8, copy=False)
    finally:
        close_all(stores)
