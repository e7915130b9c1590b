"""A report for people: what every benchmark says of itself, shown on a terminal."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from simulations.reports import Report, Spread, Values
from simulations.settings import DEFAULTS, differing

# A pipe has no width of its own.
_WIDTH = 120
Row = tuple[str, ...]
# Names of the columns, and the cells.
Cells = tuple[Row, list[Row]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Presentation:
    """A report in words.

    Attributes
    ----------
    title : str
        One line: what was measured, and where.
    tables : tuple
        For each table the names of its columns, and its rows.
    notes : str
        How to read the tables.
    command : str
        The command line that measures the same again.
    """

    title: str
    tables: tuple[Cells, ...]
    notes: str
    command: str


def show(presentation: Presentation) -> None:
    """Print a report on standard output."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else _WIDTH)
    console.print(presentation.title)
    for head, rows in presentation.tables:
        if rows:
            table = Table(*head[:1])
            for name in head[1:]:
                table.add_column(name, justify="right")
            for row in rows:
                table.add_row(*row)
            console.print(table)
    console.print(presentation.notes)


def machine(report: Report) -> str:
    """Return the report's machine in some words."""
    found = report.machine
    gpus = f", {found['gpus']} {found.get('gpu') or 'GPUs'}" if found["gpus"] else ""
    return f"{found['cpu']}, {found['cores']} cores, {float(found['memory_bytes']) / 2**30:.0f} GiB{gpus}"


def dataset_name(name: str) -> str:
    """Return a dataset's name; of a folder, wherever it lies, its last part."""
    return Path(name).name if name.startswith((".", "/")) else name


def spread(values: Spread | None, text: Callable[[float], str]) -> str:
    """Return "median (low to high)", or the one value there is; a dash where there is nothing."""
    if values is None:
        return "-"
    if values.low == values.high:
        return text(values.median)
    return f"{text(values.median)} ({text(values.low)} to {text(values.high)})"


def again(name: str, options: Sequence[str], config: Values, defaults: Mapping[str, object] = DEFAULTS) -> str:
    """Return the command line that measures the same again; of the settings only those that were asked for."""
    asked = (f"{key}={_text(value)}" for key, value in differing(config, defaults).items())
    return shlex.join(["python", "-m", f"simulations.{name}", *options, *asked])


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
