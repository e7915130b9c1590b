"""Tables with a column for each pixel, as MNIST's csv files are: the columns become one, of lists of pixels.

All columns of whole numbers called pixel0, pixel1, ... or 1x1, 1x2, ... are joined, even with other columns between.
"""

from __future__ import annotations

import re

import numpy as np
import pyarrow as pa

from psl_flower.data.columns import FEWEST_PIXELS, side_of_square
from psl_flower.errors import DataError
from psl_flower.text import printable

COLUMN = "pixels"
_NUMBERED = re.compile(r"(?:pixels?|pix|px)[ _.-]?(\d{1,7})", re.IGNORECASE)
_PLACED = re.compile(r"(\d{1,4})x(\d{1,4})", re.IGNORECASE)
_MOST_8_BITS = 0xFF


def pixel_names(columns: list[str]) -> list[str]:
    """Return the columns of pixels, row by row; empty without any, or with too few. Raises as `join_pixels`."""
    return _numbered(columns) or _placed(columns)


def join_pixels(table: pa.Table) -> pa.Table:
    """Return a table with its columns of pixels joined into one; a table without such columns unchanged.

    Raises
    ------
    DataError
        If columns are missing, hold anything but whole numbers, or imply no height and width; the caller must put the
        file's name before the message.
    """
    names = pixel_names(table.column_names)
    if not names:
        return table
    if COLUMN in table.column_names:
        raise DataError("has columns for pixels, and one called 'pixels'; rename that")
    shape = _shape(names)
    pixels_NP = _numbers(table, names)
    lists = pa.FixedSizeListArray.from_arrays(pa.array(pixels_NP.ravel()), shape[-1])
    if len(shape) == 2:
        lists = pa.FixedSizeListArray.from_arrays(lists, shape[0])
    return table.drop_columns(names).append_column(COLUMN, lists)


def _numbered(columns: list[str]) -> list[str]:
    """Return the columns called pixel0 and so on, in the order of their numbers; empty if there are too few."""
    numbers = {name: int(match[1]) for name in columns if (match := _NUMBERED.fullmatch(name))}
    if len(numbers) < FEWEST_PIXELS:
        return []
    names = sorted(numbers, key=numbers.__getitem__)
    first = numbers[names[0]]
    if first not in (0, 1) or [numbers[name] for name in names] != list(range(first, first + len(names))):
        raise DataError(
            f"has {len(names)} columns for pixels, {printable(names[0])} to {printable(names[-1])}, of which some "
            "are missing or there twice; complete the file, or leave it out with leave-out"
        )
    return names


def _placed(columns: list[str]) -> list[str]:
    """Return the columns called 1x1 and so on; empty if there are too few."""
    places = {name: (int(match[1]), int(match[2])) for name in columns if (match := _PLACED.fullmatch(name))}
    if len(places) < FEWEST_PIXELS:
        return []
    found = list(places.values())
    first, (rows, across) = found[0], found[-1]
    height, width = rows - first[0] + 1, across - first[1] + 1
    in_order = [(first[0] + k // width, first[1] + k % width) for k in range(len(found))] if width > 0 else []
    if first not in ((0, 0), (1, 1)) or height * width != len(found) or found != in_order:
        raise DataError(
            f"has {len(found)} columns for pixels, {next(iter(places))} to {list(places)[-1]}, which do not go "
            "through the image row by row; put them in the order 1x1, 1x2, ..., 2x1, ..., or leave it out"
        )
    return list(places)


def _shape(names: list[str]) -> tuple[int, ...]:
    """Return (height, width) if the names give them, else the number of pixels of a square."""
    first, last = _PLACED.fullmatch(names[0]), _PLACED.fullmatch(names[-1])
    if first and last:
        height, width = (int(last[axis]) - int(first[axis]) + 1 for axis in (1, 2))
        return height, width
    if not side_of_square(len(names)):
        raise DataError(
            f"has {len(names)} columns for pixels, which is no square, so nothing says their height, width and "
            "channels; call them 1x1, 1x2, ... by row and column if the images are grey, or save the images as files"
        )
    return (len(names),)


def _numbers(table: pa.Table, names: list[str]) -> np.ndarray:
    """Return the pixels (N, P), as 8 bits where all fit into these."""
    for name in names:
        column = table.column(name)
        if not pa.types.is_integer(column.type) or column.null_count:
            raise DataError(
                f"has a column {printable(name)!r} for pixels with something else than whole numbers, such "
                "as fractions or empty cells; save pixels as whole numbers, 0 to 255"
            )
    columns = [table.column(name).to_numpy() for name in names]
    low = min((int(values.min()) for values in columns if len(values)), default=0)
    high = max((int(values.max()) for values in columns if len(values)), default=0)
    fits = low >= 0 and high <= _MOST_8_BITS
    return np.stack([values.astype(np.uint8 if fits else np.int64) for values in columns], axis=1)
