"""How people name images: 17, the number over all splits, or test:17, that within one split."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from psl_flower.errors import ConfigError


class Numbered(Protocol):
    """What knows the splits of a dataset: a manifest."""

    def split_of(self, sample: int) -> tuple[str, int]:
        """Return a sample's split and its number within it; raises if there is no such sample."""
        ...

    def sample_of(self, split: str, number: int) -> int:
        """Return the global index of an image of a split; raises if there is none."""
        ...


def parse_images(texts: Sequence[str], description: Numbered) -> list[int]:
    """Read image ids: a global number, or SPLIT:NUMBER; several in one text with commas between.

    Raises
    ------
    ConfigError
        If one is neither, or none is named.
    ConfigError, ManifestError
        If an image is not in the dataset, as the manifest has it.
    """
    images = []
    for text in (part.strip() for item in texts for part in item.split(",") if part.strip()):
        split, colon, number = text.rpartition(":")
        if not number.isdecimal():
            raise ConfigError(f"image {text!r}: expected a number such as 17, or SPLIT:NUMBER such as test:17")
        image = description.sample_of(split, int(number)) if colon else int(number)
        description.split_of(image)
        images.append(image)
    if not images:
        raise ConfigError("no image is named: expected a number such as 17, or SPLIT:NUMBER such as test:17")
    return list(dict.fromkeys(images))
