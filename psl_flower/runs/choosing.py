"""Chooses the run for a command: the one named, or the newest that fits."""

from __future__ import annotations

from pathlib import Path

from psl_flower.errors import RunError
from psl_flower.runs.folder import RunFolder, list_runs, open_run


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
        raise RunError(f"{workspace / 'runs'}: there are no runs yet; train with `psl train`, or set --workspace")
    fitting = [run for run in runs if run.has_model or not with_model]
    if not fitting:
        raise RunError(f"{workspace / 'runs'}: none of the {len(runs)} runs has a model yet; `psl runs` lists them")
    return fitting[-1]
