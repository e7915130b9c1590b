"""Writing a file so that after a crash it is the old one or the new one, never a part."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def write_atomically(path: Path, content: bytes, *, durable: bool = True) -> None:
    """Write `content` to `path` through a temporary file beside it and a rename.

    Parameters
    ----------
    path : Path
        File to write; its folder exists.
    content : bytes
        All of its content.
    durable : bool
        Also wait until file and folder are on the disk, so that the new file survives a power cut.

    Raises
    ------
    OSError
        If the disk refuses; the old file is then as it was.
    """
    descriptor, temp = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with open(descriptor, "wb") as file:
            # mkstemp makes a private file; this one is to be as readable as its folder.
            os.fchmod(descriptor, path.parent.stat().st_mode & 0o666)
            file.write(content)
            file.flush()
            if durable:
                os.fsync(descriptor)
        Path(temp).rename(path)
    except BaseException:
        Path(temp).unlink(missing_ok=True)
        raise
    if durable:
        sync_folder(path.parent)


def make_ignored_folder(folder: Path) -> None:
    """Make a folder, and its parents, that git passes by: a workspace may lie in somebody's repository.

    Raises
    ------
    OSError
        If the disk refuses.
    """
    folder.mkdir(parents=True, exist_ok=True)
    ignore = folder / ".gitignore"
    if not ignore.exists():
        write_atomically(ignore, b"*\n")


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
