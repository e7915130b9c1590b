"""Tables with an image and its class in each row: as they lie in a folder, or as the `datasets` library opens them.

Shape suffixes: N rows of a split, R rows asked for.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from psl_flower.data.account import LeftOutTally
from psl_flower.data.columns import (
    LABEL_NAMES,
    ImageKind,
    Resolve,
    choose_image,
    choose_label,
    image_kinds,
    one_hot_columns,
    path_in,
    read_image,
    read_labels,
    same_numbers,
)
from psl_flower.data.images import RawDataset, RawSplit, joined
from psl_flower.data.listed_rows import check_listed
from psl_flower.data.options import SourceOptions
from psl_flower.data.pixels import Decoder
from psl_flower.data.split_columns import divide_by_column, is_split_column
from psl_flower.data.splits import choose_splits
from psl_flower.data.table import Table
from psl_flower.errors import DataError
from psl_flower.text import printable

NOT_CHOSEN = "rows of a split that is neither trained nor tested on"
_ROWS_PER_READ = 64


def read_tables(
    name: str,
    tables: Mapping[str, Table],
    options: SourceOptions,
    resolve: Resolve | None,
    left_out: LeftOutTally,
    named: set[Path],
) -> RawDataset:
    """Return the images and classes of a dataset's tables.

    `tables` are by split; the options may name columns and splits. Rows of splits that are not taken are noted in
    `left_out`; the files of images that rows name are added to `named`.

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
    label = _label(name, first, image, options)
    tables = divide_by_column(name, tables, {image, label}, options.split_column, notes)
    values = {split: table.all(label) if label in table.columns.types else [] for split, table in tables.items()}
    labelled = {split: sum(value not in (None, -1, "") for value in found) for split, found in values.items()}
    train, test = choose_splits(name, labelled, options)
    for split, table in tables.items():
        if split not in (*train, *test):
            left_out.add(NOT_CHOSEN, f"split {split}", table.num_rows, ending="")
    used = {split: tables[split] for split in (*train, *test)}
    _check_columns(name, used, (image, label), test)
    class_names, labels = read_labels(
        name, label, {split: (used[split].columns, values[split]) for split in used}, asked=bool(options.label_column)
    )
    notes += [
        f"classes {one!r} and {other!r} are one number written in two ways, and were taken for two classes"
        for one, other in same_numbers(class_names)
    ]
    if kinds[image] is ImageKind.PATH and resolve is not None:
        listed, kept = check_listed(name, used, labels, image, resolve, notes)
        named |= listed
        used = {split: table.select(kept[split]) for split, table in used.items()}
        labels = {split: labels[split][rows_R] for split, rows_R in kept.items()}
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


def _check_columns(name: str, used: Mapping[str, Table], columns: Sequence[str], test: Collection[str]) -> None:
    """Raise DataError if a split lacks one of these columns; `test` are the splits to test on."""
    for split, table in used.items():
        missing = [column for column in columns if column not in table.columns.types]
        if missing:
            hint = "; test-split=none holds back training images instead" if split in test else ""
            shown = table.columns.shown()
            raise DataError(f"{name}: split {split!r} has no column {missing[0]!r}; it has {shown}{hint}")


def _label(name: str, table: Table, image: str, options: SourceOptions) -> str:
    """Return the column of the classes; never a column of splits, nor one of several columns of a class each."""
    try:
        label = choose_label(name, table.columns, image, options.label_column)
    except DataError as error:
        flags = one_hot_columns(table.columns, table.sample)
        if not flags or options.label_column:
            raise
        raise DataError(
            f"{error}; {printable(flags[0])} and {printable(flags[1])} may be a class each (one-hot), of which "
            "label-column would tell one from all others: write one column with the classes' names instead"
        ) from error
    if label != options.label_column and label.lower() not in LABEL_NAMES and is_split_column(table, label):
        raise DataError(
            f"{name}: no column holds labels: {printable(label)!r} names splits; if these are the classes, say so with "
            f"label-column={label}"
        )
    return label


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
