"""Description of a set of patch stores: grid, assignment, classes, splits, pixel statistics."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from psl_flower.errors import ConfigError, StoreError
from psl_flower.patches.assignment import positions_by_upper
from psl_flower.patches.grid import PatchGrid
from psl_flower.patches.store import StoreMeta
from psl_flower.system.records import read_record, write_record
from psl_flower.text import counted, dims

VERSION = 2


class StoreSetDescription(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The description of one set of patch stores."""

    version: int = VERSION  #: Version of this file's format.
    dataset: str  #: The dataset's name as the user gave it.
    fingerprint: str  #: Hex digits; the same in every store of the set, and in no other set.
    #: Hex digits of the images and of everything that decides the patches: the same for sets made again from the same
    #: images.
    source: str
    image_size: tuple[int, int]  #: (height, width) in pixels, as are patch size and stride.
    channels: int  #: 1 grey, 3 RGB.
    patch_size: tuple[int, int]
    stride: tuple[int, int]
    fit: Literal["exact", "pad"]  #: The grid's answer to images that it does not tile.
    margin: int = 0  #: Pixels around each patch that the stores keep (`PatchGrid`).
    assignment: tuple[int, ...]  #: Grid position p -> Upper m.
    class_names: tuple[str, ...]  #: Label k -> name.
    #: Half-open ranges of global sample indices of "train" and of "test"; several if images were added later.
    splits: dict[str, tuple[tuple[int, int], ...]]
    #: Per channel, over all pixels of the training images, pixels scaled to 0..1. A channel that never changes has a
    #: standard deviation of 0: guard the division.
    mean: tuple[float, ...]
    std: tuple[float, ...]
    #: Version of the labels that a run uses; 0 if labels have no versions, or were never corrected.
    labels_version: int = 0

    @property
    def num_uppers(self) -> int:
        """M, the number of Uppers."""
        return max(self.assignment) + 1

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return len(self.class_names)

    @property
    def num_samples(self) -> int:
        """Images, over all splits."""
        return sum(stop - start for ranges in self.splits.values() for start, stop in ranges)

    @property
    def stored_shape(self) -> tuple[int, int, int]:
        """(C, h, w) of a patch with its margin, as the stores hold it."""
        return (self.channels, *self.grid().field_size)

    def samples_of(self, split: str) -> NDArray[np.int64]:
        """Return the global indices (N,) of the samples of "train" or "test", in order; none of any other split."""
        parts = [np.arange(start, stop, dtype=np.int64) for start, stop in self.splits.get(split, ())]
        return np.concatenate([np.empty(0, np.int64), *parts])

    def split_of(self, sample: int) -> tuple[str, int]:
        """Return a sample's split and its number within it; raises ConfigError if there is no such sample."""
        for split, ranges in self.splits.items():
            before = 0
            for start, stop in ranges:
                if start <= sample < stop:
                    return split, before + sample - start
                before += stop - start
        raise ConfigError(f"there is no image {sample}; the dataset has images 0 to {self.num_samples - 1}")

    def name_of(self, sample: int) -> str:
        """Return a sample's name by split, such as "test:17"; raises ConfigError if there is no such sample."""
        split, number = self.split_of(sample)
        return f"{split}:{number}"

    def sample_of(self, split: str, number: int) -> int:
        """Return the global index of an image of a split; raises ConfigError if there is no such split or image."""
        left = number
        for start, stop in self.splits.get(split, ()):
            if 0 <= left < stop - start:
                return start + left
            left -= stop - start
        counts = ", ".join(f"{name}:0 to {name}:{len(self.samples_of(name)) - 1}" for name in self.splits)
        raise ConfigError(f"there is no image {split}:{number}; there are {counts}")

    def grid(self) -> PatchGrid:
        """Return the patch grid.

        Raises
        ------
        GridError
            If the sizes do not fit each other; a description that `load` returned does not raise.
        """
        return PatchGrid(
            image_size=self.image_size, patch_size=self.patch_size, stride=self.stride, fit=self.fit, margin=self.margin
        )

    def positions_of(self, upper: int) -> tuple[int, ...]:
        """Return the grid positions that an Upper holds, ascending; raises ConfigError if there is no such Upper."""
        if not 0 <= upper < self.num_uppers:
            raise ConfigError(f"no Upper {upper}: the stores are for Uppers 0 to {self.num_uppers - 1}")
        return positions_by_upper(self.assignment)[upper]

    def meta_of(self, upper: int) -> StoreMeta:
        """Return the metadata of an Upper's store, without the epoch of its keys; raises as `positions_of`."""
        return StoreMeta(
            dataset=self.fingerprint,
            upper=upper,
            positions=self.positions_of(upper),
            patch_shape=self.stored_shape,
            num_samples=self.num_samples,
        )

    def mismatch(self, meta: StoreMeta, upper: int) -> str:
        """Return why a store is not that of an Upper; empty if it is; raises as `positions_of`."""
        expected, reasons = self.meta_of(upper), list[str]()
        for what in ("dataset", "upper", "positions", "num_samples"):
            if getattr(meta, what) != getattr(expected, what):
                name = what.replace("_", " ")
                reasons.append(f"{name} {getattr(meta, what)}, expected {getattr(expected, what)} for Upper {upper}")
                break
        if meta.patch_shape != expected.patch_shape:
            found, wanted = dims(meta.patch_shape), dims(expected.patch_shape)
            size = dims(self.patch_size)
            reasons.append(
                f"patches of {found} (channels x height x width), expected {wanted} for Upper {upper}: patches of "
                f"{size} with a margin of {counted(self.margin, 'pixel')}"
            )
        return f"holds {'; and '.join(reasons)}" if reasons else ""

    def save(self, path: Path) -> None:
        """Write the description as JSON, durably; the file is the old one or the new one, never a part.

        Raises
        ------
        StoreError
            If the disk refuses.
        """
        write_record(path, self, StoreError)

    @classmethod
    def load(cls, path: Path) -> StoreSetDescription:
        """Read a description and check that its parts agree.

        Raises
        ------
        StoreError
            If the file is missing, unreadable, damaged, of another version, or contradicts itself.
        """
        description = read_record(path, cls)
        problem = description._contradiction()
        if problem:
            raise StoreError(f"{path}: the manifest is damaged: {problem}")
        return description

    def _contradiction(self) -> str:
        """Return the description's inconsistency, or an empty text."""
        if self.version != VERSION:
            return f"expected version {VERSION}, found {self.version}"
        try:
            num_patches = self.grid().num_patches
        except ConfigError as error:
            return str(error)
        if len(self.assignment) != num_patches:
            return f"the grid has {num_patches} positions, {len(self.assignment)} are assigned"
        holders = set(self.assignment)
        if min(holders) != 0 or max(holders) != len(holders) - 1:
            return f"the assignment {self.assignment} leaves an Upper without a position"
        if not len(self.mean) == len(self.std) == self.channels or self.channels < 1:
            return f"{self.channels} channels, {len(self.mean)} means, {len(self.std)} standard deviations"
        if self.num_classes < 2 or len(set(self.class_names)) != self.num_classes:
            return f"expected two or more different class names, found {self.num_classes}"
        if set(self.splits) != {"train", "test"}:
            return f"expected the splits train and test, found {sorted(self.splits)}"
        if not all(self.splits.values()):
            return f"expected samples of both splits, found {self.splits}"
        ranges = sorted(part for parts in self.splits.values() for part in parts)
        if any(start > stop for start, stop in ranges) or any(a[1] != b[0] for a, b in pairwise([(0, 0), *ranges])):
            return f"expected the splits to cover all samples from 0 on, each once, found {self.splits}"
        return ""
