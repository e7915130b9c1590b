"""Checks tables of several files: no part of a table may be missing, and no file may repeat the content of another.

A file read twice may be both trained and tested on, and a missing part changes the training, so both are
refused, and leave-out decides.
"""

from __future__ import annotations

import filecmp
import posixpath
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

from psl_flower.data.options import leave_out_setting
from psl_flower.data.splits import split_word
from psl_flower.errors import DataError
from psl_flower.text import counted, printable

_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})(-[0-9a-f]+)?")


class Shard(NamedTuple):
    """A part of a table by its file's name: the table's name with the folder, its number, and how many there are."""

    whole: str
    number: int
    total: int


def shard_of(path: str) -> Shard | None:
    """Return the part that a file name states, as in train-00000-of-00002.parquet; None for a whole table."""
    match = _SHARD.fullmatch(posixpath.splitext(posixpath.basename(path))[0])
    if match is None:
        return None
    return Shard(posixpath.join(posixpath.dirname(path), match[1]), int(match[2]), int(match[3]))


def check_shards(name: str, paths: Iterable[str], others: Mapping[str, str], patterns: Sequence[str]) -> None:
    """Check that the parts of each table are all there, once.

    Parameters
    ----------
    name : str
        The dataset's, for errors.
    paths : iterable of str
        Files that hold images, or list them.
    others : mapping
        Other files of tables, and why they are not read.
    patterns : sequence of str
        Those of leave-out: a missing part that one of them names may be missing.

    Raises
    ------
    DataError
        If a part is missing or there twice, or if both the parts and the whole table are there.
    """
    paths = list(paths)
    wholes = {posixpath.splitext(path)[0]: path for path in paths}
    found: dict[str, dict[tuple[int, int], str]] = {}
    for path in paths:
        shard = shard_of(path)
        if shard is None:
            continue
        if shard.whole in wholes:
            whole = wholes[shard.whole]
            raise _twice(name, path, whole, "one is a part of the other by its name", left=whole)
        parts = found.setdefault(shard.whole, {})
        other = parts.setdefault((shard.number, shard.total), path)
        if other != path:
            raise _twice(name, other, path, "both are the same part by their names")
        first = next(iter(parts))
        if first[1] != shard.total:
            raise _twice(name, parts[first], path, "the names number the parts differently")
    for parts in found.values():
        _check_whole(name, parts, others, patterns)


def _check_whole(
    name: str, parts: Mapping[tuple[int, int], str], others: Mapping[str, str], patterns: Sequence[str]
) -> None:
    (_, total), path = next(iter(parts.items()))
    numbers = {number for number, _ in parts}
    first = 1 if total in numbers and 0 not in numbers else 0
    missing = []
    for number in range(first, first + total):
        part = re.sub(r"-\d{5}-of-(\d{5})(-[0-9a-f]+)?(?=\.\w+$)", rf"-{number:05d}-of-\1", path)
        named = any(
            fnmatchcase(part, pattern)
            or fnmatchcase(posixpath.basename(part), pattern)
            or f"-{number:05d}-of-{total:05d}-" in pattern
            for pattern in patterns
        )
        if number not in numbers and not named:
            missing.append(part)
    if missing:
        why = f" ({others[missing[0]]})" if missing[0] in others else ""
        raise DataError(
            f"{name}: {counted(len(missing), 'part')} of {total}, such as {printable(missing[0])}, "
            f"{'are' if len(missing) > 1 else 'is'} missing{why} beside {printable(path)}: complete the dataset, or do "
            f"without with {leave_out_setting(*missing[:3])}{',...' if len(missing) > 3 else ''}"
        )


def check_copies(name: str, root: Path, paths: Iterable[str]) -> None:
    """Check that none of these files in the dataset's folder is another one's copy.

    Raises
    ------
    DataError
        If two are the same, byte for byte, or one cannot be read.
    """
    by_size: dict[int, list[str]] = {}
    try:
        for path in paths:
            alike = by_size.setdefault((root / path).stat().st_size, [])
            for other in alike:
                if filecmp.cmp(root / other, root / path, shallow=False):
                    raise _twice(name, other, path, "they are the same, byte for byte")
            alike.append(path)
    except OSError as error:
        raise DataError(f"{name}: cannot read {error.filename}: {error.strerror or error}") from error


def check_places(name: str, split: str, places: Mapping[str, str]) -> None:
    """Check that the files of a split lie in one place, not in the folders of several datasets or languages.

    `places` has for each file the folder in which the split lies.

    Raises
    ------
    DataError
        If they lie in several.
    """
    first: dict[str, str] = {}
    for path, place in places.items():
        first.setdefault(place, path)
    if len(first) > 1:
        (place, one), (other_place, other) = list(first.items())[:2]
        left = other_place or place
        raise DataError(
            f"{name}: {printable(one)} and {printable(other)} lie in different folders and both hold split {split!r}, "
            f"so their images may be the same: leave one folder out, such as with {leave_out_setting(left)}, or put "
            "all files of the split into one folder"
        )


def joined_files(split: str, paths: Collection[str]) -> str:
    """Return the account's note on a split in several files; empty for a single file, or the parts of one."""
    wholes = {shard.whole if (shard := shard_of(path)) else path: path for path in paths}
    if len(wholes) < 2:
        return ""
    shown = ", ".join(printable(path) for path in list(wholes.values())[:4])
    more = f" and {len(wholes) - 4} more" if len(wholes) > 4 else ""
    return f"split {split!r} joins {counted(len(wholes), 'table')}: {shown}{more}"


def _twice(name: str, one: str, other: str, why: str, left: str = "") -> DataError:
    # A copy has the longer name, and training images are needed most.
    left = left or max(one, other, key=lambda path: (split_word(posixpath.basename(path))[0] != "train", len(path)))
    return DataError(
        f"{name}: the images of {printable(one)} and {printable(other)} would be taken twice ({why}); leave one out, "
        f"such as with {leave_out_setting(left)}"
    )
