"""Cuts a dataset's images into patches and fills one patch store per Upper.

Shape suffixes: N samples of all splits.
"""

from __future__ import annotations

import dataclasses
import shutil
from contextlib import AbstractContextManager
from io import BytesIO
from pathlib import Path

import msgspec
import numpy as np

from psl_flower.data.account import FILE as ACCOUNT_FILE
from psl_flower.data.sources import ImageSource
from psl_flower.errors import StoreError
from psl_flower.patches.assignment import positions_by_upper
from psl_flower.patches.cutting import PixelSums, cut, first_image
from psl_flower.patches.store import store_folder
from psl_flower.stores.grid_choice import grid_reason, request_grid
from psl_flower.stores.plain import PlainStoreWriter
from psl_flower.stores.store_set import LABELS_FILE, MANIFEST_FILE, StoreRequest, StoreSet, load_set
from psl_flower.system.files import disk_errors, locked, write_file
from psl_flower.system.folders import make_ignored_folder
from psl_flower.text import OnProgress

__all__ = ["StoreRequest", "StoreSet", "ensure_stores"]

_LOCK_TIMEOUT_S = 3600.0


def ensure_stores(root: Path, request: StoreRequest, progress: OnProgress | None = None) -> StoreSet:
    """Return the set of stores for a request, which is made first if it is missing.

    A complete set is reused without decoding an image. An incomplete one, of an interrupted run, is removed and made
    again. Several processes may call this at once: one makes the set, the others wait for it. The folder of all sets is
    made if missing. `progress` is called as progress(stage, done, total) after every chunk of images; stage is "train"
    or "test".

    Raises
    ------
    ConfigError
        If a setting is out of range; GridError if the grid does not fit the images.
    DatasetNotFound, CorruptImage, DataError
        If the dataset is missing or not usable, or its images differ in size while no image size is stated.
    StoreError
        If the disk refuses, another process takes over an hour, or an existing set is damaged.
    """
    folder, fingerprint, source = request.locate(root)
    with disk_errors(folder, "made", StoreError):
        if (folder / MANIFEST_FILE).exists():
            return _load(folder, fingerprint, request, created=False)
        make_ignored_folder(root)
        with lock_set(folder):
            if (folder / MANIFEST_FILE).exists():
                return _load(folder, fingerprint, request, created=False)
            if folder.exists():
                shutil.rmtree(folder)
            source = source or request.open_source()
            try:
                _ingest(folder, request, source, fingerprint, progress)
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)
                raise
            return _load(folder, fingerprint, request, created=True)


def _load(folder: Path, fingerprint: str, request: StoreRequest, *, created: bool) -> StoreSet:
    stores = load_set(folder, fingerprint, created=created)
    return dataclasses.replace(stores, grid_reason=grid_reason(folder, request))


def _ingest(
    folder: Path, request: StoreRequest, source: ImageSource, fingerprint: str, progress: OnProgress | None
) -> None:
    images = request.sized(source)
    grid, channels = request_grid(folder, request, source), first_image(images).shape[2]
    description = request.describe(source, grid, channels, fingerprint)
    labels_N = np.empty(description.num_samples, np.int64)
    writers: list[PlainStoreWriter] = []
    positions = [list(held) for held in positions_by_upper(description.assignment)]
    done, pixels = 0, PixelSums.zero(channels)
    try:
        for m in range(description.num_uppers):
            writers.append(PlainStoreWriter(store_folder(folder, m), description.meta_of(m)))
        for chunk in cut(images, grid, channels, progress=progress):
            for writer, held in zip(writers, positions, strict=True):
                writer.append(chunk.patches_BPChw[:, held])
            labels_N[done : done + len(chunk.labels_B)] = chunk.labels_B
            done += len(chunk.labels_B)
            pixels += chunk.pixels
        for writer in writers:
            writer.finish()
    finally:
        for writer in writers:
            writer.abort()
    encoded = BytesIO()
    np.save(encoded, labels_N, allow_pickle=False)
    write_file(folder / LABELS_FILE, encoded.getbuffer(), parents=True)
    source.account().save(folder / ACCOUNT_FILE)
    msgspec.structs.replace(description, mean=pixels.mean, std=pixels.std).save(folder / MANIFEST_FILE)


def lock_set(folder: Path) -> AbstractContextManager[None]:
    """Hold a set of stores against other processes that would make it; raises StoreError if one takes over an hour."""
    return locked(folder.with_name(f".{folder.name}.lock"), _LOCK_TIMEOUT_S)
