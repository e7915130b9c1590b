"""Finds the columns of a table that hold the images and the classes, and reads both.

A column whose name states its role wins, but is refused if its type does not suit that role; if several columns are
possible, the user must name one.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from psl_flower.data.files import begins_as_image, read_image_file
from psl_flower.data.pixels import Decoder
from psl_flower.errors import CorruptImage, DataError
from psl_flower.text import printable

IMAGE_NAMES = ("image", "img", "picture", "photo", "pixels")
LABEL_NAMES = ("label", "fine_label", "labels", "class", "target", "category")
_SHOWN = 20
_NUMBER = re.compile(r"[+-]?\d{1,15}(\.\d{0,15})?")
_SAMPLED = 20
# A flat list of fewer numbers is rather a box or a vector than a square image.
FEWEST_PIXELS = 64


class Resolve(Protocol):
    """Finds the file of an image that a text names, looking first beside a table that lies in the folder `beside`."""

    def __call__(self, text: str, beside: str = "") -> Path | None:
        """Return its place; None if there is no such image, or several may be meant."""
        ...


class ImageKind(StrEnum):
    """How a column holds images."""

    FILE = "image files"
    BYTES = "encoded images"
    PATH = "paths of images"
    ARRAY = "arrays of pixels"
    SQUARE = "flat lists of pixels"


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns of a table."""

    types: Mapping[str, pa.DataType]  #: Arrow's types, in order.
    #: Those that say of themselves that they hold images, as tables of the `datasets` library do.
    images: frozenset[str] = frozenset()
    #: Those that say of themselves that they hold classes, with the names of these.
    classes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, schema: pa.Schema) -> Columns:
        """Return the columns of a table of Arrow's, with what the `datasets` library has noted on them."""
        types = {column.name: column.type for column in schema}
        try:
            noted = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
            features = {name: dict(about) for name, about in noted["info"]["features"].items() if name in types}
        except (ValueError, KeyError, TypeError, AttributeError):
            features = {}
        images = frozenset(name for name, about in features.items() if about.get("_type") == "Image")
        classes = {
            name: tuple(map(str, about["names"]))
            for name, about in features.items()
            if about.get("_type") == "ClassLabel" and isinstance(about.get("names"), list)
        }
        return cls(types, images, classes)

    def shown(self) -> str:
        """Return the columns' names for an error; of very many the first."""
        names = [printable(name) for name in self.types]
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        return f"{', '.join(names[:_SHOWN])}{more}"


def image_kinds(columns: Columns, sample: pa.Table, resolve: Resolve | None = None) -> dict[str, ImageKind]:
    """Return the columns that can be the images, and how they hold them.

    `sample` are the first rows. Without `resolve`, which finds the file that a text names, no text names an image.
    """
    found = {}
    for name, kind in columns.types.items():
        if name in columns.images:
            found[name] = ImageKind.FILE
            continue
        values = sample.column(name).drop_null().slice(0, _SAMPLED).to_pylist() if name in sample.column_names else []
        # A class may be called as an image is, such as 7 and 7.png.
        named = None if name.lower() in LABEL_NAMES else resolve
        told = _image_kind(getattr(kind, "storage_type", kind), values, named)
        if told is not None:
            found[name] = told
    return found


