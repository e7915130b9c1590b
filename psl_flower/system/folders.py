"""Folders that appear whole or not at all, and those that are for their user alone."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import stat
from pathlib import Path

from psl_flower.errors import PslError, StoreExists, StoreUnreachable
from psl_flower.system.files import (
    DISK,
    TEMPORARY,
    Disk,
    abandoned,
    disk_errors,
    hold,
    left_by_a_crash,
    temporary_name,
    write_file,
)

log = logging.getLogger("psl_flower")

_STEP_FILE = re.compile(r"step-(\d{8})\.pt")


class NewFolder:
    """A folder that appears whole under its name or not at all.

    Within `with`, files are written to the folder that it yields, a hidden neighbour; leaving without an error gives it
    its name, leaving with one removes it. Missing parents are made. If `private`, only this user may look into
    it; otherwise it is as readable as the folder it stands in.

    Raises
    ------
    StoreExists
        If something that is not an empty folder has the name already, or it is the current folder or a mounted one.
    StoreUnreachable
        If the disk refuses, or another user could put something else in the folder's place.
    """

    def __init__(self, target: Path, *, private: bool = True) -> None:
        with disk_errors(target, "read"):
            taken = target.is_file() or (target.is_dir() and any(target.iterdir()))
            current = target.is_dir() and target.samefile(os.curdir)
            mounted = target.is_mount()
            self._target = target.absolute()
        if taken:
            raise StoreExists(f"{target} exists already; name a new or an empty folder")
        if mounted:
            raise StoreExists(f"{target} is a mounted folder, which cannot be replaced; name a new folder in it")
        if current:
            # It would be replaced: processes in it, such as the shell, would not see the new one.
            raise StoreExists(f"{target} is the current folder, which cannot be replaced; name a new folder")
        self._private = private
        self._lock: int | None = None
        self._path = temporary_name(self._target)

    def make(self) -> Path:
        """Make the hidden folder and return it."""
        with disk_errors(self._target, "written"):
            DISK.make_folder(self._target.parent)
            _refuse_foreign(self._target)
            for left in left_by_a_crash(self._target, stat.S_ISDIR):
                shutil.rmtree(left, ignore_errors=True)
            self._lock = self._hidden()
        return self._path

    def _hidden(self) -> int:
        """Make the hidden folder and return its descriptor, which is locked."""
        while True:
            self._path.mkdir(mode=0o700)
            with contextlib.suppress(FileNotFoundError):
                descriptor = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                hold(descriptor)
                if os.fstat(descriptor).st_nlink:
                    return descriptor
                os.close(descriptor)
            self._path = temporary_name(self._target)  # that one was taken for a leftover before it was locked

    def commit(self) -> None:
        """Make the folder durable and give it its name; if that is refused, it is dropped."""
        try:
            with disk_errors(self._target, "written"):
                if not self._private:
                    self._path.chmod(self._target.parent.stat().st_mode & 0o777)
                DISK.sync_folder(self._path)
                DISK.rename(self._path, self._target)
                DISK.sync_folder(self._target.parent)
        finally:
            self.abort()

    def abort(self) -> None:
        """Remove the folder with its content; harmless after `commit`."""
        shutil.rmtree(self._path, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> Path:
        """See `make`."""
        return self.make()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Give it its name, or drop it after an error."""
        if kind is None:
            self.commit()
        else:
            self.abort()


def step_files(folder: Path) -> dict[int, Path]:
    """Return the checkpoints of a party in a folder by their steps, ascending; none without the folder."""
    if not folder.is_dir():
        return {}
    found = {int(match[1]): path for path in folder.iterdir() if (match := _STEP_FILE.fullmatch(path.name))}
    return dict(sorted(found.items()))


def remove_leftovers(folder: Path) -> None:
    """Remove the unfinished files of killed processes in a folder and those below it, not those still being written.

    Files that this user is not allowed to see or remove stay.
    """
    for place, folders, names in os.walk(folder):
        hidden = [Path(place) / name for name in names if TEMPORARY.fullmatch(name)]
        for left in abandoned(hidden, stat.S_ISREG):
            with contextlib.suppress(OSError):
                left.unlink()
        for left in abandoned([Path(place) / name for name in folders if TEMPORARY.fullmatch(name)], stat.S_ISDIR):
            shutil.rmtree(left, ignore_errors=True)


def _refuse_foreign(target: Path) -> None:
    """Refuse a place on whose way is another user's link, or another user's folder where anyone may rename things."""
    for parent in target.parents:
        found = parent.lstat()
        anyone = found.st_mode & stat.S_IWOTH and not found.st_mode & stat.S_ISVTX
        if stat.S_ISLNK(found.st_mode) and found.st_uid not in (0, os.geteuid()):
            raise StoreUnreachable(f"{target}: {parent} is a link of another user; name a folder of your own")
        if stat.S_ISDIR(found.st_mode) and anyone and found.st_uid != os.geteuid():
            raise StoreUnreachable(f"{target}: in {parent}, of another user, anyone may exchange it; name another")


def make_folder(path: Path, error: type[PslError] = StoreUnreachable, *, disk: Disk = DISK) -> None:
    """Make a folder and its parents, durably, where they are missing; raises `error` if the system refuses."""
    with disk_errors(path, "made", error):
        disk.make_folder(path)


def make_private_folder(path: Path) -> None:
    """Make a folder and its missing parents for this user alone; an existing one is closed to others, with a note.

    Raises
    ------
    OSError
        If the system refuses.
    """
    for folder in reversed([folder for folder in (path, *path.parents) if not folder.exists()]):
        folder.mkdir(mode=0o700, exist_ok=True)
        DISK.sync_folder(folder.parent)
    found = path.stat()
    mode = stat.S_IMODE(found.st_mode)
    if mode & 0o077 and found.st_uid == os.geteuid():
        path.chmod(mode & ~0o077)
        log.warning("%s: was open to other users (mode %04o), and is now for this user alone", path, mode)


def make_ignored_folder(folder: Path) -> None:
    """Make a private folder that git passes by: a workspace may lie in somebody's repository.

    Raises
    ------
    StoreUnreachable
        If the disk refuses.
    """
    with disk_errors(folder, "made"):
        make_private_folder(folder)
    if not (folder / ".gitignore").exists():
        write_file(folder / ".gitignore", b"*\n")
