"""The program `psl`: its commands, and how an error ends."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import metadata
from typing import Annotated

import click
import typer

from psl_flower.cli.command import CONTEXT, Command
from psl_flower.cli.output import exit_status


def make_app() -> typer.Typer:
    """Return the program with all its commands."""
    from psl_flower.cli import (
        doctor,
        housekeeping,
        inspect,
        leak,
        lighten,
        models,
        owner,
        report,
        restorer,
        runs,
        settings,
        train,
    )

    # Plain text, so that an error is one line for a person and for a script alike.
    app = typer.Typer(
        name="psl", no_args_is_help=True, context_settings=dict(CONTEXT), pretty_exceptions_enable=False,
        rich_markup_mode=None,
        # A click that suggests commands itself would do it a second time.
        suggest_commands=not hasattr(click.exceptions, "NoSuchCommand"),
    )  # fmt: skip
    app.callback()(_program)
    for commands in (
        train,
        settings,
        inspect,
        models,
        leak,
        lighten,
        runs,
        report,
        housekeeping,
        owner,
        restorer,
        doctor,
    ):
        commands.register(app)
    for info in app.registered_commands:
        info.cls, info.context_settings = Command, dict(CONTEXT)
    return app


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program and return its exit status, see `exit_status`, or 143 (SIGTERM).

    Parameters
    ----------
    arguments : sequence of str, optional
        Without the program's name; None takes those of the process.
    """
    return exit_status(lambda: make_app()(arguments, prog_name="psl"))


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


if __name__ == "__main__":
    sys.exit(main())