def _image_kind(kind: pa.DataType, values: list[Any], resolve: Resolve | None) -> ImageKind | None:
    if not values:
        return None
    if pa.types.is_struct(kind) and any(part.name == "bytes" and _is_binary(part.type) for part in kind):
        return ImageKind.FILE
    if _is_binary(kind):
        return ImageKind.BYTES if begins_as_image(values[0]) else None
    if is_text(kind):
        found = [resolve(value) for value in values] if resolve is not None else []
        # Most, not all: which row names no image is for the reading to say.
        return ImageKind.PATH if 2 * sum(place is not None for place in found) > len(values) else None
    depth = 0
    while _is_list(kind):
        kind, depth = kind.value_type, depth + 1
    if depth in (2, 3) and (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        return ImageKind.ARRAY
    if depth == 1 and pa.types.is_integer(kind):
        (length, *others) = {len(value) for value in values}
        return ImageKind.SQUARE if not others and length >= FEWEST_PIXELS and side_of_square(length) else None
    return None


def choose_image(name: str, columns: Columns, kinds: Mapping[str, ImageKind], wanted: str) -> str:
    """Return the column of the images; raises DataError if none can be it, or several."""
    if wanted:
        if wanted not in kinds:
            raise DataError(f"{name}: no image column {wanted!r}; image columns: {', '.join(kinds) or 'none'}")
        return wanted
    if not kinds:
        raise DataError(
            f"{name}: no column holds images; the columns are {columns.shown()}; a column of images holds image files, "
            "their paths, or lists of rows of pixels"
        )
    declared = [column for column, kind in kinds.items() if kind is ImageKind.FILE]
    return _only(name, "images", "image-column", declared or list(kinds), IMAGE_NAMES)


def choose_label(name: str, columns: Columns, image: str, wanted: str) -> str:
    """Return the column of the classes.

    Raises
    ------
    DataError
        If none can be it, or several, or the one whose name says so has a type that is not fit for it.
    """
    others = [column for column in columns.types if column != image]
    declared = [column for column in others if column in columns.classes]
    fit = declared + [column for column in others if column not in declared and _is_plain(columns.types[column])]
    if wanted:
        if wanted not in fit:
            raise DataError(
                f"{name}: no label column {wanted!r}; columns that can be labels: {', '.join(fit) or 'none'}"
            )
        return wanted
    named = [column for column in others if column.lower() in LABEL_NAMES]
    if named:
        chosen = _only(name, "labels", "label-column", named, LABEL_NAMES)
        if chosen not in fit:
            raise DataError(
                f"{name}: column {chosen!r} holds {columns.types[chosen]}, which is not taken for classes; name "
                f"another one with label-column ({', '.join(fit) or 'none is fit'})"
            )
        return chosen
    if not fit:
        raise DataError(f"{name}: no column holds labels; besides the images ({image}) there must be a label for each")
    return _only(name, "labels", "label-column", declared or fit, LABEL_NAMES)


def one_hot_columns(columns: Columns, sample: pa.Table) -> list[str]:
    """Return the columns of numbers that may be a class each, one of which is 1 in each row and the others 0."""
    kinds = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean)
    held = [name for name in sample.column_names if any(test(columns.types[name]) for test in kinds)]
    values = {name: sample.column(name).to_pylist() for name in held if name not in columns.classes}
    flags = {name: found for name, found in values.items() if set(found) <= {0, 1}}
    whole = len(flags) > 1 and all(sum(row) == 1 for row in zip(*flags.values(), strict=True))
    return list(flags) if whole and sample.num_rows else []


def same_numbers(class_names: Iterable[str]) -> list[tuple[str, str]]:
    """Return the pairs of classes that are one number written in two ways, such as 1 and 1.0."""
    first: dict[float, str] = {}
    found = []
    for name in class_names:
        if _NUMBER.fullmatch(name) and first.setdefault(float(name), name) != name:
            found.append((first[float(name)], name))
    return found


def _only(name: str, what: str, key: str, candidates: Sequence[str], preferred: Sequence[str]) -> str:
    """Return the only candidate, or the one that is called just so, or that alone has one of the preferred names."""
    if len(candidates) == 1:
        return candidates[0]
    just_so = [column for column in candidates if column == preferred[0]]
    known = just_so or [column for column in candidates if column.lower() in preferred]
    if len(known) == 1:
        return known[0]
    noun = "label" if what == "labels" else "images"
    raise DataError(
        f"{name}: several columns can be the {noun} ({', '.join(known or candidates)}); choose one with {key}"
    )


