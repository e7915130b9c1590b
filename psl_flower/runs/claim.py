"""One process at a time works on a run: Flower may start a run that it had queued beside one that was resumed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from psl_flower.errors import RunError, StoreUnreachable
from psl_flower.runs.folder import RunFolder
from psl_flower.system.files import locked
from psl_flower.system.folders import make_private_folder

# One that is being ended may need a moment.
_PATIENCE_S = 10.0
_FILE = "lock"


@contextlib.contextmanager
def starting(run: RunFolder) -> Iterator[None]:
    """Hold the name of a run that is to be made against other commands that would make it, too.

    Raises
    ------
    RunError
        If another command is starting or following a run of this name; or the disk refuses.
    """
    taken = f"{run.path}: there is a run of this name already, begun by another command; choose another run-name"
    with contextlib.ExitStack() as stack:
        try:
            make_private_folder(run.path.parent)
            stack.enter_context(locked(run.path.parent / f".{run.name}.starting", 0.0))
        except StoreUnreachable as error:
            raise RunError(str(error) if error.__cause__ is not None else taken) from error
        if run.path.exists():
            raise RunError(taken)
        yield


@contextlib.contextmanager
def claimed(run: RunFolder) -> Iterator[None]:
    """Hold a run's folder against other processes, until this one ends at the latest.

    Raises
    ------
    RunError
        If another process works on the run, whose status stays as that process wrote it; or the disk refuses.
    """
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(run.path / _FILE, _PATIENCE_S))
        except StoreUnreachable as error:
            if error.__cause__ is not None:  # the disk's own reason
                raise RunError(str(error)) from error
            status = run.read_status()
            by = f" ({status.process})" if status is not None and status.process else ""
            raise RunError(
                f"run {run.name}: another process{by} is at work on it; wait for its end, or end that process, "
                "and resume the run then"
            ) from error
        yield
