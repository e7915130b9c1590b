"""Shared parts of the commands: options, tables, exit statuses."""

from __future__ import annotations

import json
import os
import shutil
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from psl_flower.cli.completion import run_names, settings
from psl_flower.errors import PslError
from psl_flower.system.machine import forbid_core_dumps
from psl_flower.system.stdio import drop_output, open_streams
from psl_flower.text import printable

if TYPE_CHECKING:
    from psl_flower.runs.folder import RunFolder

RunArgument = Annotated[str, typer.Argument(metavar="[RUN]", help="Name of the run.", autocompletion=run_names)]
# A run is named by its position or with --run; `find_run` chooses where neither is given.
RunName = Annotated[
    str, typer.Option("--run", help="Name of the run [the newest that fits].", autocompletion=run_names)
]
Workspace = Annotated[str, typer.Option("--workspace", help="Folder of runs [$PSL_WORKSPACE, or ~/psl-flower].")]
RunSettings = Annotated[
    list[str] | None,
    typer.Argument(
        help="Such as rounds=5 patch-size=8x8; psl settings lists all.",
        metavar="KEY=VALUE",
        autocompletion=settings,
    ),
]
# Exit status of `psl verify` where nothing is wrong, but not everything was given.
INCOMPLETE = 3
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def run_named(position: str, option: str) -> str:
    """Return the name of a run that is given by its position or with --run; empty if it is not.

    Raises
    ------
    typer.BadParameter
        If both are given and differ.
    """
    if position and option and position != option:
        raise typer.BadParameter(f"two runs are named, {position} and --run {option}; name one")
    return position or option


def find_run(position: str, workspace: str, option: str = "", *, with_model: bool = True) -> RunFolder:
    """Return the named run, see `run_named`; without a name the newest that fits, as `choose_run` does."""
    from psl_flower.config import default_workspace
    from psl_flower.runs.choosing import choose_run

    return choose_run(default_workspace(workspace), run_named(position, option), with_model=with_model)


def tell(report: Mapping[str, object], lines: Iterable[str], as_json: bool) -> None:
    """Print a result: as one JSON object, or as lines for people."""
    for line in [json.dumps(report)] if as_json else lines:
        say(line)


def say(line: str, *, err: bool = False) -> None:
    """Print one line, on standard error if asked; what names in it may do to a terminal or a log is escaped.

    On a terminal a long one is wrapped between words.
    """
    text = printable(line)
    if (sys.stderr if err else sys.stdout).isatty():
        import textwrap

        width = shutil.get_terminal_size().columns
        text = textwrap.fill(text, width, break_long_words=False, break_on_hyphens=False, replace_whitespace=False)
    typer.echo(text, err=err)


def percent(share: float | None) -> str:
    """Return a share in 0..1 as text; a dash for None."""
    return "-" if share is None else f"{share:.2%}"


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """Print rows of cells in columns, the first row being their names."""
    rows = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def exit_status(work: Callable[[], object]) -> int:
    """Do a command's work and return its exit status: 0, 1 (failed), 2 (usage), 3 (incomplete) or 130 (Ctrl-C).

    An error becomes one line on standard error.
    """
    forbid_core_dumps()  # commands open keys
    open_streams()
    try:
        status = _status_of(work)
        sys.stdout.flush()
        return status
    except PslError as error:
        if os.environ.get("PSL_DEBUG") == "1":
            traceback.print_exc()
        return _failed(" ".join(str(error).split()) or type(error).__name__)
    except PermissionError as error:
        place = error.filename or "a file or folder"
        return _failed(f"{place}: permission denied; let this user at it (chown, chmod)")
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        drop_output()  # its reader has gone
        return 1


def _status_of(work: Callable[[], object]) -> int:
    try:
        work()
    except SystemExit as exit_:
        return exit_.code if isinstance(exit_.code, int) else 0
    return 0


def _failed(why: str) -> int:
    print(f"error: {printable(why)}", file=sys.stderr)
    return 1
