"""Chooses the run for a command: the one named, or the newest that fits."""

from __future__ import annotations

from pathlib import Path

from psl_flower.errors import RunError
from psl_flower.runs.folder import RunFolder, list_runs, open_run
from psl_flower.text import counted

_NO_RUNS = "there are no runs yet; train with `psl train`, or set --workspace"


def choose_run(workspace: Path, name: str = "", *, with_model: bool = True) -> RunFolder:
    """Return the run of that name, or the newest: of those that have a model, or of all.

    Raises
    ------
    RunError
        If no run fits.
    """
    if name:
        return open_run(workspace, name)
    runs = list_runs(workspace)
    if not runs:
        raise RunError(f"{workspace / 'runs'}: {_NO_RUNS}")
    fitting = [run for run in runs if run.has_model or not with_model]
    if not fitting:
        raise RunError(f"{workspace / 'runs'}: none of the {len(runs)} runs has a model yet; `psl runs` lists them")
    return fitting[-1]


def choose_reported(workspace: Path) -> tuple[RunFolder, list[str]]:
    """Return the newest run that has completed a round, and the names of newer ones that have not, newest first.

    Raises
    ------
    RunError
        If no run has, or the metrics of a newer one are damaged.
    """
    runs, without = list_runs(workspace), list[str]()
    for run in reversed(runs):
        if run.read_metrics():
            return run, without
        without.append(run.name)
    if not runs:
        raise RunError(f"{workspace / 'runs'}: {_NO_RUNS}")
    raise RunError(
        f"{workspace / 'runs'}: nothing to report: none of {counted(len(runs), 'run')} has completed a round yet; "
        "`psl runs` lists them"
    )
