"""Cuts the images of a source into patches, a chunk at a time, for any kind of store.

Shape suffixes: N samples of a split, B samples of a chunk, P positions of the grid, H and W pixels of the image, C
channels, h and w pixels of a patch with the grid's margin.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from psl_flower.errors import DataError, GridError
from psl_flower.patches.grid import PatchGrid
from psl_flower.text import OnProgress, dims

SPLITS = ("train", "test")
_CHUNK_IMAGES = 256
_CHUNK_BYTES = 32 << 20
# Looked at after a refusal only; more would take long where images come from the hub.
_LOOKED_AT = 1000


class Source(Protocol):
    """Images and labels to ingest; `psl_flower.data.sources.ImageSource` is one."""

    @property
    def name(self) -> str:
        """Name for messages."""
        ...

    @property
    def class_names(self) -> tuple[str, ...]:
        """Label k -> name."""
        ...

    @property
    def fingerprint(self) -> str:
        """Changes with the images, their order or their labels."""
        ...

    def num_samples(self, split: str) -> int:
        """Return the number of samples of "train" or "test"."""
        ...

    def where(self, split: str, number: int) -> str:
        """Return a sample's name for errors, such as "image train:17 (cats/17.jpg)"."""
        ...

    def samples(
        self, split: str, start: int = 0, order_N: NDArray[np.int64] | None = None
    ) -> Iterator[tuple[NDArray[np.uint8], int]]:
        """Yield (image (H, W, C), label) from `start` on: as the source has them, or in the order of these numbers."""
        ...


@contextmanager
def explain_sizes(source: Source) -> Iterator[None]:
    """Wrap the making of a grid for the first image's size: report differing sizes as the cause of a refusal.

    Raises
    ------
    DataError
        If the grid is refused and the images differ in size.
    GridError
        If it is refused and they do not.
    """
    try:
        yield
    except GridError as error:
        sizes = enumerate(image_HWC.shape[:2] for image_HWC, _ in islice(source.samples("train"), _LOOKED_AT))
        _, (height, width) = next(sizes)
        other = next(((number, size) for number, size in sizes if size != (height, width)), None)
        if other is None:
            raise
        number, size = other
        raise DataError(
            f"{source.name}: the images differ in size: {source.where('train', 0)} is {height}x{width} (height x "
            f"width), {source.where('train', number)} is {size[0]}x{size[1]}; set image-size to bring all of them to "
            "one size"
        ) from error


def other_size(
    source: Source, sample: tuple[str, int], found: Sequence[int], expected: Sequence[int], axes: str
) -> DataError:
    """Return the error for a sample (split, number) whose size differs from that of the first training image."""
    like = f" like {source.where('train', 0)}" if sample != ("train", 0) else ""
    return DataError(
        f"{source.name}: {source.where(*sample)} is {dims(found)} ({axes}), expected {dims(expected)}{like}; set "
        "image-size to bring all of them to one size"
    )


def first_image(source: Source) -> NDArray[np.uint8]:
    """Return the first training image (H, W, C); raises DataError without training images."""
    for image_HWC, _ in source.samples("train"):
        return image_HWC
    raise DataError(f"{source.name}: there is no training image")


