"""Records kept as JSON files: one struct a file, written whole or not at all, or one in each line."""

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
    """Append a record to a file with a JSON object in each line, in place of a last one that a crash left unfinished.

    Raises `error` where the disk refuses.
    """
    with disk_errors(path, "written", error), path.open("a+b") as file:
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)
        file.write(msgspec.json.encode(record) + b"\n")


def read_records(path: Path, kind: type[T], error: type[PslError], advice: str) -> list[T]:
    """Read the records of `append_record`, without a last line that a crash left unfinished; none without a file.

    Raises
    ------
    `error`
        If the file cannot be read, or a line is damaged, or not of this kind; `advice` then says what to do.
    """
    if not path.exists():
        return []
    records = []
    for number, line in enumerate(read_file(path, error).split(b"\n")[:-1], 1):
        try:
            records += [msgspec.json.decode(line, type=kind)] if line else []
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as damage:
            raise error(f"{path}: line {number} is damaged: {damage}; {advice}") from damage
    return records


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
