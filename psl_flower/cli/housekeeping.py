"""The commands `psl rm` and `psl prune`: disk space that runs no longer need."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated

import typer

from psl_flower.cli.completion import run_names
from psl_flower.cli.output import Json, RunName, Workspace, tell
from psl_flower.config.fields import RUN_NAME
from psl_flower.text import counted

if TYPE_CHECKING:
    from psl_flower.runs.folder import RunFolder


def rm(
    runs: Annotated[
        list[str], typer.Argument(help="Names of runs; psl runs lists them.", metavar="RUN", autocompletion=run_names)
    ],
    workspace: Workspace = "",
    as_json: Json = False,
) -> None:
    """Remove runs: settings, metrics, checkpoints, models. Keeps patch stores, keys and the states of distant nodes."""
    from psl_flower.config import default_workspace
    from psl_flower.runs import housekeeping
    from psl_flower.runs.folder import open_run

    chosen = [open_run(default_workspace(workspace), name) for name in _names(runs)]
    for run in chosen:  # all or none
        housekeeping.refuse_if_running(run, "and cannot be removed")
    _tell({run.name: housekeeping.remove(run) for run in chosen}, "removed", as_json)


def prune(
    runs: Annotated[
        list[str] | None,
        typer.Argument(help="Names of runs [the newest].", metavar="RUN", autocompletion=run_names),
    ] = None,
    run: RunName = "",
    every: Annotated[bool, typer.Option("--all", help="All runs of the workspace that have ended.")] = False,
    keep: Annotated[int, typer.Option(min=1, help="Checkpoints to keep, the newest.")] = 1,
    workspace: Workspace = "",
    as_json: Json = False,
) -> None:
    """Remove old checkpoints of runs that have ended. The newest stays: it continues the run and predicts in place."""
    from psl_flower.config import default_workspace
    from psl_flower.runs import housekeeping
    from psl_flower.runs.choosing import choose_run
    from psl_flower.runs.folder import list_runs, open_run

    path = default_workspace(workspace)
    chosen: list[RunFolder]
    if every:
        if runs or run:
            raise typer.BadParameter("--all takes all runs; leave the names out")
        chosen = [found for found in list_runs(path) if (status := found.read_status()) is not None and status.ended]
    else:
        names = _names([*(runs or ()), *([run] if run else ())])
        chosen = [open_run(path, name) for name in names] or [choose_run(path, with_model=False)]
    _tell({each.name: housekeeping.prune(each, keep) for each in chosen}, "freed", as_json)


def _names(given: list[str]) -> list[str]:
    """Return the names of runs, each once; a path could lead to a folder that is no run's, such as Flower's."""
    for name in given:
        if not re.fullmatch(RUN_NAME.pattern, name):
            raise typer.BadParameter(f"expected the name of a run, as psl runs lists it, got {name!r}")
    return list(dict.fromkeys(given))


def _tell(freed: dict[str, int], done: str, as_json: bool) -> None:
    from rich.filesize import decimal

    nothing = "nothing to prune: it has no older checkpoints" if done == "freed" else f"0 bytes {done}"
    lines = [f"{name}: {decimal(size)} {done}" if size else f"{name}: {nothing}" for name, size in freed.items()]
    if not freed:
        lines = ["nothing to prune: no run has ended"]
    elif len(freed) > 1:
        lines.append(f"{counted(len(freed), 'run')}: {decimal(sum(freed.values()))}")
    tell({"runs": freed, "bytes": sum(freed.values())}, lines, as_json)
