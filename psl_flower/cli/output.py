"""What the commands share: options, tables, a sign of life."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from typing import Annotated

import typer

RunName = Annotated[str, typer.Option("--run", help="Name of the run [the newest that has a model].")]
Workspace = Annotated[str, typer.Option("--workspace", help="Folder of runs [$PSL_WORKSPACE, or ~/psl-flower].")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def percent(share: float | None) -> str:
    """Return a share in 0..1 as text; a dash where there is none."""
    return "-" if share is None else f"{share:.2%}"


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """Print rows of cells in columns, the first row being their names."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


@contextlib.contextmanager
def spinner(text: str) -> Iterator[None]:
    """Show on standard error that something goes on; nothing where it is no terminal."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(text):
        yield
