"""A patch store without encryption: one folder, its description and one raw file of patches.

    <store>/meta.json     StoreMeta
    <store>/patches.u8    num_samples records of K*C*h*w bytes, in sample order, nothing else
    <store>/noise.key     32 random bytes for the noise on codes, made when first needed; its user's alone

Shape suffixes: B batch, N samples, K positions of this Upper, C channels, h and w pixels of a patch with its
margin.
"""

from __future__ import annotations

import secrets
from math import prod
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from psl_flower.errors import StoreError
from psl_flower.patches.store import StoreMeta, check_patches, check_samples
from psl_flower.protection.noise import KEY_BYTES
from psl_flower.system.files import NewFile, disk_errors, locked, open_to_others, read_file, write_file
from psl_flower.system.folders import NewFolder
from psl_flower.system.records import read_record

META_FILE = "meta.json"
PATCHES_FILE = "patches.u8"
NOISE_FILE = "noise.key"


class PlainStore:
    """The patches of one Upper, memory-mapped from a folder; implements `PatchStore`.

    Raises
    ------
    StoreError
        If a file is missing or unreadable, the description is damaged, or the patches' file is not exactly as
        long as the description says.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._meta = read_record(path / META_FILE, StoreMeta)
        _check_meta(self._meta, str(path / META_FILE))
        record = _record_shape(self._meta)
        patches_path = path / PATCHES_FILE
        with disk_errors(patches_path, "read", StoreError):
            found = patches_path.stat().st_size
            expected = self._meta.num_samples * prod(record)
            if found != expected:
                raise StoreError(
                    f"{patches_path}: the store is damaged: expected {expected} bytes "
                    f"({self._meta.num_samples} samples), found {found}"
                )
            shape = (self._meta.num_samples, *record)
            self._patches_NKChw: NDArray[np.uint8] | None
            if expected:
                self._patches_NKChw = np.memmap(patches_path, np.uint8, "r", shape=shape)
            else:
                # An empty file cannot be mapped.
                self._patches_NKChw = np.empty(shape, np.uint8)

    @property
    def meta(self) -> StoreMeta:
        """What the store holds."""
        return self._meta

    def __len__(self) -> int:
        """Return the number of samples."""
        return self._meta.num_samples

    def read(self, samples_B: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return the patches (B, K, C, h, w), uint8, of the samples (B,), in their order; a copy.

        Raises
        ------
        StoreError
            If the store is closed, the indices are not a row of integers, or one is out of range.
        """
        if self._patches_NKChw is None:
            raise StoreError(f"{self._path}: the store is closed")
        check_samples(samples_B, len(self), str(self._path))
        return np.asarray(self._patches_NKChw[samples_B])

    def noise_key(self) -> bytes:
        """Return the secret of its folder, 32 bytes; made on first use.

        Raises
        ------
        StoreError
            If the store is closed, the file is not 32 bytes or others may read it, or the disk refuses.
        """
        if self._patches_NKChw is None:
            raise StoreError(f"{self._path}: the store is closed")
        path = self._path / NOISE_FILE
        if not path.exists():
            try:
                with locked(self._path / ".lock"):
                    if not path.exists():
                        write_file(path, secrets.token_bytes(KEY_BYTES), StoreError, mode=0o600)
            except StoreError as error:
                raise StoreError(
                    f"{path}: code-noise needs a secret here, and none can be made ({error}); let this user write to "
                    "the folder once"
                ) from error
        key = read_file(path, StoreError, limit=KEY_BYTES)
        if len(key) != KEY_BYTES:
            raise StoreError(f"{path}: the secret is damaged: expected {KEY_BYTES} bytes, found {len(key)}; restore it")
        if mode := open_to_others(path):
            raise StoreError(f"{path} may be read by others (mode {mode}); do: chmod 600 {path}")
        return key

    def close(self) -> None:
        """Release the file; reading afterwards raises StoreError. Closing twice is harmless."""
        self._patches_NKChw = None


class PlainStoreWriter:
    """Fills one plain store by streamed appends.

    Its folder appears complete, with `finish`, or not at all. Parent folders are made; the store's own must not exist.
    `finish` insists on exactly `meta.num_samples` samples.

    Raises
    ------
    StoreError
        If the description contradicts itself, the folder exists already or cannot be made.
    """

    def __init__(self, path: Path, meta: StoreMeta) -> None:
        _check_meta(meta, str(path))
        self._path = path
        self._meta = meta
        self._record = _record_shape(meta)
        self._num_written = 0
        self._open = True
        self._folder = NewFolder(path, private=False)
        self._made = self._folder.make()
        try:
            self._file = NewFile(self._made / PATCHES_FILE, mode=0o666)
        except BaseException:
            self._folder.abort()
            raise

    def append(self, patches_BKChw: NDArray[np.uint8]) -> None:
        """Append the patches (B, K, C, h, w), uint8, of B further samples.

        Raises
        ------
        StoreError
            If the shape or dtype is not the store's, there are more samples than stated, the writer is
            finished or aborted, or the disk refuses.
        """
        self._require_open()
        check_patches(patches_BKChw, self._record, str(self._path))
        if self._num_written + len(patches_BKChw) > self._meta.num_samples:
            raise StoreError(
                f"{self._path}: expected {self._meta.num_samples} samples, "
                f"got {self._num_written + len(patches_BKChw)} or more"
            )
        self._file.write(np.ascontiguousarray(patches_BKChw).reshape(-1).data)
        self._num_written += len(patches_BKChw)

    def finish(self) -> None:
        """Make the store durable (fsync, rename) and visible.

        Raises
        ------
        StoreError
            If samples are missing, the folder has appeared meanwhile, or the disk refuses; the writer stays
            open, to be aborted.
        """
        self._require_open()
        if self._num_written != self._meta.num_samples:
            raise StoreError(f"{self._path}: expected {self._meta.num_samples} samples, got {self._num_written}")
        self._file.commit()
        write_file(self._made / META_FILE, msgspec.json.encode(self._meta), mode=0o666)
        self._folder.commit()
        self._open = False

    def abort(self) -> None:
        """Drop what was written. Harmless after `finish` or a former `abort`."""
        self._open = False
        self._file.abort()
        self._folder.abort()

    def _require_open(self) -> None:
        if not self._open:
            raise StoreError(f"{self._path}: the writer is finished or aborted")


def _record_shape(meta: StoreMeta) -> tuple[int, int, int, int]:
    return (len(meta.positions), *meta.patch_shape)


def _check_meta(meta: StoreMeta, where: str) -> None:
    ascending = all(a < b for a, b in zip(meta.positions, meta.positions[1:], strict=False))
    if not meta.positions or meta.positions[0] < 0 or not ascending:
        raise StoreError(f"{where}: expected ascending grid positions from 0 on, found {meta.positions}")
    if min(meta.patch_shape) < 1 or meta.num_samples < 0 or meta.upper < 0:
        raise StoreError(
            f"{where}: expected positive sizes, found patch shape {meta.patch_shape}, "
            f"{meta.num_samples} samples, Upper {meta.upper}"
        )
