"""What the commands share: options and tables."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated

import typer

RunName = Annotated[str, typer.Option("--run", help="Name of the run [the newest that has a model].")]
Workspace = Annotated[str, typer.Option("--workspace", help="Folder of runs [$PSL_WORKSPACE, or ~/psl-flower].")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def tell(report: Mapping[str, object], lines: Iterable[str], as_json: bool) -> None:
    """Print a result: as one JSON object, or as lines for people."""
    for line in [json.dumps(report)] if as_json else lines:
        typer.echo(line)


def percent(share: float | None) -> str:
    """Return a share in 0..1 as text; a dash where there is none."""
    return "-" if share is None else f"{share:.2%}"


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """Print rows of cells in columns, the first row being their names."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
