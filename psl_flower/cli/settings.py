"""The command `psl settings`: what `psl train` and `flwr run` can be told."""

from __future__ import annotations

from typing import Annotated

import typer

from psl_flower.errors import ConfigError

_TABLE = "[tool.flwr.app.config]"


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("settings")(settings)


def settings(
    words: Annotated[
        list[str] | None, typer.Argument(help="Only settings with one of these in name or text.", metavar="WORD")
    ] = None,
    app: Annotated[str, typer.Option("--app", help="Folder of the Flower app [this installation's].")] = "",
) -> None:
    """List the settings of a run, each with its default and what it does, for `psl train KEY=VALUE`."""
    from psl_flower.launch.running import app_folder

    lines = _lines((app_folder(app) / "pyproject.toml").read_text("utf-8"))
    if words:
        lines = [line for line in lines if line[:1] != "#" and any(word.lower() in line.lower() for word in words)]
    if not lines:
        raise ConfigError(f"no setting with {' or '.join(words or [])}; psl settings lists all")
    typer.echo("\n".join(lines))


def _lines(project: str) -> list[str]:
    """Return the app's own list of its settings: that has defaults and explanations already."""
    _, _, rest = project.partition(f"{_TABLE}\n")
    listed, _, _ = rest.partition("\n[")
    return listed.strip().splitlines()
