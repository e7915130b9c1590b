"""The program `psl`: its commands, and how an error ends."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import Annotated

import click
import typer

from psl_flower.cli.command import CONTEXT, Command
from psl_flower.cli.output import exit_status

# Modules of the commands, in the order of `psl --help`.
COMMANDS = {
    "train": "train",
    "pretrain": "pretrain",
    "settings": "settings",
    "inspect": "inspect",
    "predict": "models",
    "evaluate": "models",
    "export": "models",
    "leak": "leak",
    "lighten": "lighten",
    "runs": "runs",
    "report": "report",
    "compare": "report",
    "rm": "housekeeping",
    "prune": "housekeeping",
    "keygen": "owner",
    "ingest": "ingest",
    "receive": "owner",
    "verify": "verify",
    "rotate": "owner",
    "restore": "restorer",
    "authorise": "restorer",
    "relabel": "restorer",
    "audit-log": "restorer",
    "doctor": "doctor",
}


def make_app(called: str = "") -> typer.Typer:
    """Return the program: with one command, so that no other's module is loaded, or by default with all."""
    # Plain text, so that an error is one line for a person and for a script alike.
    app = typer.Typer(
        name="psl", no_args_is_help=True, context_settings=dict(CONTEXT), pretty_exceptions_enable=False,
        rich_markup_mode=None,
        # A click that suggests commands itself would do it a second time.
        suggest_commands=not hasattr(click.exceptions, "NoSuchCommand"),
    )  # fmt: skip
    app.callback()(_program)
    for name in [called] if called in COMMANDS else COMMANDS:
        module = importlib.import_module(f"psl_flower.cli.{COMMANDS[name]}")
        app.command(name, cls=Command, context_settings=dict(CONTEXT))(getattr(module, name.replace("-", "_")))
    return app


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program and return its exit status, see `exit_status`, or 143 (SIGTERM).

    Parameters
    ----------
    arguments : sequence of str, optional
        Without the program's name; None takes those of the process.
    """
    given = sys.argv[1:] if arguments is None else arguments
    return exit_status(lambda: make_app(*given[:1])(given, prog_name="psl"))


def _version(wanted: bool) -> None:
    if wanted:
        from importlib import metadata  # slow to load, and only this option asks for it

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
