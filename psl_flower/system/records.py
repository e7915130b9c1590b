"""Records kept as JSON files: one struct a file, written whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import msgspec

from psl_flower.errors import PslError, StoreError, StoreUnreachable
from psl_flower.system.files import disk_errors, read_file, write_file

T = TypeVar("T")


def write_record(
    path: Path,
    record: msgspec.Struct,
    error: type[PslError] = StoreUnreachable,
    *,
    mode: int | None = None,
    parents: bool = False,
) -> None:
    """Write a record as indented JSON, durably; parameters and errors are those of `write_file`."""
    content = msgspec.json.format(msgspec.json.encode(record), indent=2)
    write_file(path, content, error, mode=mode, parents=parents)


def append_record(path: Path, record: object, error: type[PslError] = StoreUnreachable) -> None:
    """Append a record to a file with a JSON object in each line; raises `error` where the disk refuses."""
    with disk_errors(path, "written", error), path.open("ab") as file:
        file.write(msgspec.json.encode(record) + b"\n")


def read_record(path: Path, kind: type[T], error: type[PslError] = StoreUnreachable) -> T:
    """Read a record of `write_record`; errors besides are those of `read_file`.

    Raises
    ------
    StoreError, or `error`
        If it is damaged, or not of this kind.
    """
    try:
        return msgspec.json.decode(read_file(path, error), type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as damage:
        damaged = StoreError if error is StoreUnreachable else error
        raise damaged(f"{path}: damaged: {damage}") from damage
