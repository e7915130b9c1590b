"""What cutting images into patches asks of a source of images, and clear errors where their sizes differ."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from psl_flower.errors import DataError, GridError

# Looked at after a refusal only; more would take long where images come from the hub.
_LOOKED_AT = 1000


class Source(Protocol):
    """Images and labels to ingest; `psl_flower.data.sources.ImageSource` is one."""

    @property
    def name(self) -> str:
        """What people call it."""
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

    def samples(self, split: str, start: int = 0) -> Iterator[tuple[NDArray[np.uint8], int]]:
        """Yield (image (H, W, C), label) from `start` on."""
        ...


@contextmanager
def explain_sizes(source: Source) -> Iterator[None]:
    """Make a grid of the first image's size within; where it is refused and the sizes differ, that is the error.

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
        sizes = (image_HWC.shape[:2] for image_HWC, _ in islice(source.samples("train"), _LOOKED_AT))
        first = next(sizes)
        other = next((size for size in sizes if size != first), None)
        if other is None:
            raise
        raise DataError(
            f"{source.name}: the images differ in size: {first[0]}x{first[1]} and {other[0]}x{other[1]}, for instance "
            "(height x width); set image-size to bring all of them to one size"
        ) from error


def half_of(source: Source) -> tuple[int, int]:
    """Return half the size of a source's images, rounded up: a patch size that gives 2x2 patches."""
    for image_HWC, _ in source.samples("train"):
        return -(-image_HWC.shape[0] // 2), -(-image_HWC.shape[1] // 2)
    raise DataError(f"{source.name}: there is no training image")
