"""Parquet files that are small on the disk and fill a machine's memory once they are read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import parquet
from rich.filesize import decimal

from psl_flower.errors import DataError
from psl_flower.text import printable

# Images compress little, and a table may name one of them many times. What expands further than both is refused.
_EXPANDED_BYTES = 1 << 30
_TIMES = 50
_BATCH_ROWS = 1000


def check_expansion(path: Path) -> None:
    """Raise DataError for a column that takes over 1 GiB in memory, and over 50 times the file's size.

    A page may be compressed, and a value of a dictionary may stand in a million rows. Little is read: the metadata, and
    dictionaries. Only where these do not bound the size, values are counted, without expanding them.
    """
    size = path.stat().st_size
    most = max(_EXPANDED_BYTES, _TIMES * size)
    with parquet.ParquetFile(path) as file:
        leaves = [file.schema.column(index) for index in range(len(file.schema))]
        groups = [file.metadata.row_group(group) for group in range(file.num_row_groups)]
    for index, leaf in enumerate(leaves):
        chunks = [group.column(index) for group in groups]
        expanded = sum(chunk.total_uncompressed_size for chunk in chunks)
        if leaf.physical_type != "BYTE_ARRAY":
            expanded = max(expanded, sum(chunk.num_values for chunk in chunks) * max(leaf.length, 1))
        elif expanded <= most and any(chunk.has_dictionary_page for chunk in chunks):
            expanded += _by_dictionary(path, leaf.path, [chunk.num_values for chunk in chunks], most)
        if expanded > most:
            raise DataError(
                f"would fill the memory: its column {printable(leaf.path)} takes {decimal(expanded)} or more once "
                f"it is read, and the file has {decimal(size)}; write it again with each image in one row, uncompressed"
            )


def _by_dictionary(path: Path, name: str, values: list[int], most: int) -> int:
    """Return a column's bytes in memory: a bound from its dictionaries if that is small, else counted."""
    with parquet.ParquetFile(path, read_dictionary=[name]) as file:
        bound = 0
        for group, count in enumerate(values):
            first = next(_dictionaries(file, name, 1, [group]), None)
            bound += count * (pc.max(pc.binary_length(first.dictionary)).as_py() or 0 if first is not None else 0)
        if bound <= most:
            return bound
        counted = 0
        for found in _dictionaries(file, name, _BATCH_ROWS, range(len(values))):
            counted += pc.sum(pc.take(pc.binary_length(found.dictionary), found.indices)).as_py() or 0
            if counted > most:
                break
        return counted


def _dictionaries(
    file: parquet.ParquetFile, name: str, rows: int, groups: list[int] | range
) -> Iterator[pa.DictionaryArray]:
    """Yield a column's values by batches of rows, from within any structs and lists."""
    for batch in file.iter_batches(batch_size=rows, row_groups=list(groups), columns=[name]):
        array = batch.column(0)
        while not pa.types.is_dictionary(array.type):
            if isinstance(array, pa.ExtensionArray):
                array = array.storage
            elif pa.types.is_struct(array.type):
                array = array.field(0)
            elif pa.types.is_nested(array.type):
                array = array.flatten()
            else:  # texts whose type keeps them from being read so, such as JSON
                array = array.dictionary_encode()
        yield array
