"""The command `psl runs`."""

from __future__ import annotations

import contextlib
import json
import time
from typing import TYPE_CHECKING, Any

import typer

from psl_flower.cli.output import Json, Workspace, percent, print_table, say
from psl_flower.text import cut

if TYPE_CHECKING:
    from psl_flower.runs.folder import RunFolder


# Most characters of a reason; the run's log has all of it.
_REASON = 300


def runs(workspace: Workspace = "", as_json: Json = False) -> None:
    """List the runs of a workspace, oldest first, with the disk space that each takes, and why runs failed."""
    from psl_flower.config import default_workspace
    from psl_flower.errors import RunError
    from psl_flower.runs.claim import starts
    from psl_flower.runs.folder import RunFolder, list_runs
    from psl_flower.text import did_you_mean_folder

    path = default_workspace(workspace)
    if workspace and not path.is_dir():
        meant = did_you_mean_folder(workspace) or "; name the workspace of your runs with --workspace"
        raise RunError(f"{path}: no such folder{meant}")
    begun = starts(path)
    found = [_describe(folder, begun.pop(folder.name, None)) for folder in list_runs(path)]
    found += [_describe(RunFolder(path / "runs" / name), since) for name, since in begun.items()]
    if as_json:
        typer.echo(json.dumps({"workspace": str(path), "runs": found}))
        return
    if not found:
        say(f"{path / 'runs'}: no runs yet; --workspace or PSL_WORKSPACE names another workspace")
        return
    rows = [("run", "state", "step", "accuracy", "model", "size", "last sign of life"), *map(_run_row, found)]
    print_table(rows)
    for run in found:
        if run["reason"]:
            shown = cut(run["reason"], _REASON)
            rest = f" (all of it in {path / 'runs' / run['run'] / 'log.txt'})" if shown != run["reason"] else ""
            say(f"{run['run']} {run['state']}: {shown}{rest}")


def _describe(folder: RunFolder, since: float | None = None) -> dict[str, Any]:
    """Return a run's summary; `since` is the Unix time at which a command began to start or follow it."""
    from psl_flower.errors import RunError
    from psl_flower.runs.claim import is_starting
    from psl_flower.runs.folder import Status
    from psl_flower.runs.history import last_accuracy
    from psl_flower.runs.housekeeping import size_of

    status, accuracy = folder.read_status(), None
    if is_starting(folder, since):
        status = Status(state="starting", message="starting Flower", updated=since or 0.0)
    with contextlib.suppress(RunError):  # a damaged file, of which the commands on this run tell
        accuracy = last_accuracy(folder)
    return {
        "run": folder.name,
        "state": status.shown if status else "unknown",
        "message": status.message if status else "",
        "reason": status.reason if status else "",
        "step": status.step if status else 0,
        "total_steps": status.total_steps if status else 0,
        "accuracy": accuracy,
        "model": folder.has_model,
        "bytes": size_of(folder.path),
        "updated": status.updated if status else None,
    }


def _run_row(run: dict[str, Any]) -> tuple[str, ...]:
    from rich.filesize import decimal

    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(run["updated"])) if run["updated"] else "-"
    step, size = f"{run['step']}/{run['total_steps']}", decimal(run["bytes"])
    return run["run"], run["state"], step, percent(run["accuracy"]), "yes" if run["model"] else "no", size, when