def half_of(image_size: tuple[int, int]) -> tuple[int, int]:
    """Return half an image's (height, width), rounded up: a patch size that gives 2x2 patches."""
    return -(-image_size[0] // 2), -(-image_size[1] // 2)


class PixelSums(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Exact sums over the training images' pixels (0 to 255), per channel: mean and deviation follow."""

    count: int
    sums: tuple[int, ...]
    squares: tuple[int, ...]

    @classmethod
    def zero(cls, channels: int) -> PixelSums:
        """Return the sums over no pixels."""
        return cls(count=0, sums=(0,) * channels, squares=(0,) * channels)

    @classmethod
    def of(cls, images_BCHW: NDArray[np.uint8]) -> PixelSums:
        """Return the sums over images (B, C, H, W)."""
        B, _, H, W = images_BCHW.shape
        # A squared pixel fits 16 bits, so int64 holds the sum over 2**47 pixels exactly.
        squares_C = np.square(images_BCHW, dtype=np.uint16).sum(axis=(0, 2, 3), dtype=np.int64)
        sums_C = images_BCHW.sum(axis=(0, 2, 3), dtype=np.int64)
        return cls(count=B * H * W, sums=tuple(sums_C.tolist()), squares=tuple(squares_C.tolist()))

    def __add__(self, other: PixelSums) -> PixelSums:
        """Return the sums over the pixels of both."""
        return PixelSums(
            count=self.count + other.count,
            sums=tuple(a + b for a, b in zip(self.sums, other.sums, strict=True)),
            squares=tuple(a + b for a, b in zip(self.squares, other.squares, strict=True)),
        )

    @property
    def mean(self) -> tuple[float, ...]:
        """Mean per channel, in 0..1; 0 if there are no pixels."""
        return tuple(s / (255 * max(1, self.count)) for s in self.sums)

    @property
    def std(self) -> tuple[float, ...]:
        """Standard deviation per channel, in 0..1; exact until the last division."""
        n = max(1, self.count)
        return tuple(math.sqrt((n * q - s * s) / (n * n)) / 255 for s, q in zip(self.sums, self.squares, strict=True))

    def is_sound(self, channels: int) -> bool:
        """Whether these can be sums over pixels of that many channels."""
        same = len(self.sums) == len(self.squares) == channels
        return same and all(self.count * q >= s * s for s, q in zip(self.sums, self.squares, strict=True))


@dataclass(frozen=True, slots=True)
class Chunk:
    """The patches (B, P, C, h, w) of some samples of one split, their labels (B,), and the sums of their pixels."""

    split: str
    labels_B: NDArray[np.int64]
    patches_BPChw: NDArray[np.uint8]
    pixels: PixelSums


def cut(
    source: Source,
    grid: PatchGrid,
    channels: int,
    *,
    start: int = 0,
    orders: Mapping[str, NDArray[np.int64]] | None = None,
    room: Callable[[], int] = lambda: _CHUNK_IMAGES,
    progress: OnProgress | None = None,
) -> Iterator[Chunk]:
    """Yield all samples of a source, cut into patches, training images first.

    Parameters
    ----------
    source : Source
        The images, all of the grid's image size.
    grid : PatchGrid
        How to cut.
    channels : int
        Of every image.
    start : int, optional
        Samples to pass over, counted over both splits.
    orders : mapping, optional
        Split -> numbers of its samples (N,) in the order wanted; by default that of the source.
    room : callable, optional
        Returns how many samples the next chunk may have at the most.
    progress : callable, optional
        Called as progress(split, done, total) when the consumer is done with a chunk.

    Raises
    ------
    DataError
        If an image is of another size, or has other channels.
    """
    most = max(1, min(_CHUNK_IMAGES, _CHUNK_BYTES // (math.prod(grid.image_size) * channels)))
    for split in SPLITS:
        total = source.num_samples(split)
        done = min(start, total)
        start -= done
        order_N = np.arange(total) if orders is None else orders[split]
        samples = _sized(source, split, done, order_N, (*grid.image_size, channels))
        while chunk := list(islice(samples, min(most, room()))):
            # One plane a channel, so that sums and patches read memory in order.
            images_BCHW = np.ascontiguousarray(np.stack([image for image, _ in chunk]).transpose(0, 3, 1, 2))
            yield Chunk(
                split=split,
                labels_B=np.array([label for _, label in chunk], np.int64),
                patches_BPChw=grid.split(images_BCHW).astype(np.uint8, copy=False),
                pixels=PixelSums.of(images_BCHW) if split == "train" else PixelSums.zero(channels),
            )
            done += len(chunk)
            if progress is not None:
                progress(split, done, total)


def _sized(
    source: Source, split: str, start: int, order_N: NDArray[np.int64], shape: tuple[int, int, int]
) -> Iterator[tuple[NDArray[np.uint8], int]]:
    numbers = map(int, order_N[start:])
    for number, (image_HWC, label) in zip(numbers, source.samples(split, start, order_N), strict=True):
        if image_HWC.shape != shape:
            raise other_size(source, (split, number), image_HWC.shape, shape, "height x width x channels")
        yield image_HWC, label
