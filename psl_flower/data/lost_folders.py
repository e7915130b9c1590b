"""Refuses folders of an expected split or class that hold no image: that split or class would be lost silently.

The worst case is an empty test folder: a part of the training images would replace it.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable

from psl_flower.data.files import FileKind, Listing
from psl_flower.data.layout import Layout
from psl_flower.data.options import SourceOptions, leave_out_setting
from psl_flower.data.splits import split_word
from psl_flower.errors import DataError
from psl_flower.text import counted, printable

_TEXT_BYTES = 1024
# Code that was compiled, and models: what programs leave beside images is no class.
_BY_PRODUCTS = (".pyc", ".pt", ".pth", ".ckpt", ".pkl", ".onnx", ".safetensors")


def check_lost_folders(
    dataset: str, listing: Listing, kinds: dict[str, FileKind], layout: Layout, options: SourceOptions
) -> list[str]:
    """Refuse folders and links that may be a split or a class of which nothing would be taken.

    If the options name the splits to train and to test on, no other split is missed. Return the account's sentence on
    empty folders beside those of the classes, if there are such folders.

    Raises
    ------
    DataError
        If there is a folder called as a split, or a class folder of other files than images and texts, and no image is
        in it; or if a link that may be to a split or a class leads to nothing.
    """
    pictures = [path for path, kind in kinds.items() if kind in (FileKind.IMAGE, FileKind.PICTURE)]
    full = set(_folders_above(pictures))
    beside_classes = {posixpath.dirname(path) for path in layout.class_folders}
    levels = beside_classes | set(_folders_above(layout.class_folders))
    named = bool(options.train_split and options.test_split)
    for link in listing.dead_links:
        if posixpath.dirname(link) in levels and _may_be_folder(posixpath.basename(link)):
            raise DataError(
                f"{dataset}: {printable(link)}, where the folder of a split or a class would be, is a link to nothing; "
                f"mend it, or pass it by with {leave_out_setting(link)}"
            )
    empty = []
    for folder in listing.folders:
        above = posixpath.dirname(folder)
        if folder in full or above not in levels:
            continue
        within = [path for path in kinds if path.startswith(f"{folder}/")]
        if not named and _is_split(folder, full):
            raise DataError(
                f"{dataset}: the folder {printable(folder)} is called as a split and holds {_found(within)}: "
                f"add its images, or pass it by with {leave_out_setting(folder)}"
            )
        if above in beside_classes and (odd := [path for path in within if not _is_text(listing, kinds, path)]):
            raise DataError(
                f"{dataset}: the folder {printable(folder)} lies beside class folders and holds {_found(odd)}: convert "
                f"them, to PNG say, or pass the folder by with {leave_out_setting(folder)}"
            )
        if above in beside_classes and not within:
            empty.append(folder)
    if not empty:
        return []
    return [f"{counted(len(empty), 'empty folder')} beside the class folders, such as {printable(empty[0])}: no class"]


def _folders_above(paths: Iterable[str]) -> Iterable[str]:
    """Yield each folder above some paths once, the dataset's own as ""."""
    known = set()
    for path in paths:
        while path and (path := posixpath.dirname(path)) not in known:
            known.add(path)
            yield path


def _may_be_folder(name: str) -> bool:
    """Check if a name has no ending as files have: "test" and "no. 5 birds", not "5.png"."""
    ending = posixpath.splitext(name)[1]
    return bool(split_word(name)[0]) or not ending[1:].isalnum() or len(ending) > len(".jpeg")


def _is_split(folder: str, full: set[str]) -> bool:
    """Check if a folder is named like a split: "test", or "x_test" beside an "x_train" with images."""
    word, rest = split_word(posixpath.basename(folder))
    beside = [posixpath.basename(path) for path in full if posixpath.dirname(path) == posixpath.dirname(folder)]
    return bool(word) and (not rest or any(split_word(name)[0] and split_word(name)[1] == rest for name in beside))


def _is_text(listing: Listing, kinds: dict[str, FileKind], path: str) -> bool:
    """Check if a file holds a table or other text, or what a program left, which is no image in another format."""
    if path.lower().endswith(_BY_PRODUCTS):
        return True
    if kinds[path] is not FileKind.OTHER:
        return kinds[path] is FileKind.TABLE
    try:
        with (listing.root / path).open("rb") as file:
            return b"\0" not in file.read(_TEXT_BYTES)
    except OSError:
        return False


def _found(paths: list[str]) -> str:
    if not paths:
        return "no file"
    return f"no readable image, only {counted(len(paths), 'other file')}, such as {printable(paths[0])}"
