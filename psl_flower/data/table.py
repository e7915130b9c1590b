"""One split's rows of a table, as it lies in a folder or as the `datasets` library opens it.

Shape suffixes: N rows of a split, R rows asked for, F files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from psl_flower.data.columns import Columns

_SAMPLE_ROWS = 20


@dataclass(frozen=True, slots=True)
class Table:
    """One split's rows."""

    columns: Columns  #: Its columns.
    num_rows: int  #: N.
    sample: pa.Table  #: The first of its rows.
    #: Takes a column's name and row numbers (R,), and returns their values.
    read: Callable[[str, NDArray[np.int64]], list[Any]]
    all: Callable[[str], list[Any]]  #: Takes a column's name, and returns the values of all rows.
    #: Takes a row's number, and returns the file that it comes from and its number there, where that is known.
    origin: Callable[[int], tuple[str, int]] | None = None

    @classmethod
    def of(cls, table: pa.Table, files: Mapping[str, int]) -> Table:
        """Return the rows of an Arrow table that was joined from files with these numbers of rows."""
        ends_F = np.cumsum(list(files.values()))
        paths = list(files)

        def origin(row: int) -> tuple[str, int]:
            k = int(np.searchsorted(ends_F, row, side="right"))
            return paths[k], row - int(ends_F[k] - files[paths[k]])

        return cls(
            columns=Columns.of(table.schema),
            num_rows=len(table),
            sample=table.slice(0, _SAMPLE_ROWS),
            read=lambda column, rows_R: _rows(table.column(column), rows_R).to_pylist(),
            all=lambda column: table.column(column).to_pylist(),
            origin=origin,
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
        origin = self.origin
        return replace(
            self,
            num_rows=len(rows_R),
            read=lambda column, some_R: self.read(column, rows_R[some_R]),
            all=lambda column: self.read(column, rows_R),
            origin=None if origin is None else lambda row: origin(int(rows_R[row])),
        )


def _rows(values: pa.ChunkedArray, rows_R: NDArray[np.int64]) -> pa.ChunkedArray:
    """Return some rows of a column; those that follow each other without a copy."""
    if len(rows_R) and (np.diff(rows_R) == 1).all():
        return values.slice(int(rows_R[0]), len(rows_R))
    return values.take(pa.array(rows_R))
