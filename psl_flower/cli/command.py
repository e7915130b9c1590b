"""Base class of all commands of the program: adds -h, plain help, and option spellings of earlier versions."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import click
from typer.core import TyperArgument, TyperCommand
from typer.utils import get_params_from_function

from psl_flower.cli.output import say

# Command -> option of an earlier version -> its present name. They work and are not listed.
RENAMED: dict[str, dict[str, str]] = {
    **{name: {"--owner-key": "--owner"} for name in ("verify", "restore", "authorise", "relabel", "audit-log")},
    "receive": {"--owner-key": "--owner", "--node-key": "--key"},
}
CONTEXT = {"help_option_names": ["-h", "--help"]}


class Command(TyperCommand):
    """A command of the program."""

    def __init__(self, *args: Any, callback: Callable[..., Any] | None = None, **kwargs: Any) -> None:
        """Make it; click 8.5 forgets the help of arguments, which typer gave it too early."""
        super().__init__(*args, callback=callback, **kwargs)
        declared = get_params_from_function(inspect.unwrap(callback)) if callback is not None else {}
        for param in self.params:
            if isinstance(param, TyperArgument) and param.help is None and param.name in declared:
                param.help = getattr(declared[param.name].default, "help", None)

    def get_help(self, ctx: click.Context) -> str:
        """Return the help text; typer escapes brackets for rich also where rich does not print them."""
        return super().get_help(ctx).replace("\\[", "[")

    def format_arguments(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Leave arguments to typer, which lists them with the options; click 8.5 would list them a second time."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the options, those of earlier versions by the names that they have now."""
        return super().parse_args(ctx, [_renamed(str(self.name), argument) for argument in args])


def _renamed(command: str, argument: str) -> str:
    name, equals, value = argument.partition("=")
    new = RENAMED.get(command, {}).get(name)
    if new is None:
        return argument
    say(f"note: psl {command} {name} is now called {new}; the old name will go in a later version", err=True)
    return f"{new}{equals}{value}"
