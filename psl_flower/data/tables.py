"""Tables with an image and its class in each row: as they lie in a folder, or as the `datasets` library opens them.

Shape suffixes: N rows of a split, R rows asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from psl_flower.data.account import LeftOutTally
from psl_flower.data.columns import (
    Columns,
    ImageKind,
    Resolve,
    choose_image,
    choose_label,
    image_kinds,
    is_text,
    path_in,
    read_image,
    read_labels,
)
from psl_flower.data.images import RawDataset, RawSplit, joined
from psl_flower.data.options import SourceOptions
from psl_flower.data.pixels import Decoder
from psl_flower.data.splits import choose_splits, split_word
from psl_flower.errors import DataError
from psl_flower.text import counted, printable

NOT_CHOSEN = "rows of a split that is neither trained nor tested on"
_SPLIT_COLUMNS = ("split", "set", "subset", "partition")
_ROWS_PER_READ = 64
_SAMPLE_ROWS = 20


@dataclass(frozen=True, slots=True)
class Table:
    """One split's rows.

    Attributes
    ----------
    columns : Columns
        Its columns.
    num_rows : int
        N.
    sample : pa.Table
        The first of its rows.
    read : Callable
        Takes a column's name and row numbers (R,), and returns their values.
    all : Callable
        Takes a column's name, and returns the values of all rows.
    """

    columns: Columns
    num_rows: int
    sample: pa.Table
    read: Callable[[str, NDArray[np.int64]], list[Any]]
    all: Callable[[str], list[Any]]

    @classmethod
    def of(cls, table: pa.Table) -> Table:
        """Return the rows of a table of Arrow's."""
        return cls(
            columns=Columns.of(table.schema),
            num_rows=len(table),
            sample=table.slice(0, _SAMPLE_ROWS),
            read=lambda column, rows_R: _rows(table.column(column), rows_R).to_pylist(),
            all=lambda column: table.column(column).to_pylist(),
        )

    @classmethod
    def of_library(cls, table: Any) -> Table:
        """Return the rows of a table of the `datasets` library."""
        import datasets

        names = {name: f.names for name, f in table.features.items() if isinstance(f, datasets.ClassLabel)}
        arrow = table.with_format("arrow")
        columns = Columns(
            types={column.name: column.type for column in table.features.arrow_schema},
            images=frozenset(name for name, f in table.features.items() if isinstance(f, datasets.Image)),
            classes={name: tuple(known) for name, known in names.items()},
        )
        by_column = {name: arrow.select_columns([name]) for name in table.column_names}
        return cls(
            columns=columns,
            num_rows=len(table),
            sample=arrow[:_SAMPLE_ROWS],
            read=lambda column, rows_R: by_column[column][rows_R.tolist()].column(column).to_pylist(),
            all=lambda column: by_column[column][:].column(column).to_pylist(),
        )

    def select(self, rows_R: NDArray[np.int64]) -> Table:
        """Return only some rows."""
        return replace(
            self,
            num_rows=len(rows_R),
            read=lambda column, some_R: self.read(column, rows_R[some_R]),
            all=lambda column: self.read(column, rows_R),
        )


def _rows(values: pa.ChunkedArray, rows_R: NDArray[np.int64]) -> pa.ChunkedArray:
    """Return some rows of a column; those that follow each other without a copy."""
    if len(rows_R) and (np.diff(rows_R) == 1).all():
        return values.slice(int(rows_R[0]), len(rows_R))
    return values.take(pa.array(rows_R))


