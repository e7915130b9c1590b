"""The interface of a patch store: positions of one Upper, read by sample index.

Shape suffixes: B batch, P positions of all Uppers, K positions of this Upper, C channels, h and w pixels of a patch
with its margin.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import msgspec
import numpy as np
from numpy.typing import NDArray

from psl_flower.errors import StoreError


class StoreMeta(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A store's metadata."""

    dataset: str  #: Fingerprint of the dataset, grid and assignment that the store belongs to (hex digits).
    upper: int  #: Index of the Upper whose patches these are.
    positions: tuple[int, ...]  #: Grid positions held, ascending; K of them.
    patch_shape: tuple[int, int, int]  #: (C, h, w), the margin included.
    num_samples: int  #: Images, over all splits.
    epoch: int = 0  #: Generation of a sealed store's keys, from 1, the same for all stores of a set. 0 if unsealed.


@runtime_checkable
class PatchStore(Protocol):
    """The patches of some grid positions of every image, in sample order."""

    @property
    def meta(self) -> StoreMeta:
        """What the store holds."""
        ...

    def __len__(self) -> int:
        """Return the number of samples."""
        ...

    def read(self, samples_B: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return the patches (B, K, C, h, w) of the given sample indices, in their order.

        Raises
        ------
        StoreError
            If an index is out of range or the data is damaged.
        """
        ...

    def noise_key(self) -> bytes:
        """Return 32 secret bytes, the same at every opening and known to its node alone, for noise on codes.

        Raises
        ------
        StoreError
            If the store is closed, or the secret cannot be kept or read.
        """
        ...

    def close(self) -> None:
        """Release files; reading afterwards raises StoreError."""
        ...


def read_all_positions(stores: Sequence[PatchStore], samples_B: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Return all patches (B, P, C, h, w) of the given sample indices, from all stores of a set.

    Raises
    ------
    StoreError
        If an index is out of range or the data is damaged.
    """
    num_patches = sum(len(store.meta.positions) for store in stores)
    patches_BPChw = np.empty((len(samples_B), num_patches, *stores[0].meta.patch_shape), np.uint8)
    for store in stores:
        patches_BPChw[:, list(store.meta.positions)] = store.read(samples_B)
    return patches_BPChw


def check_samples(samples_B: NDArray[np.integer[Any]], num_samples: int, where: str) -> None:
    """Raise StoreError unless these are a row of indices of a store's samples."""
    if samples_B.ndim != 1 or samples_B.dtype.kind not in "iu":
        raise StoreError(f"{where}: expected a row of integer sample indices, got {samples_B.dtype} {samples_B.shape}")
    outside = samples_B[(samples_B < 0) | (samples_B >= num_samples)]
    if outside.size:
        raise StoreError(f"{where}: sample {outside[0]} is outside the {num_samples} samples of the store")


def check_patches(patches_BKChw: NDArray[np.uint8], shape: tuple[int, ...], where: str) -> None:
    """Raise StoreError unless these are uint8 patches (B, K, C, h, w) of a store's `shape` (K, C, h, w)."""
    if patches_BKChw.dtype != np.uint8 or patches_BKChw.shape[1:] != shape:
        raise StoreError(
            f"{where}: expected uint8 patches (B, {', '.join(map(str, shape))}), "
            f"got {patches_BKChw.dtype} {patches_BKChw.shape}"
        )


def store_folder(folder: Path, upper: int) -> Path:
    """Return the place of an Upper's store beside the others of its set."""
    return folder / f"store-{upper:03d}"
