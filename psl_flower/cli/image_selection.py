"""The images a restorer asks for, and the captions beneath them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from psl_flower.config import default_workspace
from psl_flower.config.fields import RUN_NAME
from psl_flower.errors import ConfigError
from psl_flower.runs.folder import open_run
from psl_flower.runs.image_ids import parse_images
from psl_flower.runs.mistakes import Mistake, check_dataset, mistakes
from psl_flower.sealed.export import Caption
from psl_flower.sealed.manifest import Manifest
from psl_flower.text import expanded


def images_asked(
    manifest: Manifest,
    image: Sequence[str],
    wrong_only: str,
    split: str,
    limit: int,
    labels_N: NDArray[np.int64] | None,
) -> dict[int, Mistake | None]:
    """Return the images named, or those that a run got wrong, with its mistake.

    `wrong_only` is the run's folder, or its name in the workspace; empty for none.

    Raises
    ------
    ConfigError
        If both are given, or none.
    OtherDataset, RunError
        If there is no such run, it was on another dataset, or its predictions cannot be used.
    """
    if bool(image) == bool(wrong_only):
        raise ConfigError("name the images with --image, or a run with --wrong-only; one of the two")
    if not wrong_only:
        return dict.fromkeys(parse_images(image, manifest.description))
    run = _run_folder(wrong_only)
    check_dataset(run, manifest)
    return {found.image: found for found in mistakes(run, split=split, limit=limit, labels_N=labels_N)}


def _run_folder(given: str) -> Path:
    """Return a path that exists, or that cannot be a run's name, as given; else the folder of the run of that name."""
    path = expanded(given, "--wrong-only")
    if path.exists() or not re.fullmatch(RUN_NAME.pattern, given):
        return path
    return open_run(default_workspace(), given).path


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
