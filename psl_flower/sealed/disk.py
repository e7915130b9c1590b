"""The few operations by which files change, each one a place where a crash may come.

Tests replace `Disk` by one that stops at a chosen operation or forgets what was not yet synchronised.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from psl_flower.errors import StoreExists, StoreNotFound, StoreUnreachable


class Disk:
    """Operations on local files.

    Every method raises StoreUnreachable where the system refuses (no space, no permission).
    """

    def make_folder(self, path: Path) -> None:
        """Create a folder and its parents; the folders it stands in are synchronised."""
        try:
            missing = [folder for folder in (path, *path.parents) if not folder.exists()]
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _refused("create the folder", path, error) from None
        for folder in reversed(missing):
            self.sync_folder(folder.parent)

    def create(self, path: Path, mode: int = 0o644) -> int:
        """Create an empty file, replacing one of that name, and return its descriptor."""
        try:
            path.unlink(missing_ok=True)
            return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        except OSError as error:
            raise _refused("create", path, error) from None

    def write(self, descriptor: int, data: bytes, path: Path) -> None:
        """Write all of the bytes."""
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(descriptor, view) :]
        except OSError as error:
            raise _refused("write to", path, error) from None

    def sync(self, descriptor: int, path: Path) -> None:
        """Force a file's content to the disk."""
        try:
            os.fsync(descriptor)
        except OSError as error:
            raise _refused("synchronise", path, error) from None

    def sync_folder(self, path: Path) -> None:
        """Force a folder's names to the disk."""
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise _refused("synchronise the folder", path, error) from None

    def rename(self, source: Path, target: Path) -> None:
        """Put a file in the place of another, at once."""
        try:
            os.replace(source, target)
        except OSError as error:
            raise _refused("rename to", target, error) from None

    def remove(self, path: Path) -> None:
        """Remove a file if it is there."""
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise _refused("remove", path, error) from None


DISK = Disk()


def write_file(path: Path, data: bytes, *, mode: int = 0o644, disk: Disk = DISK) -> None:
    """Write a file whole or not at all: temporary file, fsync, rename, fsync of the folder."""
    temporary = path.with_name(f".{path.name}.tmp")
    descriptor = disk.create(temporary, mode)
    try:
        disk.write(descriptor, data, temporary)
        disk.sync(descriptor, temporary)
    except StoreUnreachable:
        disk.remove(temporary)
        raise
    finally:
        os.close(descriptor)
    disk.rename(temporary, path)
    disk.sync_folder(path.parent)


def read_file(path: Path, limit: int) -> bytes:
    """Read a whole file of at most `limit` bytes.

    Raises
    ------
    StoreNotFound
        If it is not there.
    StoreUnreachable
        If it cannot be read, or is larger than the limit.
    """
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except (FileNotFoundError, NotADirectoryError):
        raise StoreNotFound(f"{path} does not exist") from None
    except OSError as error:
        raise _refused("read", path, error) from None
    if len(data) > limit:
        raise StoreUnreachable(f"{path} is larger than {limit} bytes: not a file of this kind")
    return data


@contextlib.contextmanager
def locked(path: Path, timeout_s: float = 30.0) -> Iterator[None]:
    """Hold a lock file against other processes.

    Raises
    ------
    StoreUnreachable
        If another process holds it for longer than the timeout, or the lock cannot be made.
    """
    lock = FileLock(path, timeout=timeout_s)
    try:
        lock.acquire()
    except Timeout:
        raise StoreUnreachable(f"{path.parent}: another process is at work there; try again later") from None
    except OSError as error:
        raise _refused("lock", path, error) from None
    try:
        yield
    finally:
        lock.release()


class NewFolder:
    """A folder that appears whole under its name or not at all.

    Within `with`, files are written to `path`, a hidden neighbour; leaving without an error gives it its
    name, leaving with one removes it.

    Raises
    ------
    StoreExists
        If something that is not an empty folder has the name already, or it is the current folder or a mounted one.
    StoreUnreachable
        If the disk refuses.
    """

    def __init__(self, target: Path) -> None:
        try:
            taken = target.is_file() or (target.is_dir() and any(target.iterdir()))
            current = target.is_dir() and target.samefile(os.curdir)
            mounted = target.is_mount()
            self.target = target.absolute()
        except OSError as error:
            raise _refused("read", target, error) from None
        if taken:
            raise StoreExists(f"{target} exists already; name a new or an empty folder")
        if mounted:
            raise StoreExists(f"{target} is a mounted folder, which cannot be replaced; name a new folder in it")
        if current:
            # It would be replaced: who stands in it, such as the shell, would see nothing of the new one.
            raise StoreExists(f"{target} is the current folder, which cannot be replaced; name a new folder")
        self.path = self.target.with_name(f".{self.target.name}.{os.getpid()}.tmp")

    def __enter__(self) -> Path:
        """Make the hidden folder and return it."""
        DISK.make_folder(self.target.parent)
        shutil.rmtree(self.path, ignore_errors=True)
        DISK.make_folder(self.path)
        self.path.chmod(0o700)
        return self.path

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Give it its name, or remove it after an error."""
        if kind is not None:
            shutil.rmtree(self.path, ignore_errors=True)
            return
        try:
            DISK.sync_folder(self.path)
            DISK.rename(self.path, self.target)
        except BaseException:
            shutil.rmtree(self.path, ignore_errors=True)
            raise
        DISK.sync_folder(self.target.parent)


def _refused(action: str, path: Path, error: OSError) -> StoreUnreachable:
    return StoreUnreachable(f"cannot {action} {path}: {error.strerror or type(error).__name__}")
