"""Watching from outside: a run through Flower on this machine until it ends, or any condition until it holds."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator

from psl_flower.errors import RunError
from psl_flower.launch.running import Watch
from psl_flower.launch.superlink import LocalSuperLink
from psl_flower.runs.folder import RunFolder, Status


def looks(
    watch: Watch, superlink: LocalSuperLink, run: RunFolder, name: str, *, keep_log: bool = True
) -> Iterator[Status | None]:
    """Yield the run's status, None before its first, until its processes have ended; the caller waits between looks.

    Raises
    ------
    RunError
        If the run, called `name`, has not completed, with its own last words; with `keep_log` Flower's log stays.
    """
    while True:
        status, over = watch.poll()
        if not over:
            yield status
            continue
        assert status is not None
        if status.state == "completed":
            return
        log = "with --keep, Flower's log stays"
        if keep_log:
            run.path.mkdir(parents=True, exist_ok=True)
            log = f"Flower's log: {shutil.copyfile(superlink.log, run.path / 'flower.log')}"
        raise RunError(f"{name} {status.state}: {status.message.removeprefix('error: ')} ({log})")


def wait_until(condition: Callable[[], bool], timeout_s: float, what: str) -> None:
    """Ask ten times a second until the condition holds; raises RunError with `what` it waited for otherwise."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise RunError(f"waited {timeout_s:g} s for {what}")
        time.sleep(0.1)
