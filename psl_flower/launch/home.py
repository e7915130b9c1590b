"""The temporary folder of a local SuperLink, and the cleaning up after a killed command."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from pathlib import Path

import psutil

from psl_flower.errors import RunError

_PREFIX = "psl-"
# Locked by the command while it lives, however it ends.
_CLAIM = "claim"
# Linux takes 107 bytes for the path of a socket; this is what Ray adds to its folder, with the longest process id.
_RAYS_PART = len("/ray/session_2026-11-29_19-21-00_416855_4194304/sockets/plasma_store")
_LONGEST_FOLDER = 107 - _RAYS_PART - len(f"/{_PREFIX}12345678")
_SHORT_FOLDERS = ("/tmp", "/var/tmp")  # nosec B108 # mkdtemp makes a folder there that is ours alone
_TRIES, _WAIT_S = 10, 1.0


def make() -> Path:
    """Make a folder that only this user can open, its path short enough for Ray's sockets.

    Raises
    ------
    RunError
        If there is no place for it.
    """
    folder = _temporary_folder()
    try:
        return Path(tempfile.mkdtemp(prefix=_PREFIX, dir=folder))
    except OSError as error:
        raise RunError(f"{folder}: cannot make a temporary folder: {error.strerror or error}") from None


def claim(home: Path) -> int:
    """Claim a SuperLink's folder for this process; return the descriptor to close at the end."""
    new = home / f"{_CLAIM}.new"
    descriptor = os.open(new, os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    new.rename(home / _CLAIM)  # locked from its first moment
    return descriptor


def end_leftovers() -> None:
    """End the SuperLinks of this user whose commands are gone, and remove their folders."""
    for file in _temporary_folder().glob(f"{_PREFIX}*/{_CLAIM}"):
        with contextlib.suppress(OSError):  # still claimed, or somebody else's
            if file.parent.lstat().st_uid == os.geteuid():
                with file.open("r+b") as claimed:
                    fcntl.flock(claimed, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    end(file.parent)


def family(home: Path) -> list[psutil.Process]:
    """Return the processes of the SuperLink whose folder this is, also those whose parents have died."""
    found: dict[psutil.Process, None] = {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("FLWR_HOME") == str(home):
                # Some of Ray's write their title over their environment.
                found.update(dict.fromkeys([process, *process.children(recursive=True)]))
    return list(found)


def end(home: Path) -> None:
    """Kill the processes of a SuperLink, but for this one, and remove its folder."""
    kill(home)
    shutil.rmtree(home, ignore_errors=True)


def kill(home: Path) -> None:
    """Kill the processes of a SuperLink, but for this one."""
    for _ in range(_TRIES):
        others = [process for process in family(home) if process.pid != os.getpid()]
        for process in others:
            with contextlib.suppress(psutil.Error):
                process.kill()
        if not others:
            break
        psutil.wait_procs(others, timeout=_WAIT_S)  # and look again: some may have started others


def _temporary_folder() -> Path:
    for folder in (tempfile.gettempdir(), *_SHORT_FOLDERS):
        if len(os.fsencode(folder)) <= _LONGEST_FOLDER and os.access(folder, os.W_OK | os.X_OK):
            return Path(folder)
    raise RunError(
        f"{tempfile.gettempdir()}: this path is too long for Ray's sockets, or cannot be written; set TMPDIR to a "
        f"folder of at most {_LONGEST_FOLDER} bytes"
    )