def read_labels(
    name: str, column: str, tables: Mapping[str, tuple[Columns, Sequence[Any]]], *, asked: bool
) -> tuple[tuple[str, ...], dict[str, NDArray[np.int64]]]:
    """Return the class names, and the labels (N,) of each split, -1 for none.

    `tables` has by split the columns and the column's values; `asked` is whether a person has named the column.

    Raises
    ------
    DataError
        If the splits' tables of classes differ, a value is no class, or the column is rather an id.
    """
    known = {split: columns.classes.get(column) for split, (columns, _) in tables.items()}
    first, *others = known.items()
    for split, names in others:
        if names != first[1]:
            raise DataError(
                f"{name}: splits {first[0]!r} and {split!r} number the classes of {column!r} differently "
                f"({first_difference(first[1], names)}); write both with the same table of classes, or do without one "
                f"of them, such as with train-split={first[0]} test-split=none"
            )
    values: dict[str, Sequence[Any]] = {split: found for split, (_, found) in tables.items()}
    if first[1] is not None:
        class_names, index = first[1], dict[Any, int](enumerate(range(len(first[1]))))
    else:
        values = {split: [_plain(name, column, value) for value in found] for split, found in values.items()}
        # In a plain column of whole numbers -1 is the usual mark of a missing label, too.
        present = [value for found in values.values() for value in found if value not in (None, -1)]
        unique = sorted(set(present), key=lambda value: (isinstance(value, str), value))
        if len(unique) == len(present) > 2 and not asked and column.lower() not in LABEL_NAMES:
            raise DataError(
                f"{name}: column {column!r} has another value for each of its {len(present)} images, as an id has; if "
                f"these are the classes, say so with label-column={column}"
            )
        class_names, index = tuple(map(str, unique)), {value: k for k, value in enumerate(unique)}
    index |= {-1: -1, None: -1}
    try:
        return class_names, {split: np.array([index[v] for v in found], np.int64) for split, found in values.items()}
    except KeyError as error:
        raise DataError(f"{name}: column {column!r} holds a label outside its {len(class_names)} classes") from error


def _plain(name: str, column: str, value: Any) -> Any:
    """Return a label as text, whole number or None; true and false as text."""
    if value == "":
        return None
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, float):
        if math.isnan(value):
            return None
        if math.isinf(value) or value != int(value):
            raise DataError(
                f"{name}: column {column!r} holds numbers such as {value:g}, which are no classes; name another one "
                "with label-column"
            )
        return int(value)
    return value


def read_image(cell: Any, kind: ImageKind, decoder: Decoder, resolve: Resolve | None, where: str) -> NDArray[np.uint8]:
    """Return the image in a cell, uint8 (H, W, C).

    Raises
    ------
    CorruptImage
        If there is none, or it cannot be read.
    DataError
        As the decoder does.
    """
    if kind in (ImageKind.ARRAY, ImageKind.SQUARE) and cell is not None:
        try:
            values = np.array(cell)
        except ValueError:
            values = np.array([])
        if kind is ImageKind.SQUARE:
            side = side_of_square(values.size)
            values = values.reshape(side, side) if side and values.ndim == 1 else values
        return decoder.array(values, where)
    encoded, path = _content(cell, kind) if cell is not None else (None, "")
    if path:
        where = f"{where} ({printable(path)})"
    if encoded is not None:
        return decoder.file(encoded, where)
    if not path:
        raise CorruptImage(f"{where}: there is no image; remove the row from the dataset")
    found = resolve(path) if resolve is not None else None
    return decoder.file(read_image_file(found or path, where), where)


def path_in(cell: Any, kind: ImageKind) -> str:
    """Return the printable path in a cell, or beside the image in it; else an empty text."""
    if cell is None or kind in (ImageKind.ARRAY, ImageKind.SQUARE):
        return ""
    return printable(_content(cell, kind)[1])


def _content(cell: Any, kind: ImageKind) -> tuple[bytes | None, str]:
    if kind is ImageKind.BYTES:
        return cell, ""
    if kind is ImageKind.PATH:
        return None, cell
    return cell.get("bytes"), cell.get("path") or ""


def is_text(kind: pa.DataType) -> bool:
    """Check if a column of this type holds texts."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _is_plain(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    tests: Iterable[Callable[[pa.DataType], bool]] = (
        is_text, pa.types.is_integer, pa.types.is_boolean, pa.types.is_floating, pa.types.is_null
    )  # fmt: skip
    return any(test(kind) for test in tests)


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def side_of_square(length: int) -> int:
    """Return the side of a square image by its number of pixels; 0 if it is no square."""
    side = math.isqrt(length)
    return side if side * side == length else 0


def first_difference(one: tuple[str, ...] | None, other: tuple[str, ...] | None) -> str:
    """Return where two tables of classes differ first, such as "0 is cat; 0 is dog"; None is a column without one."""
    length = min(len(one or ()), len(other or ()))
    place = next((k for k in range(length) if (one or ())[k] != (other or ())[k]), length)
    return f"{_short(one, place)}; {_short(other, place)}"


def _short(names: tuple[str, ...] | None, place: int) -> str:
    if names is None:
        return "no table"
    return f"{place} is {printable(names[place])}" if place < len(names) else f"{len(names)} classes"
