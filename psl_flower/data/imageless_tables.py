"""Errors about a table that names no images, or too few: the nearest column, and why a row fails."""

from __future__ import annotations

import posixpath
import unicodedata
from collections.abc import Iterable

import pyarrow as pa

from psl_flower.data.columns import LABEL_NAMES, Resolve, is_text
from psl_flower.text import printable

_LOOKED_AT = 20


def near_miss(sample: pa.Table, resolve: Resolve, pictures: Iterable[str]) -> str:
    """Return the columns of a table that may be meant for images, and why the first odd row of each names none.

    `sample` are the table's first rows, `pictures` the paths of all images. The text is empty if no column comes
    near.
    """
    alike: dict[str, list[str]] = {}
    for path in pictures:
        alike.setdefault(_key(path), []).append(path)
    best, said = 0, ""
    for column in sample.column_names:
        kind = sample.schema.field(column).type
        if column.lower() in LABEL_NAMES or not (is_text(kind) or pa.types.is_integer(kind)):
            continue
        values = [str(value) for value in sample.column(column).slice(0, _LOOKED_AT).to_pylist() if value is not None]
        near = sum(_key(value) in alike for value in values)
        named = [is_text(kind) and resolve(value) is not None for value in values]
        if near > best and not all(named):
            odd = named.index(False)
            why = _why(values[odd], alike.get(_key(values[odd]), []), number=not is_text(kind))
            best = near
            said = (
                f"column {printable(column)!r} names {sum(named)} of the first {len(values)} images: row {odd} "
                f"({printable(values[odd])}) {why}"
            )
    return said


def _key(path: str) -> str:
    name = posixpath.basename(path.strip().replace("\\", "/"))
    stem, ending = posixpath.splitext(name)
    return unicodedata.normalize("NFC", stem if ending else name).casefold()


def _why(text: str, alike: list[str], *, number: bool) -> str:
    if not alike:
        return "names no existing image"
    shown = printable(alike[0])
    if number:
        return f"is a number; write the image's name, such as {shown}"
    same = [path for path in alike if posixpath.basename(path) == posixpath.basename(text)]
    if len(alike) > 1 and "/" not in text:
        return f"may be {shown} or {printable(alike[1])}; write paths"
    if same:
        return f"is not the path of {printable(same[0])} within the dataset; write that"
    return f"is spelt otherwise than {shown} (capitals, ending, or accents' coding); write it as that"