def read_tables(
    name: str,
    tables: Mapping[str, Table],
    options: SourceOptions,
    resolve: Resolve | None,
    left_out: LeftOutTally,
    named: set[Path],
) -> RawDataset:
    """Return the images and classes of a dataset's tables.

    Parameters
    ----------
    name : str
        The dataset's, for errors.
    tables : mapping
        Split -> its rows.
    options : SourceOptions
        May name columns and splits.
    resolve : callable, optional
        Finds the file that a text names.
    left_out : LeftOutTally
        Rows of splits that are not taken are noted in it.
    named : set[Path]
        The files of images that rows name are added to it.

    Raises
    ------
    DataError
        If splits, images or labels are ambiguous, or a row names no image.
    """
    notes: list[str] = []
    # Of files without labels the columns tell less.
    first = max(tables.values(), key=lambda table: len(table.columns.types))
    kinds = image_kinds(first.columns, first.sample, resolve)
    image = choose_image(name, first.columns, kinds, options.image_column)
    label = choose_label(name, first.columns, image, options.label_column)
    tables = _by_column(tables, {image, label}, notes)
    values = {split: table.all(label) if label in table.columns.types else [] for split, table in tables.items()}
    labelled = {split: sum(value not in (None, -1, "") for value in found) for split, found in values.items()}
    train, test = choose_splits(name, labelled, options)
    for split, table in tables.items():
        if split not in (*train, *test):
            left_out.add(NOT_CHOSEN, f"split {split}", table.num_rows, ending="")
    used = {split: tables[split] for split in (*train, *test)}
    for split, table in used.items():
        missing = [column for column in (image, label) if column not in table.columns.types]
        if missing:
            hint = "; test-split=none holds back training images instead" if split in test else ""
            columns = table.columns.shown()
            raise DataError(f"{name}: split {split!r} has no column {missing[0]!r}; it has {columns}{hint}")
    class_names, labels = read_labels(
        name, label, {split: (used[split].columns, values[split]) for split in used}, asked=bool(options.label_column)
    )
    if kinds[image] is ImageKind.PATH and resolve is not None:
        named |= _check_paths(name, used, labels, image, resolve, notes)
    if kinds[image] is ImageKind.SQUARE:
        side = int(np.sqrt(len(first.read(image, np.array([0]))[0])))
        notes.append(f"flat lists of {side * side} numbers were read as images of {side}x{side}, row by row")
    raw = {
        split: _raw_split(split, table, image, kinds[image], labels[split], resolve) for split, table in used.items()
    }
    return RawDataset(
        class_names=class_names,
        train=joined([raw[split] for split in train]),
        test=joined([raw[split] for split in test]) if test else None,
        reader=f"a table, images from column {image!r} ({kinds[image]}), classes from {label!r}",
        left_out=left_out,
        notes=notes,
    )


def _by_column(tables: Mapping[str, Table], taken: set[str], notes: list[str]) -> Mapping[str, Table]:
    """Divide the only split by a column that names one for each row, if there is one."""
    if len(tables) > 1:
        return tables
    (table,) = tables.values()
    for column, kind in table.columns.types.items():
        if column.lower() not in _SPLIT_COLUMNS or column in taken or not is_text(kind):
            continue
        values = table.all(column)
        names = list(dict.fromkeys(values))
        words = [split_word(value) for value in names if value]
        if len(words) == len(names) > 1 and all(word and not rest for word, rest in words):
            notes.append(f"splits were taken from column {column!r}")
            return {value: table.select(np.flatnonzero([other == value for other in values])) for value in names}
    return tables


def _check_paths(
    name: str,
    tables: Mapping[str, Table],
    labels: Mapping[str, NDArray[np.int64]],
    image: str,
    resolve: Resolve,
    notes: list[str],
) -> set[Path]:
    """Check that each row names an image, and none two classes; return the images."""
    seen: dict[Path, tuple[str, int]] = {}
    repeated = 0
    for split, table in tables.items():
        for row, (path, label) in enumerate(zip(table.all(image), labels[split].tolist(), strict=True)):
            found = resolve(path) if path else None
            if found is None:
                raise DataError(
                    f"{name}: row {row} of split {split!r} names no image that is there: {printable(path)}; paths are "
                    "looked for beside the table and in the dataset's folder; remove the row or add the image"
                )
            before = seen.setdefault(found, (split, label))
            if before[1] != label:
                raise DataError(f"{name}: {printable(path)} is in the table with two classes; keep one of the rows")
            repeated += before[0] != split
    if repeated:
        notes.append(f"{counted(repeated, 'image')} of one split stand in another one, too")
    return set(seen)


def _raw_split(
    name: str, table: Table, column: str, kind: ImageKind, labels_N: NDArray[np.int64], resolve: Resolve | None
) -> RawSplit:
    def images(rows_R: NDArray[np.int64], decoder: Decoder) -> Iterator[NDArray[np.uint8]]:
        for first in range(0, len(rows_R), _ROWS_PER_READ):
            rows = rows_R[first : first + _ROWS_PER_READ]
            for row, cell in zip(rows.tolist(), table.read(column, rows), strict=True):
                yield read_image(cell, kind, decoder, resolve, f"image {row} of split {name!r}")

    def path(row: int) -> str:
        return path_in(next(iter(table.read(column, np.array([row])))), kind)

    return RawSplit(name=name, labels_N=labels_N, images=images, path=path)
