"""Rows of tables that list images: each names an existing image, and no image is taken twice.

Shape suffixes: N rows of a split, R rows that are kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from psl_flower.data.columns import Resolve
from psl_flower.data.options import leave_out_setting
from psl_flower.data.table import Table
from psl_flower.errors import DataError
from psl_flower.text import counted, printable


class _Place(NamedTuple):
    split: str
    row: int
    label: int


class _Again(NamedTuple):
    """A row of an image that another one names, too."""

    path: str
    first: _Place
    other: _Place


def check_listed(
    name: str,
    tables: Mapping[str, Table],
    labels: Mapping[str, NDArray[np.int64]],
    image: str,
    resolve: Resolve,
    notes: list[str],
) -> tuple[set[Path], dict[str, NDArray[np.int64]]]:
    """Return the images that rows name, and of each split the rows (R,) to take: of equal ones the first.

    `tables` and `labels` (N,) are by split; `image` is the column of the images' paths. Rows that stand there twice are
    noted in `notes`.

    Raises
    ------
    DataError
        If a row names no image, or two that differ name the same one.
    """
    seen: dict[Path, _Place] = {}
    again: list[_Again] = []
    for split, table in tables.items():
        for row, (path, label) in enumerate(zip(table.all(image), labels[split].tolist(), strict=True)):
            found = resolve(path) if path else None
            if found is None:
                raise DataError(
                    f"{name}: row {row} of split {split!r} names no existing image: {printable(path)}; paths are "
                    "looked for beside the table and in the dataset's folder; remove the row or add the image"
                )
            here = _Place(split, row, label)
            before = seen.setdefault(found, here)
            if before.label != label:
                raise DataError(
                    f"{name}: {printable(path)} is in the table with two classes ({_where(tables, before)}; "
                    f"{_where(tables, here)}); keep one of the rows{_leave_out(tables, before, here)}"
                )
            if before is not here:
                again.append(_Again(path, before, here))
    _check_splits(name, tables, again)
    _check_files(name, tables, again)
    dropped = _equal_rows(name, tables, image, again)
    if again:
        notes.append(
            f"{counted(len(again), 'row')}, such as {_where(tables, again[0].other)}, "
            f"{'are' if len(again) > 1 else 'is'} the same as an earlier one and taken once"
        )
    kept = {split: np.setdiff1d(np.arange(table.num_rows), dropped[split]) for split, table in tables.items()}
    return set(seen), kept


def _check_splits(name: str, tables: Mapping[str, Table], again: list[_Again]) -> None:
    """Refuse images that two splits name: one may be trained on, the other tested on."""
    both = [one for one in again if one.first.split != one.other.split]
    if both:
        path, first, other = both[0]
        raise DataError(
            f"{name}: {counted(len(both), 'image')} of split {first.split!r}, such as {printable(path)}, "
            f"{'are' if len(both) > 1 else 'is'} in split {other.split!r}, too ({_where(tables, first)}; "
            f"{_where(tables, other)}); keep one of the rows{_leave_out(tables, first, other)}"
        )


def _check_files(name: str, tables: Mapping[str, Table], again: list[_Again]) -> None:
    """Refuse images that two files name: one file may be another one's copy, or older."""
    for path, first, other in again:
        ways = _leave_out(tables, first, other)
        if ways:
            raise DataError(
                f"{name}: {counted(len(again), 'image')}, such as {printable(path)}, "
                f"{'are' if len(again) > 1 else 'is'} listed twice ({_where(tables, first)}; {_where(tables, other)}); "
                f"keep one of the rows{ways}"
            )


def _equal_rows(name: str, tables: Mapping[str, Table], image: str, again: list[_Again]) -> dict[str, list[int]]:
    """Return the rows to leave out by split: those that are equal to the first one of their image in every column."""
    dropped: dict[str, list[int]] = {
        split: [one.other.row for one in again if one.other.split == split] for split in tables
    }
    for split, table in tables.items():
        pairs = [one for one in again if one.other.split == split]
        rows = np.array([[one.first.row, one.other.row] for one in pairs], np.int64).reshape(-1, 2)
        for column in table.columns.types if pairs else ():
            if column == image:
                continue  # a path may be written in several ways
            values = zip(table.read(column, rows[:, 0]), table.read(column, rows[:, 1]), strict=True)
            odd = next((pair for pair, (one, two) in zip(pairs, values, strict=True) if not _same(one, two)), None)
            if odd is not None:
                raise DataError(
                    f"{name}: {printable(odd.path)} is listed twice ({_where(tables, odd.first)}; "
                    f"{_where(tables, odd.other)}), and the rows differ in column {printable(column)!r}; keep one row "
                    "for each image"
                )
    return dropped


def _same(one: Any, two: Any) -> bool:
    return bool(one == two or (one != one and two != two))


def _where(tables: Mapping[str, Table], place: _Place) -> str:
    origin = tables[place.split].origin
    if origin is None:
        return f"row {place.row} of split {place.split!r}"
    file, row = origin(place.row)
    return f"row {row} of {printable(file)}"


def _leave_out(tables: Mapping[str, Table], first: _Place, other: _Place) -> str:
    """Return a remedy if two rows come from two files; empty if they do not, or if that is unknown."""
    origins = [tables[place.split].origin for place in (first, other)]
    files = [origin(place.row)[0] for origin, place in zip(origins, (first, other), strict=True) if origin is not None]
    return f", or leave a table out with {leave_out_setting(files[1])}" if len(set(files)) == 2 else ""
