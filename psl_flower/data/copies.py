"""Manages the `datasets` library's copies of local tables, which hold all their images unencrypted.

The copies are for this user alone. They make the next opening fast, so training keeps them. Commands that seal images,
or inspect them beforehand, keep no copies: owners who delete the originals expect no others to exist.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path

from psl_flower.system.files import abandoned, disk_errors, hold
from psl_flower.system.folders import make_private_folder

_KEPT, _PASSING = "psl-{}", ".psl-{}.tmp"
# Folders of the command that keeps none, and descriptors that hold them; None if copies are kept.
_passing: ContextVar[list[tuple[Path, int]] | None] = ContextVar("passing", default=None)


def copies_folder(content: str) -> str:
    """Return the private folder for the library's copies of files with this content (64 hexadecimal digits).

    Raises
    ------
    StoreUnreachable
        If the disk refuses.
    """
    import datasets

    cache, passing = Path(datasets.config.HF_DATASETS_CACHE), _passing.get()
    folder = cache / (_KEPT.format(content[:16]) if passing is None else _PASSING.format(secrets.token_hex(8)))
    with disk_errors(folder, "made"):
        make_private_folder(folder)
        if passing is not None:
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            passing.append((folder, descriptor))
            hold(descriptor)
            for left in abandoned(cache.glob(_PASSING.format("*")), stat.S_ISDIR):
                shutil.rmtree(left, ignore_errors=True)  # of a command that was killed
            # What an earlier training, or an older version, has kept of the same files.
            shutil.rmtree(cache / _KEPT.format(content[:16]), ignore_errors=True)
    return str(folder)


@contextlib.contextmanager
def no_copies_kept() -> Iterator[None]:
    """Remove the copies that are made meanwhile, and those kept earlier of the same files."""
    made: list[tuple[Path, int]] = []
    before = _passing.set(made)
    try:
        yield
    finally:
        _passing.reset(before)
        for folder, descriptor in made:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(descriptor)
