"""Lets one process at a time work on a run: Flower may start a queued attempt while a resumed one is running."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from psl_flower.errors import RunError
from psl_flower.runs.folder import RunFolder
from psl_flower.system.files import abandoned, disk_errors, locked
from psl_flower.system.folders import make_private_folder

# One that is being ended may need a moment.
_PATIENCE_S = 10.0
_STARTING_PATIENCE_S = 1.0
_STARTING = ".starting"
_FILE = "lock"


@contextlib.contextmanager
def starting(run: RunFolder, *, new: bool = True) -> Iterator[None]:
    """Reserve a run's name against other commands, from its start to its end.

    Until the run has a status, `starts` lists it. It leaves nothing behind where the run did not come to be. `new` is
    whether its folder is still to be made.

    Raises
    ------
    RunError
        If another command is starting or following a run of this name; or the disk refuses.
    """
    what = "there is a run of this name already, begun by" if new else "this run is being continued by"
    advice = "choose another run-name" if new else "wait for its end"
    taken = f"{run.path}: {what} another command; {advice}"
    runs = run.path.parent
    with contextlib.ExitStack() as stack:
        stack.callback(_remove_if_empty, [folder for folder in (runs, *runs.parents) if not folder.exists()])
        with disk_errors(runs, "made", RunError):
            make_private_folder(runs)
        for left in abandoned(runs.glob(f".*{_STARTING}"), stat.S_ISREG):
            left.unlink(missing_ok=True)
        notice = runs / f".{run.name}{_STARTING}"
        # Who lists runs looks at the lock for a moment.
        stack.enter_context(locked(notice, _STARTING_PATIENCE_S, RunError, lambda: taken))
        stack.callback(notice.unlink, missing_ok=True)
        if new and run.path.exists():
            raise RunError(taken)
        yield


def is_starting(run: RunFolder, since: float | None) -> bool:
    """Check if a run has no status yet of the command that began at `since`, as `starts` returns it."""
    status = run.read_status()
    if since is None or status is None:
        return since is not None
    # A run that is continued has the status of an earlier attempt.
    return (status.ended or status.died) and status.updated < since


def starts(workspace: Path) -> dict[str, float]:
    """Return the names of runs that a command here starts or follows, each with the Unix time at which it began."""
    found = {}
    for notice in (workspace / "runs").glob(f".*{_STARTING}"):
        with contextlib.suppress(OSError), notice.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                found[notice.name[1:].removesuffix(_STARTING)] = os.fstat(file.fileno()).st_mtime
    return found


def _remove_if_empty(folders: Iterable[Path]) -> None:
    with contextlib.suppress(OSError):
        for folder in folders:
            folder.rmdir()


def claimed(run: RunFolder) -> AbstractContextManager[None]:
    """Hold a run's folder against other processes, until this one ends at the latest.

    Raises
    ------
    RunError
        If another process works on the run, whose status stays as that process wrote it; or the disk refuses.
    """

    def by_another() -> str:
        status = run.read_status()
        by = f" ({status.process})" if status is not None and status.process else ""
        return (
            f"run {run.name}: another process{by} is at work on it; wait for its end, or end that process, "
            "and resume the run then"
        )

    return locked(run.path / _FILE, _PATIENCE_S, RunError, by_another)
