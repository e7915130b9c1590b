"""The program `psl`: its commands, and how an error ends."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
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
    app = _empty()
    for name in [called] if called in COMMANDS else COMMANDS:
        module = importlib.import_module(_module(name))
        app.command(name, cls=Command, context_settings=dict(CONTEXT))(getattr(module, name.replace("-", "_")))
    return app


def _outline() -> typer.Typer:
    """Return the program for its help alone, with names and docstrings of commands whose modules are not loaded."""
    app = _empty()
    for name in COMMANDS:
        app.command(name)(_undone(name))
    return app


def _undone(name: str) -> Callable[[], None]:
    """Return a function that does nothing, with the docstring of a command."""

    def command() -> None: ...

    spec = importlib.util.find_spec(_module(name))
    assert spec is not None and spec.origin is not None
    with open(spec.origin, encoding="utf-8") as file:
        parts = ast.parse(file.read()).body
    function = name.replace("-", "_")
    command.__doc__ = next(
        ast.get_docstring(part) for part in parts if isinstance(part, ast.FunctionDef) and part.name == function
    )
    return command


def _module(name: str) -> str:
    return f"psl_flower.cli.{COMMANDS[name]}"


def _empty() -> typer.Typer:
    # Plain text, so that an error is one line for people and scripts.
    app = typer.Typer(
        name="psl", no_args_is_help=True, context_settings=dict(CONTEXT), pretty_exceptions_enable=False,
        rich_markup_mode=None,
        # A click that suggests commands itself would do it a second time.
        suggest_commands=not hasattr(click.exceptions, "NoSuchCommand"),
    )  # fmt: skip
    app.callback()(_program)
    return app


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program and return its exit status, see `exit_status`, or 128 and a signal's number.

    Parameters
    ----------
    arguments : sequence of str, optional
        Without the program's name; None takes those of the process.
    """
    given = sys.argv[1:] if arguments is None else arguments
    # A shell that completes asks for any command's options, and names it in the environment.
    whole = "_PSL_COMPLETE" in os.environ or (len(given) > 0 and given[0] in COMMANDS)
    return exit_status(lambda: (make_app(*given[:1]) if whole else _outline())(given, prog_name="psl"))


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
