"""Finds a column that names the split of each row: used if its values name splits, refused if they only may.

If such a column were ignored, its test images would be trained on, so the setting split-column decides if its values
are unclear. A column is recognised by its name, or if most of its values are names of splits.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from psl_flower.data.columns import is_text
from psl_flower.data.splits import split_word
from psl_flower.data.table import Table
from psl_flower.errors import DataError
from psl_flower.text import counted, printable

NO_COLUMN = "none"
# What rows without a value are called, where the column is asked for.
BLANK = "blank"
_NAMES = frozenset({
    "split", "splits", "splitname", "datasplit", "datasetsplit", "traintest", "traintestsplit", "trainvaltest",
    "partition", "partitions",
})  # fmt: skip
# Parts for cross-validation: they do not contradict a column of splits.
_FOLDS = frozenset({"fold", "folds", "kfold", "cvfold", "foldid"})
_FLAG = re.compile(r"(?:is|in)(?:train|training|test|testing|val|valid|validation|dev|eval|holdout)(?:set|split)?")
# They may hold anything, such as the set that a card belongs to, or what a picture may be used for.
_LOOSE = frozenset({"set", "subset", "usage"})
_TRUE = frozenset({"1", "1.0", "true", "yes", "y", "t"})
_FEW = 3
_SHOWN = 3


@dataclass(frozen=True, slots=True)
class _Column:
    """A column that may be one of splits: its name, and the value of each row by table, "" for none."""

    name: str
    values: Mapping[str, list[str]]

    @property
    def bare(self) -> str:
        return _bare(self.name)

    def every(self) -> list[str]:
        """Return the values of all rows, one table after another."""
        return [value for found in self.values.values() for value in found]

    def words(self) -> dict[str, str]:
        """Return the split that each value names, "" if it names no split."""
        return {value: split_word(value)[0] for value in dict.fromkeys(self.every())}

    def says_something(self) -> bool:
        """Check if it tells rows apart, or all of them are of a split that it names."""
        words = self.words()
        return len(words) > 1 or all(words.values())

    def names_splits(self) -> bool:
        return all(self.words().values())

    def shown(self) -> str:
        """Return its values for an error, of many the first."""
        words = list(self.words())
        shown = ", ".join(repr(printable(value)) if value else "blank" for value in words[:_SHOWN])
        return shown + (f" and {len(words) - _SHOWN} more" if len(words) > _SHOWN else "")


def divide_by_column(
    name: str, tables: Mapping[str, Table], taken: Collection[str], asked: str, notes: list[str]
) -> Mapping[str, Table]:
    """Return the rows of each split, as a column names them, if there is such a column.

    `tables` are by the files' split, `taken` the columns of images and labels. `asked` is the setting split-column: a
    column, "none" for no column, or empty. What the account is to say is added to `notes`.

    Raises
    ------
    DataError
        If a column may be meant for splits and a row of it names none, columns or files contradict each other, or the
        column asked for cannot be it.
    """
    if asked == NO_COLUMN:
        return tables
    if asked:
        return _divided(tables, _asked(name, tables, taken, asked), notes)
    columns = list(dict.fromkeys(column for table in tables.values() for column in table.columns.types))
    found = [_read(tables, column) for column in columns if column not in taken and _may_name(tables, column)]
    found = [column for column in found if column.says_something()]
    if len(tables) > 1:
        for column in found:
            _check_against_files(name, column, notes)
        return tables
    readable = [column for column in found if column.names_splits()]
    others = [column for column in found if column not in readable]
    for column in (*readable[1:], *others) if readable else ():
        _check_against(name, readable[0], column, notes)
    if readable:
        return _divided(tables, readable[0], notes)
    for column in others:
        _refuse_or_note(name, column, notes)
    return tables


def is_split_column(table: Table, column: str) -> bool:
    """Check if a column of a table names the splits of its rows, rather than classes."""
    if not _may_name({"": table}, column):
        return False
    return _read({"": table}, column).names_splits()


def _bare(column: str) -> str:
    return re.sub(r"[\W\d_]", "", column).lower()


def _may_name(tables: Mapping[str, Table], column: str) -> bool:
    """Check if a column is called as one of splits is, or the values of most rows are the names of several splits."""
    holders = [table for table in tables.values() if column in table.columns.types]
    if not all(_is_plain(table.columns.types[column]) for table in holders):
        return False
    bare = _bare(column)
    if bare in _NAMES | _FOLDS | _LOOSE or _FLAG.fullmatch(bare):
        return True
    # Long texts of large tables are not read for this: where most rows name a split, so does one of the first.
    if not any(any(_plain_word(value) for value in _texts(table, column, sample=True)) for table in holders):
        return False
    values = _read(tables, column).every()
    words = {value: _plain_word(value) for value in set(values)}
    named = sum(bool(words[value]) for value in values)
    distinct = [word for word in words.values() if word]
    return len(set(distinct)) > 1 and "train" in distinct and 2 * named > len(values) and 2 * len(distinct) > len(words)


def _plain_word(value: str) -> str:
    word, rest = split_word(value)
    return word if not rest else ""


def _is_plain(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return is_text(kind) or any(test(kind) for test in (pa.types.is_integer, pa.types.is_boolean, pa.types.is_floating))


def _texts(table: Table, column: str, *, sample: bool = False) -> list[str]:
    """Return a column's values as texts, "" for none; those of classes by their names."""
    held = column in table.sample.column_names
    values = (table.sample.column(column).to_pylist() if held else []) if sample else table.all(column)
    names = table.columns.classes.get(column)
    if names is not None:
        values = [names[value] if value is not None and 0 <= value < len(names) else None for value in values]
    shown = {value: "" if value is None or value != value else str(value).strip() for value in set(values)}
    return [shown[value] for value in values]


