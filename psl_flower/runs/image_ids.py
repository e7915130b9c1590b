"""Image ids as people write them: 17, the number over all splits, or test:17, that within one split."""

from __future__ import annotations

from collections.abc import Sequence

from psl_flower.errors import ConfigError
from psl_flower.patches.description import StoreSetDescription


def parse_images(texts: Sequence[str], description: StoreSetDescription) -> list[int]:
    """Read image ids: a global number, or SPLIT:NUMBER; several in one text with commas between.

    Raises
    ------
    ConfigError
        If one is neither or not in the dataset, or none is named.
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
