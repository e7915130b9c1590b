"""Result files: what all benchmarks' reports have in common, and how they are written and read."""

from __future__ import annotations

import abc
import re
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

import msgspec

from psl_flower.errors import RunError
from psl_flower.system.files import read_file, write_file

# Settings of a run by their kebab-case keys.
Values = dict[str, str | int | float | bool]
Row = tuple[str, ...]
# Names of the columns, and the cells.
Cells = tuple[Row, list[Row]]


class _Meta(msgspec.StructMeta, abc.ABCMeta):
    """Lets a struct have abstract properties."""


class Report(msgspec.Struct, metaclass=_Meta, frozen=True, kw_only=True):
    """A result file; a benchmark's own report gives the first two their defaults, and adds what it measured."""

    #: Name of the benchmark, and version of its format.
    benchmark: str
    version: int
    date: str  #: Date and time of the start, UTC.
    #: CPU model, cores, memory in bytes, system, load average at the beginning, GPUs if used.
    machine: dict[str, str | int | float]
    versions: dict[str, str]  #: Versions of Python and the packages that matter.

    @property
    @abc.abstractmethod
    def title(self) -> str:
        """One line: what was measured, and where."""

    @property
    @abc.abstractmethod
    def tables(self) -> tuple[Cells, ...]:
        """For each table the names of its columns, and its rows."""

    @property
    @abc.abstractmethod
    def notes(self) -> str:
        """How to read the tables."""

    @property
    @abc.abstractmethod
    def command(self) -> str:
        """The command line that measures the same again."""

    @property
    def place(self) -> str:
        """The machine, in some words."""
        found = self.machine
        gpus = f", {found['gpus']} {found.get('gpu') or 'GPUs'}" if found["gpus"] else ""
        return f"{found['cpu']}, {found['cores']} cores, {float(found['memory_bytes']) / 2**30:.0f} GiB{gpus}"

    @property
    def load(self) -> str:
        """A sentence on how busy the machine was."""
        return f"Load of the machine before: {self.machine['load_before']}."


class Spread(msgspec.Struct, frozen=True, kw_only=True):
    """Median and range over the repetitions."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """Summarise one or more values."""
        known = sorted(values)
        return cls(median=statistics.median(known), low=known[0], high=known[-1])


Kind = TypeVar("Kind", bound=Report)

_NUMBERS = re.compile(rb"\[[\s\d.,eE+-]+\]")


def encode(report: msgspec.Struct) -> bytes:
    """Return a report, or a part of one, as JSON, indented, but numbers in a row: Flower's hub takes at most 1 MiB."""
    indented = msgspec.json.format(msgspec.json.encode(report), indent=1)
    return _NUMBERS.sub(lambda row: b" ".join(row[0].split()), indented)


def save(path: Path, report: msgspec.Struct) -> None:
    """Write a result file, or a part of one; raises RunError as `write`."""
    write(path, encode(report) + b"\n")


def write(path: Path, content: bytes) -> None:
    """Write a file whole or not at all; raises RunError if the disk refuses."""
    write_file(path, content, RunError)


def load(path: Path, *kinds: type[Kind]) -> Kind | None:
    """Read a result file; None if it is of another benchmark than those of these reports.

    Raises
    ------
    RunError
        If it cannot be read, is damaged, or of another version.
    """
    try:
        content = read_file(path, RunError)
        head = msgspec.json.decode(content)
        for kind in kinds:
            expected = {field.name: field.default for field in msgspec.structs.fields(kind)}
            if not isinstance(head, dict) or head.get("benchmark") != expected["benchmark"]:
                continue
            if head.get("version") != expected["version"]:
                raise RunError(
                    f"{path}: expected version {expected['version']} of the format, found {head.get('version')!r}"
                )
            return msgspec.json.decode(content, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise RunError(f"{path}: is no result file: {str(error)[:200]}") from error
    return None


def begun(path: Path | None, report: Kind) -> Kind:
    """Return the report of an earlier run in that file, if it has the same settings; else this one, which is new.

    Raises RunError as `load`.
    """
    before = load(path, type(report)) if path is not None and path.exists() else None
    same = getattr(before, "settings", None) == getattr(report, "settings", None)
    return before if before is not None and same else report