def _read(tables: Mapping[str, Table], column: str) -> _Column:
    holders = {split: table for split, table in tables.items() if column in table.columns.types}
    return _Column(column, {split: _texts(table, column) for split, table in holders.items()})


def _asked(name: str, tables: Mapping[str, Table], taken: Collection[str], asked: str) -> _Column:
    holders = [table for table in tables.values() if asked in table.columns.types]
    if not holders:
        columns = next(iter(tables.values())).columns.shown()
        raise DataError(f"{name}: split-column: no column {asked!r}; there are {columns}; split-column=none takes none")
    if asked in taken:
        raise DataError(
            f"{name}: split-column: {asked!r} is taken for the images or the classes; name other columns for these "
            "with image-column and label-column"
        )
    if not all(_is_plain(table.columns.types[asked]) for table in holders):
        raise DataError(f"{name}: split-column: {asked!r} holds neither texts nor numbers, so it names no splits")
    return _read(tables, asked)


def _divided(tables: Mapping[str, Table], column: _Column, notes: list[str]) -> dict[str, Table]:
    """Return the rows by the column's value; with several tables, by table/value."""
    parts: dict[str, Table] = {}
    for split, table in tables.items():
        rows: dict[str, list[int]] = {}
        for row, value in enumerate(column.values.get(split, ())):
            rows.setdefault(value or BLANK, []).append(row)
        for value, found in rows.items():
            parts[value if len(tables) == 1 else f"{split}/{value}"] = table.select(np.array(found, np.int64))
        if not rows:
            parts[split] = table
    notes.append(f"splits were taken from column {column.name!r}")
    return parts


def _ways(column: _Column) -> str:
    values = [value or BLANK for value in column.words()]
    yes = _TRUE if "train" in column.bare else frozenset[str]()
    train = next((value for value in values if split_word(value)[0] == "train" or value.lower() in yes), values[0])
    test = next((value for value in values if value != train), "none")
    return (
        f"divide by it, such as with split-column={column.name} train-split={train} test-split={test}, or ignore it "
        "with split-column=none"
    )


def _refuse_or_note(name: str, column: _Column, notes: list[str]) -> None:
    """Refuse a column whose values are no splits' names; of one that may hold anything, note that it was not used."""
    words = column.words()
    if column.bare in _LOOSE and not any(words.values()) and not _few_numbers(words):
        notes.append(_unused(column))
        return
    values = column.every()
    odd = [row for row, value in enumerate(values) if not words[value]]
    value = repr(printable(values[odd[0]])) if values[odd[0]] else "blank"
    raise DataError(
        f"{name}: column {printable(column.name)!r} looks like one of splits ({column.shown()}), but "
        f"{counted(len(odd), 'row')} of {len(values)}, such as row {odd[0]} ({value}), name none: {_ways(column)}"
    )


def _few_numbers(words: Iterable[str]) -> bool:
    words = list(words)
    return len(words) <= _FEW and all(re.fullmatch(r"\d*(\.0)?", word) for word in words)


def _unused(column: _Column) -> str:
    return f"column {printable(column.name)!r} ({column.shown()}) was not taken for splits; split-column takes it"


def _check_against(name: str, first: _Column, other: _Column, notes: list[str]) -> None:
    """Refuse a column that divides the rows of a split otherwise; note one that is only not used."""
    meant = [split_word(value)[0] for value in first.every()]
    if other.names_splits():
        agrees = meant == [split_word(value)[0] for value in other.every()]
    else:
        agrees = len(set(zip(first.every(), other.every(), strict=True))) == len(set(first.every()))
        if not agrees and (other.bare in _FOLDS or (other.bare in _LOOSE and not any(other.words().values()))):
            notes.append(_unused(other))
            return
    if not agrees:
        raise DataError(
            f"{name}: columns {printable(first.name)!r} ({first.shown()}) and {printable(other.name)!r} "
            f"({other.shown()}) divide the rows differently; choose one with split-column={first.name} or "
            f"split-column={other.name}"
        )


def _check_against_files(name: str, column: _Column, notes: list[str]) -> None:
    """Refuse a column that names other splits than the files do, which tell the splits already."""
    for split, values in column.values.items():
        found = _Column(column.name, {split: values})
        words = found.words()
        meant = split_word(split)[0]
        agree = all(word == meant for word in words.values()) if any(words.values()) else len(words) == 1
        if agree or (len(words) == 1 and not meant):
            continue
        if any(words.values()) or _FLAG.fullmatch(column.bare):
            raise DataError(
                f"{name}: column {printable(column.name)!r} ({found.shown()}) of split {split!r} divides it, or names "
                f"another split than the file does: ignore the column with split-column=none, or take splits such as "
                f"{split}/{next(iter(words)) or BLANK} with split-column={column.name} and train-split"
            )
        if _unused(column) not in notes:
            notes.append(_unused(column))
