"""Images as they come from any source: one split's labels and images, their channels and sizes.

Shape suffixes: N images of a split, R rows asked for, H and W pixels, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from psl_flower.data.account import Account, LeftOutTally
from psl_flower.data.pixels import Decoder
from psl_flower.errors import DataError
from psl_flower.patches.cutting import Source


@dataclass(frozen=True, slots=True, kw_only=True)
class RawSplit:
    """One split of a dataset, before any selection."""

    name: str  #: Name that the dataset gives it.
    labels_N: NDArray[np.int64]  #: Index into the class names; -1 where there is no label.
    #: Takes row numbers (R,) and a decoder, and yields their images, uint8 (H, W, C), one at a time; raises
    #: CorruptImage, and DataError as the decoder does.
    images: Callable[[NDArray[np.int64], Decoder], Iterator[NDArray[np.uint8]]]
    #: Returns the printable path of the image in a row; empty for an image without a file.
    path: Callable[[int], str] = lambda row: ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RawDataset:
    """A dataset before any selection."""

    class_names: tuple[str, ...]  #: Label k -> name.
    train: RawSplit  #: Training images.
    test: RawSplit | None  #: Test images; None if the training images must be divided.
    reader: str  #: Way of reading it, for its account.
    left_out: LeftOutTally = field(default_factory=LeftOutTally)  #: Items found that are in neither split.
    notes: list[str] = field(default_factory=list)  #: Further notes for its account.


def joined(splits: Sequence[RawSplit]) -> RawSplit:
    """Return splits one after another as one."""
    if len(splits) == 1:
        return splits[0]
    starts = np.cumsum([0, *(len(split.labels_N) for split in splits)])

    def images(rows_R: NDArray[np.int64], decoder: Decoder) -> Iterator[NDArray[np.uint8]]:
        which_R = np.searchsorted(starts, rows_R, side="right") - 1
        for k, run in groupby(range(len(rows_R)), key=lambda place: int(which_R[place])):
            yield from splits[k].images(rows_R[list(run)] - starts[k], decoder)

    def path(row: int) -> str:
        k = int(np.searchsorted(starts, row, side="right")) - 1
        return splits[k].path(row - int(starts[k]))

    return RawSplit(
        name="+".join(split.name for split in splits),
        labels_N=np.concatenate([split.labels_N for split in splits]),
        images=images,
        path=path,
    )


def convert_channels(image_HWC: NDArray[np.uint8], channels: int, where: str) -> NDArray[np.uint8]:
    """Convert an image's channels: grey becomes RGB by repetition, RGB becomes grey by luma.

    Raises
    ------
    DataError
        If there is no such conversion.
    """
    found = image_HWC.shape[2]
    if found == channels:
        return image_HWC
    if (found, channels) == (1, 3):
        return np.repeat(image_HWC, 3, axis=2)
    if (found, channels) == (3, 1):
        return np.asarray(Image.fromarray(image_HWC).convert("L"), np.uint8)[:, :, np.newaxis]
    raise DataError(f"{where}: has {found} channels, expected {channels}")


def resize_image(image_HWC: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Return the image at (height, width): antialiased resize until it covers them, then centre crop."""
    if image_HWC.shape[:2] == size:
        return image_HWC
    channels = image_HWC.shape[2]
    image = Image.fromarray(image_HWC[:, :, 0] if channels == 1 else image_HWC)
    fitted = ImageOps.fit(image, (size[1], size[0]), method=Image.Resampling.BILINEAR)
    return np.asarray(fitted, np.uint8).reshape(*size, channels)


class AccountedSource(Source, Protocol):
    """A source that can say what was read and what was not."""

    def account(self) -> Account:
        """Return the account, with notes on the images that were decoded so far."""
        ...


class Resized:
    """A source whose images are all brought to one size, antialiased and cropped."""

    def __init__(self, source: AccountedSource, size: tuple[int, int]) -> None:
        self._source, self._size = source, size
        self.name, self.class_names = source.name, source.class_names
        self.fingerprint = f"{source.fingerprint}@{size[0]}x{size[1]}"

    def account(self) -> Account:
        """See `psl_flower.data.sources.ImageSource`."""
        return msgspec.structs.replace(self._source.account(), image_size=self._size)

    def num_samples(self, split: str) -> int:
        """See Source."""
        return self._source.num_samples(split)

    def where(self, split: str, number: int) -> str:
        """See Source."""
        return self._source.where(split, number)

    def samples(
        self, split: str, start: int = 0, order_N: NDArray[np.int64] | None = None
    ) -> Iterator[tuple[NDArray[np.uint8], int]]:
        """See Source."""
        for image_HWC, label in self._source.samples(split, start, order_N):
            yield resize_image(image_HWC, self._size), label
