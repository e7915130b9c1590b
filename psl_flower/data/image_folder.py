"""A local folder of images by class, with or without train and test folders above the classes.

Read without the `datasets` library, which takes a class folder called "train" or "test tube" for a split and
then drops the other classes in silence.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from psl_flower.data.images import RawDataset, RawSplit, choose_splits, decode_image
from psl_flower.errors import CorruptImage, DataError

IMAGE_ENDINGS = frozenset(
    {".bmp", ".gif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"}
)
_TABLE_ENDINGS = frozenset({".arrow", ".csv", ".json", ".jsonl", ".parquet", ".tar", ".zip"})
_SPLIT_FOLDERS = {
    "train": "train", "training": "train",
    "test": "test", "testing": "test",
    "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation",
}  # fmt: skip


def walk_files(folder: Path) -> Iterator[Path]:
    """Yield the files of a folder and all folders in it, sorted, hidden ones left out; raises OSError."""

    def refuse(error: OSError) -> None:
        raise error

    for parent, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(parent, name) for name in sorted(files) if not name.startswith("."))


def load_image_folder(name: str, folder: Path) -> RawDataset | None:
    """Return the folder's images by class, or None where it does not hold images by class.

    A folder called "train" (or "training") is a split if images lie in folders of its own; otherwise every
    folder is a class. Class names are sorted; images in deeper folders belong to the class at the top.

    Raises
    ------
    DataError
        If the folder cannot be listed, or the splits cannot be told.
    """
    try:
        files = list(walk_files(folder))
    except OSError as error:
        raise DataError(f"{name}: cannot list {error.filename or folder}: {error.strerror or error}") from error
    if any(path.suffix.lower() in _TABLE_ENDINGS for path in files):
        return None
    images = [path for path in files if path.suffix.lower() in IMAGE_ENDINGS]
    parts = [(path, path.relative_to(folder).parts) for path in images]
    with_splits = any(_SPLIT_FOLDERS.get(part[0]) == "train" and len(part) > 2 for _, part in parts)
    found: dict[str, list[tuple[Path, str]]] = {}
    for path, part in parts:
        if with_splits and part[0] in _SPLIT_FOLDERS and len(part) > 2:
            found.setdefault(_SPLIT_FOLDERS[part[0]], []).append((path, part[1]))
        elif not with_splits and len(part) > 1:
            found.setdefault("train", []).append((path, part[0]))
    if not found:
        return None
    train, test = choose_splits(name, found)
    class_names = tuple(sorted({label for split in (train, test) if split for _, label in found[split]}))
    return RawDataset(
        class_names=class_names,
        train=_raw_split(train, found[train], class_names),
        test=_raw_split(test, found[test], class_names) if test else None,
    )


def _raw_split(name: str, files: list[tuple[Path, str]], class_names: tuple[str, ...]) -> RawSplit:
    index = {class_name: k for k, class_name in enumerate(class_names)}

    def images(rows_R: NDArray[np.int64]) -> Iterator[NDArray[np.uint8]]:
        for row in rows_R.tolist():
            path = files[row][0]
            where = f"image {row} of split {name!r} ({path})"
            try:
                encoded = path.read_bytes()
            except OSError as error:
                raise CorruptImage(f"{where}: cannot be read: {error.strerror or error}") from error
            yield decode_image(encoded, where)

    return RawSplit(name=name, labels_N=np.array([index[label] for _, label in files], np.int64), images=images)
