"""Cuts a dataset's images into patches and fills one patch store per Upper.

Shape suffixes: N samples of all splits, B batch, P positions of the grid, K positions of one Upper, H and W
pixels of the image, C channels, h and w pixels of a patch.
"""

from __future__ import annotations

import dataclasses
import math
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from itertools import islice
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from psl_flower.data.images import resize_image
from psl_flower.data.sources import ImageSource
from psl_flower.errors import DataError, StoreError
from psl_flower.patches.assignment import assign
from psl_flower.patches.description import StoreSetDescription
from psl_flower.patches.store import StoreMeta, store_folder
from psl_flower.stores.grid_choice import grid_reason, request_grid
from psl_flower.stores.plain import PlainStoreWriter
from psl_flower.stores.store_set import LABELS_FILE, MANIFEST_FILE, StoreRequest, StoreSet, load_set
from psl_flower.system.files import make_ignored_folder, sync_folder, write_atomically

__all__ = ["Progress", "StoreRequest", "StoreSet", "ensure_stores"]

Progress = Callable[[str, int, int], None]

_SPLITS = ("train", "test")
_CHUNK_IMAGES = 256
_CHUNK_BYTES = 32 * 2**20
_LOCK_TIMEOUT_S = 3600.0


def ensure_stores(root: Path, request: StoreRequest, progress: Progress | None = None) -> StoreSet:
    """Return the set of stores for a request, making it first if there is none.

    A complete set is reused without decoding an image. What an interrupted run left is cleaned away and made
    again. Several processes may call this at once: one makes the set, the others wait for it.

    Parameters
    ----------
    root : Path
        Folder of all sets; made if missing.
    request : StoreRequest
        What to cut, and how.
    progress : Callable, optional
        Called as progress(stage, done, total) after every chunk of images; stage is "train" or "test".

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
    with disk_errors(folder):
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
    folder: Path, request: StoreRequest, source: ImageSource, fingerprint: str, progress: Progress | None
) -> None:
    channels = int(next(source.samples("train"))[0].shape[2])
    grid = request_grid(folder, request, source)
    assignment = assign(grid, request.num_uppers or grid.num_patches, request.assignment)
    num_train, num_test = source.num_samples("train"), source.num_samples("test")
    positions = [tuple(p for p, owner in enumerate(assignment) if owner == m) for m in range(max(assignment) + 1)]
    labels_N = np.empty(num_train + num_test, np.int64)
    sums_C, squares_C = np.zeros(channels, np.int64), np.zeros(channels, np.int64)

    writers: list[PlainStoreWriter] = []
    try:
        for m, held in enumerate(positions):
            meta = StoreMeta(
                dataset=fingerprint,
                upper=m,
                positions=held,
                patch_shape=(channels, *grid.patch_size),
                num_samples=num_train + num_test,
            )
            writers.append(PlainStoreWriter(store_folder(folder, m), meta))
        done = 0
        resize = request.image_size != (0, 0)
        for split, images_BCHW, labels_B in _chunks(source, grid.image_size, channels, resize=resize):
            patches_BPChw = grid.split(images_BCHW).astype(np.uint8, copy=False)
            for writer, held in zip(writers, positions, strict=True):
                writer.append(patches_BPChw[:, list(held)])
            labels_N[done : done + len(labels_B)] = labels_B
            done += len(labels_B)
            if split == "train":
                # A squared pixel fits 16 bits, so int64 holds the sum over 2**47 pixels exactly.
                sums_C += images_BCHW.sum(axis=(0, 2, 3), dtype=np.int64)
                squares_C += np.square(images_BCHW, dtype=np.uint16).sum(axis=(0, 2, 3), dtype=np.int64)
            if progress:
                progress(split, done if split == "train" else done - num_train, source.num_samples(split))
        for writer in writers:
            writer.finish()
    finally:
        for writer in writers:
            writer.abort()
    _save_labels(folder / LABELS_FILE, labels_N)
    sync_folder(folder)
    mean, std = _statistics(sums_C, squares_C, num_train * math.prod(grid.image_size))
    StoreSetDescription(
        dataset=request.dataset,
        fingerprint=fingerprint,
        source=fingerprint,
        image_size=grid.image_size,
        channels=channels,
        patch_size=grid.patch_size,
        stride=grid.stride,
        fit=grid.fit,
        assignment=assignment,
        class_names=source.class_names,
        splits={"train": ((0, num_train),), "test": ((num_train, num_train + num_test),)},
        mean=mean,
        std=std,
    ).save(folder / MANIFEST_FILE)
    sync_folder(folder.parent)


def _chunks(
    source: ImageSource, size: tuple[int, int], channels: int, *, resize: bool
) -> Iterator[tuple[str, NDArray[np.uint8], NDArray[np.int64]]]:
    """Yield (split, images (B, C, H, W), labels (B,)), training images first."""
    most = max(1, min(_CHUNK_IMAGES, _CHUNK_BYTES // (size[0] * size[1] * channels)))
    for split in _SPLITS:
        sized = _sized(source.name, split, source.samples(split), size, resize=resize)
        while chunk := list(islice(sized, most)):
            images_BHWC = np.stack([image for image, _ in chunk])
            labels_B = np.array([label for _, label in chunk], np.int64)
            yield split, np.ascontiguousarray(images_BHWC.transpose(0, 3, 1, 2)), labels_B


def _sized(
    name: str,
    split: str,
    samples: Iterator[tuple[NDArray[np.uint8], int]],
    size: tuple[int, int],
    *,
    resize: bool,
) -> Iterator[tuple[NDArray[np.uint8], int]]:
    for image_HWC, label in samples:
        if resize:
            yield resize_image(image_HWC, size), label
        elif image_HWC.shape[:2] == size:
            yield image_HWC, label
        else:
            (height, width), found = size, image_HWC.shape
            raise DataError(
                f"{name}: the images differ in size: {height}x{width} and, in split {split!r}, "
                f"{found[0]}x{found[1]} "
                "(height x width); set image-size to bring all of them to one size"
            )


def _statistics(
    sums_C: NDArray[np.int64], squares_C: NDArray[np.int64], num_pixels: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation per channel, in 0..1; exact until the last division."""
    mean, std = [], []
    for total, squares in zip(sums_C.tolist(), squares_C.tolist(), strict=True):
        mean.append(total / (num_pixels * 255))
        std.append(float(np.sqrt((num_pixels * squares - total**2) / num_pixels**2)) / 255)
    return tuple(mean), tuple(std)


def _save_labels(path: Path, labels_N: NDArray[np.int64]) -> None:
    path.parent.mkdir()
    encoded = BytesIO()
    np.save(encoded, labels_N, allow_pickle=False)
    write_atomically(path, encoded.getvalue())


@contextmanager
def lock_set(folder: Path) -> Iterator[None]:
    """Hold a set of stores against other processes that would make it.

    Raises
    ------
    StoreError
        If another process takes over an hour.
    """
    path = folder.with_name(f".{folder.name}.lock")
    try:
        with FileLock(path, timeout=_LOCK_TIMEOUT_S):
            yield
    except Timeout as error:
        raise StoreError(f"{path}: another process has been ingesting for over an hour; end it, or wait") from error


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turn what the system refuses into a StoreError that names the file, or the set's folder."""
    try:
        yield
    except OSError as error:
        raise StoreError(f"{error.filename or folder}: cannot make the stores: {error.strerror or error}") from error
