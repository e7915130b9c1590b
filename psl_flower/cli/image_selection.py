"""The images a restorer asks for, and the captions beneath them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from psl_flower.errors import ConfigError
from psl_flower.runs.image_ids import parse_images
from psl_flower.runs.mistakes import Mistake, check_dataset, mistakes
from psl_flower.sealed.export import Caption
from psl_flower.sealed.manifest import Manifest


def images_asked(
    manifest: Manifest,
    image: Sequence[str],
    wrong_only: Path | None,
    split: str,
    limit: int,
    labels_N: NDArray[np.int64] | None,
) -> dict[int, Mistake | None]:
    """Return the images named, or those that a run got wrong, with its mistake.

    Raises
    ------
    ConfigError
        If both are given, or none.
    OtherDataset, RunError
        If the run was on another dataset, or its predictions cannot be used.
    """
    if bool(image) == (wrong_only is not None):
        raise ConfigError("name the images with --image, or a run with --wrong-only; one of the two")
    if wrong_only is None:
        return dict.fromkeys(parse_images(image, manifest.description))
    check_dataset(wrong_only, manifest)
    return {found.image: found for found in mistakes(wrong_only, split=split, limit=limit, labels_N=labels_N)}


def image_name(manifest: Manifest, image: int) -> str:
    """Return an image's name by split, such as "test:17"; its number if it was added after this manifest."""
    return manifest.description.name_of(image) if image < manifest.num_samples else str(image)


def captions(
    manifest: Manifest, images: Mapping[int, Mistake | None], labels_N: NDArray[np.int64] | None
) -> list[Caption]:
    """Return the captions of the images."""
    made = []
    for number, mistake in images.items():
        split, within = manifest.description.split_of(number)
        label = int(labels_N[number]) if labels_N is not None else mistake.label if mistake else None
        made.append(
            Caption(
                image=number,
                split=split,
                number=within,
                label=class_name(manifest, label),
                predicted=class_name(manifest, mistake.predicted) if mistake else "",
                confidence=mistake.confidence if mistake else None,
            )
        )
    return made


def class_name(manifest: Manifest, label: int | None) -> str:
    """Return the name of a class; empty if there is no such class."""
    return manifest.classes[label] if label is not None and 0 <= label < len(manifest.classes) else ""
