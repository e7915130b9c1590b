"""The program `psl`: its commands, and how an error ends."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from importlib import metadata
from typing import Annotated

import click
import typer
from typer.core import TyperCommand

from psl_flower.errors import PslError
from psl_flower.system.machine import forbid_core_dumps
from psl_flower.system.streams import drop_output, open_streams

_FAILED, _INTERRUPTED = 1, 130


class _Command(TyperCommand):
    def get_help(self, ctx: click.Context) -> str:
        """Return the help text; typer escapes brackets for rich also where rich does not print them."""
        return super().get_help(ctx).replace("\\[", "[")


def make_app() -> typer.Typer:
    """Return the program with all its commands."""
    from psl_flower.cli import doctor, inspect, lighten, models, owner, restorer, runs, settings, train

    # Plain text, so that an error is one line for a person and for a script alike.
    app = typer.Typer(
        name="psl", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None
    )
    app.callback()(_program)
    for commands in (train, settings, inspect, models, lighten, runs, owner, restorer, doctor):
        commands.register(app)
    for info in app.registered_commands:
        info.cls = _Command
    return app


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program and return its exit status: 0, 1 (failed), 2 (usage), 130 (Ctrl-C) or 143 (SIGTERM).

    Parameters
    ----------
    arguments : sequence of str, optional
        Without the program's name; None takes those of the process.
    """
    open_streams()
    try:
        return _run(arguments)
    except PslError as error:
        if os.environ.get("PSL_DEBUG") == "1":
            traceback.print_exc()
        print(f"error: {_one_line(error)}", file=sys.stderr)
        return _FAILED
    except PermissionError as error:
        place = error.filename or "a file or folder"
        print(f"error: {place}: permission denied; let this user at it (chown, chmod)", file=sys.stderr)
        return _FAILED
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:
        drop_output()  # whoever read it has gone
        return _FAILED


def _run(arguments: Sequence[str] | None) -> int:
    try:
        make_app()(arguments, prog_name="psl")
    except SystemExit as exit_:
        sys.stdout.flush()
        return exit_.code if isinstance(exit_.code, int) else 0
    return 0


def _one_line(error: PslError) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _version(wanted: bool) -> None:
    if wanted:
        try:
            typer.echo(f"psl {metadata.version('psl-flower')}")
        except metadata.PackageNotFoundError:
            typer.echo("psl, not installed")
        raise typer.Exit


def _program(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show it.")] = False,
) -> None:
    """Patch split learning on Flower: train an image classifier without giving any server whole images."""
    forbid_core_dumps()  # commands open keys


if __name__ == "__main__":
    sys.exit(main())
