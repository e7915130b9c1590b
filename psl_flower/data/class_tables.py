"""The tables of classes that files of embedded images declare, one for each file; the `datasets` library joins them.

A label is a number, and which class it means stands in the file that holds it: of files that number their classes
differently the library takes the first one's table for all.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
from pyarrow import parquet

from psl_flower.data.columns import Columns, first_difference
from psl_flower.data.table import Table
from psl_flower.data.table_files import LARGE_ENDINGS, open_arrow
from psl_flower.errors import DataError
from psl_flower.text import printable

ClassTables = dict[str, tuple[str, ...]]


def declared_classes(name: str, files: Iterable[tuple[str, Path]]) -> ClassTables:
    """Return the classes that files declare, by column; other files than parquet and arrow declare none.

    `files` are what each is called, and where it is.

    Raises
    ------
    DataError
        If a file cannot be read, or two of them number the classes of a column differently.
    """
    found: dict[str, tuple[str, tuple[str, ...]]] = {}
    for path, place in files:
        ending = Path(path).suffix.lower()
        if ending not in LARGE_ENDINGS:
            continue
        try:
            schema = parquet.read_schema(place) if ending == ".parquet" else _arrow_schema(place)
        except (OSError, ValueError, pa.ArrowException) as error:
            raise DataError(f"{name}: {printable(path)} cannot be read as a table: {error}") from error
        for column, names in Columns.of(schema).classes.items():
            first, known = found.setdefault(column, (path, names))
            if names != known:
                raise DataError(
                    f"{name}: {printable(first)} and {printable(path)} number the classes of column {column!r} "
                    f"differently ({first_difference(known, names)}); write both with the same table of classes"
                )
    return {column: names for column, (_, names) in found.items()}


def with_own_classes(
    tables: Mapping[str, Table], declared: Mapping[str, ClassTables], notes: list[str]
) -> dict[str, Table]:
    """Return each split's table with the classes that its own files declare, if splits differ in these.

    `tables` have the classes that the library takes for all splits, `declared` those that `declared_classes` has found
    by split. What the account is to say is added to `notes`.
    """
    own = {split: dict(table.columns.classes) for split, table in tables.items()}
    for column in sorted({column for classes in declared.values() for column in classes}):
        found = {split: classes[column] for split, classes in declared.items() if column in classes}
        if len(set(found.values())) > 1:
            for split in found.keys() & own.keys():
                own[split][column] = found[split]
            continue
        (names,) = set(found.values())
        joined = next((classes[column] for classes in own.values() if column in classes), names)
        if joined != names:
            notes.append(
                f"the dataset's card numbers the classes of column {column!r} otherwise than its files do "
                f"({first_difference(joined, names)}); the card's names were taken"
            )
    return {
        split: replace(table, columns=replace(table.columns, classes=own[split])) for split, table in tables.items()
    }


def _arrow_schema(place: Path) -> pa.Schema:
    with open_arrow(place) as reader:
        return reader.schema
