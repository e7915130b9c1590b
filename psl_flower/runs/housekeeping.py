"""The disk space of runs: how much each takes, checkpoints that nothing needs any more, whole runs removed."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

from psl_flower.errors import RunError
from psl_flower.runs.claim import is_starting, starts
from psl_flower.runs.folder import RunFolder
from psl_flower.system.files import disk_errors
from psl_flower.system.folders import step_files


def size_of(folder: Path) -> int:
    """Return the bytes of all files in a folder, without links and files that vanish meanwhile."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(place, name)
            with contextlib.suppress(OSError):
                total += 0 if os.path.islink(path) else os.path.getsize(path)
    return total


def refuse_if_running(run: RunFolder, doing: str) -> None:
    """Raise RunError if a run has not ended, as far as can be known on this host."""
    if is_starting(run, starts(run.path.parents[1]).get(run.name)):
        raise RunError(f"run {run.name}: is starting, {doing} while it runs; end the command that starts it first")
    status = run.read_status()
    if status is not None and not status.ended and not status.died:
        raise RunError(
            f"run {run.name}: is {status.state}, {doing} while it runs; stop it first: touch {run.path / 'stop'}"
        )


def remove(run: RunFolder) -> int:
    """Remove a run's folder; return the bytes freed. Raises RunError if it is running, or the disk refuses."""
    refuse_if_running(run, "and cannot be removed")
    size = size_of(run.path)
    with disk_errors(run.path, "removed", RunError):
        shutil.rmtree(run.path)
    return size


def prune(run: RunFolder, keep: int = 1) -> int:
    """Remove all but the newest checkpoints of a run; return the bytes freed.

    Of the nodes' checkpoints in this folder, as a simulation writes them, those of the same steps are kept: a run
    continues, and predicts where it lies, only from a step that all parties have. The run has ended, and `keep` is 1 or
    more.

    Raises
    ------
    RunError
        If it is running, or the disk refuses.
    """
    refuse_if_running(run, "and its checkpoints are needed")
    return keep_newest(run, keep)


def keep_newest(run: RunFolder, keep: int) -> int:
    """Do what `prune` does, on the server of a run that has trained its last step; raises RunError as it does."""
    steps = list(step_files(run.path / "checkpoints"))
    kept = set(steps[-keep:])
    freed = 0
    for folder in (run.path / "checkpoints", *run.nodes.glob("*"), *run.nodes.glob("*/*")):
        for step, path in step_files(folder).items():
            if kept and step < max(kept) and step not in kept:
                freed += path.stat().st_size
                with disk_errors(path, "removed", RunError):
                    path.unlink()
    return freed
