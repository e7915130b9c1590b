"""A local folder of images by class, with or without folders for train and test above the classes.

Read without the `datasets` library, which takes a class folder called "train" or "test tube" for a split and
then drops the other classes in silence.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from psl_flower.data.account import LeftOutTally
from psl_flower.data.files import FileKind, Listing, kind_of, list_files, read_image_file
from psl_flower.data.images import RawDataset, RawSplit, joined
from psl_flower.data.layout import Layout
from psl_flower.data.options import SourceOptions, leave_out_setting
from psl_flower.data.pixels import Decoder
from psl_flower.data.splits import choose_splits
from psl_flower.errors import CorruptImage, DataError
from psl_flower.text import counted, printable

_HEIC = " (HEIC: install the extra instead, pip install 'psl-flower[heif]')"
# Ends an error about one image, before the setting that skips it.
LEAVE_OUT_WAY = "; to skip it, add to any given leave-out: "
NOT_CHOSEN = "in a split that is neither trained nor tested on"


def find_images(folder: Path) -> tuple[list[Path], LeftOutTally]:
    """Return the images in a folder and its subfolders, and a tally of the other files.

    Raises
    ------
    DataError
        If it cannot be listed.
    """
    listing = list_files(folder)
    images = []
    for file in listing.files:
        kind = kind_of(folder, file)
        if kind in (FileKind.IMAGE, FileKind.PICTURE):  # decoding names the latter's fault
            images.append(folder / file.path)
        else:
            listing.left_out.add(kind, file.path)
    return images, listing.left_out


def read_image_folder(
    dataset: str, listing: Listing, kinds: dict[str, FileKind], layout: Layout, options: SourceOptions
) -> RawDataset:
    """Return the folder's images by class.

    `layout` has the splits and classes of the files that hold pictures; those that are not taken are noted in the
    listing's left out. The options may name the splits.

    Raises
    ------
    DataError
        If the splits are unclear, a picture with a class cannot be decoded, or a class has a name that cannot be
        written down.
    """
    _check_classes(dataset, layout, kinds)
    train, test = choose_splits(dataset, {name: len(files) for name, files in layout.splits.items()}, options)
    for name in (*train, *test):
        if not layout.splits[name]:
            hint = "; test-split=none holds back training images instead" if name in test else ""
            raise DataError(f"{dataset}: split {name!r}: its images lie in no class folders{hint}")
    left_out = listing.left_out
    for name, files in layout.splits.items():
        if name not in (*train, *test):
            for path, _ in files:
                left_out.add(NOT_CHOSEN, path)
    for path, reason in layout.left_out:
        left_out.add(reason, path)
    for path, kind in kinds.items():
        if kind not in (FileKind.IMAGE, FileKind.PICTURE):
            left_out.add(kind, path)
    found = {name: files for name, files in layout.splits.items() if name in (*train, *test)}
    class_names = tuple(sorted({label for files in found.values() for _, label in files}))
    raw = {name: _raw_split(name, listing.root, files, class_names) for name, files in found.items()}
    return RawDataset(
        class_names=class_names,
        train=joined([raw[name] for name in train]),
        test=joined([raw[name] for name in test]) if test else None,
        reader="images by class",
        left_out=left_out,
    )


def _check_classes(dataset: str, layout: Layout, kinds: dict[str, FileKind]) -> None:
    """Refuse pictures with a class that cannot be decoded, and classes whose names cannot be written down."""
    unreadable = []
    for files in layout.splits.values():
        for path, label in files:
            if kinds[path] is FileKind.PICTURE:
                unreadable.append(path)
            if printable(label) != label:
                raise DataError(
                    f"{dataset}: the class folder {printable(label)} has a name that is not UTF-8, or that cannot be "
                    "printed; rename it"
                )
    if unreadable:
        example = printable(unreadable[0])
        ending = PurePosixPath(example).suffix
        way = f"leave-out=*{ending}" if ending else leave_out_setting(unreadable[0])
        raise DataError(
            f"{dataset}: {counted(len(unreadable), 'picture')} in class folders cannot be decoded, such as {example}; "
            f"convert them, to PNG say{_HEIC}, or skip them with {way}"
        )


def _raw_split(name: str, root: Path, files: list[tuple[str, str]], class_names: tuple[str, ...]) -> RawSplit:
    index = {class_name: k for k, class_name in enumerate(class_names)}

    def images(rows_R: NDArray[np.int64], decoder: Decoder) -> Iterator[NDArray[np.uint8]]:
        for row in rows_R.tolist():
            path = os.path.join(root, files[row][0])
            where = f"image {row} of split {printable(name)!r} ({printable(path)})"
            try:
                image_HWC = decoder.file(read_image_file(path, where), where)
            except CorruptImage as error:
                raise CorruptImage(f"{error}{LEAVE_OUT_WAY}{leave_out_setting(files[row][0])}") from error
            yield image_HWC

    labels_N = np.array([index[label] for _, label in files], np.int64)
    return RawSplit(name=name, labels_N=labels_N, images=images, path=lambda row: printable(files[row][0]))
