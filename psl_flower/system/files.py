"""Atomic file writes that survive a crash, and one wording for all disk errors.

Each operation of `Disk` is a place where a crash may come: tests replace it by one that stops at a chosen operation,
or forgets what was not yet synchronised.

A file being written has a hidden, unguessable name, `.NAME.<16 hex digits>.tmp`, and is locked by its writer. The next
process that writes NAME recognises leftovers of a crash by their missing lock, and removes them.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import logging
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from psl_flower.errors import PslError, StoreNotFound, StoreUnreachable

BUFFER_BYTES = 1 << 20
log = logging.getLogger("psl_flower")
_UNSAID_S = 1.0
TEMPORARY = re.compile(r"\..+\.[0-9a-f]{16}\.tmp", re.DOTALL)
# Pipes made by a shell, as in --passphrase-file <(command); reading one waits for its writer.
_HANDED_OVER = ("/dev/fd/", "/dev/stdin", "/proc/self/fd/")


class Disk:
    """Operations on local files; every method raises OSError if the system refuses."""

    def make_folder(self, path: Path) -> None:
        """Create a folder and its parents; the folders it stands in are synchronised."""
        missing = [folder for folder in (path, *path.parents) if not folder.exists()]
        path.mkdir(parents=True, exist_ok=True)
        for folder in reversed(missing):
            self.sync_folder(folder.parent)

    def create(self, path: Path, mode: int) -> int:
        """Create an empty file, if there is nothing of that name, and return its descriptor."""
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)

    def write(self, descriptor: int, data: bytes | bytearray | memoryview, path: Path) -> None:
        """Write all of the bytes."""
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]

    def sync(self, descriptor: int, path: Path) -> None:
        """Force a file's content to the disk."""
        os.fsync(descriptor)

    def sync_folder(self, path: Path) -> None:
        """Force a folder's names to the disk."""
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def rename(self, source: Path, target: Path) -> None:
        """Put a file in the place of another, at once."""
        os.replace(source, target)

    def remove(self, path: Path) -> None:
        """Remove a file if it exists."""
        path.unlink(missing_ok=True)


DISK = Disk()


@contextlib.contextmanager
def disk_errors(
    path: Path,
    what: str,
    error: type[PslError] = StoreUnreachable,
    *,
    missing: type[PslError] | None = None,
    advice: str = "",
) -> Iterator[None]:
    """Turn the system's errors into ours: "PATH: cannot be WHAT: REASON; ADVICE".

    Parameters
    ----------
    path : Path
        The file or folder; of a folder, the error names the file in it.
    what : str
        Such as "read" or "written".
    error, missing : type[PslError]
        The error, and that for a file that is not there, by default the same.
    advice : str, optional
        What to do; a full disk always gets advice.
    """
    try:
        yield
    except OSError as refusal:
        inside = isinstance(refusal.filename, str) and path in Path(refusal.filename).parents
        gone = isinstance(refusal, FileNotFoundError | NotADirectoryError)
        message = f"{refusal.filename if inside else path}: cannot be {what}: {refusal.strerror or refusal}"
        if refusal.errno in (errno.ENOSPC, errno.EDQUOT):
            advice = advice or "free some space, or name a place on another disk"
        raise (missing if missing and gone else error)(f"{message}; {advice}" if advice else message) from refusal


def open_regular(path: Path) -> int:
    """Open a file for reading and return its descriptor; never waits, as the opening of a pipe does for its writer.

    Raises
    ------
    OSError
        If the system refuses, or it is a folder, pipe, socket or device.
    """
    if str(path).startswith(_HANDED_OVER):
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    require_regular(path, os.stat(path))  # before: the opening of a device may do something
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        require_regular(path, os.fstat(descriptor))
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def require_regular(path: Path, status: os.stat_result) -> None:
    """Raise an OSError that names the kind of file unless this is a regular one."""
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "is a pipe, socket or device, not a file", str(path))


def open_to_others(path: Path) -> str:
    """Return a file's mode, such as "0644", if others than its owner may use it; else an empty text."""
    mode = stat.S_IMODE(path.stat().st_mode)
    return f"{mode:04o}" if os.name == "posix" and mode & 0o077 else ""


def read_file(path: Path, error: type[PslError] = StoreUnreachable, *, limit: int | None = None) -> bytes:
    """Read a whole regular file, of at most `limit` bytes.

    Raises
    ------
    StoreNotFound
        If it is not there, and no other error is named.
    StoreUnreachable, or `error`
        If it cannot be read, is a folder, pipe, socket or device, or is larger than the limit.
    """
    missing = StoreNotFound if error is StoreUnreachable else None
    with disk_errors(path, "read", error, missing=missing), os.fdopen(open_regular(path), "rb") as file:
        data = file.read() if limit is None else file.read(limit + 1)
    if limit is not None and len(data) > limit:
        raise error(f"{path}: is larger than {limit} bytes: not a file of this kind")
    return data


def sha256_name(content: bytes) -> str:
    """Return a content's name: "sha256:" and 64 hexadecimal digits."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def write_file(
    path: Path,
    content: bytes | memoryview,
    error: type[PslError] = StoreUnreachable,
    *,
    mode: int | None = None,
    parents: bool = False,
    durable: bool = True,
    disk: Disk = DISK,
) -> None:
    """Write a file whole or not at all; parameters and errors are those of `NewFile`."""
    file = NewFile(path, error, mode=mode, parents=parents, durable=durable, disk=disk)
    try:
        file.write(content)
        file.commit()
    finally:
        file.abort()


class NewFile:
    """A file being written, which appears whole under its name with `commit`, in the place of an older one.

    Parameters
    ----------
    path : Path
        The file.
    error : type[PslError]
        Raised if the system refuses; the older file is then as it was.
    mode : int, optional
        Permissions, less those that the umask takes away; by default as readable as its folder.
    parents : bool
        Make missing folders.
    durable : bool
        Wait until content and name are on the disk, so that the file survives a power cut.
    disk : Disk
        Operations on files.
    """

    def __init__(
        self,
        path: Path,
        error: type[PslError] = StoreUnreachable,
        *,
        mode: int | None = None,
        parents: bool = False,
        durable: bool = True,
        disk: Disk = DISK,
    ) -> None:
        self._path, self._error, self._durable, self._disk = path, error, durable, disk
        self._buffer = bytearray()
        self._descriptor: int | None = None
        with self._errors():
            if parents:
                disk.make_folder(path.parent)
            for left in left_by_a_crash(path, stat.S_ISREG):
                disk.remove(left)
            self._descriptor = self._create(mode)

    def write(self, data: bytes | memoryview) -> None:
        """Append bytes."""
        with self._errors():
            if len(self._buffer) + len(data) > BUFFER_BYTES:
                self._flush()
            if len(data) >= BUFFER_BYTES:
                self._disk.write(self._opened, data, self._temporary)
            else:
                self._buffer += data

    def commit(self) -> None:
        """Make the file durable and give it its name."""
        with self._errors():
            self._flush()
            if self._durable:
                self._disk.sync(self._opened, self._temporary)
            self._disk.rename(self._temporary, self._path)
            self._close()
            if self._durable:
                self._disk.sync_folder(self._path.parent)

    def abort(self) -> None:
        """Drop what was written; harmless after `commit`."""
        if self._descriptor is not None:
            self._close()
            with contextlib.suppress(OSError):
                self._disk.remove(self._temporary)

    @property
    def _opened(self) -> int:
        assert self._descriptor is not None
        return self._descriptor

    def _create(self, mode: int | None) -> int:
        # The folder's permissions, but never world-writable, even in /tmp.
        of_folder = self._path.parent.stat().st_mode & 0o664
        while True:
            self._temporary = temporary_name(self._path)
            descriptor = self._disk.create(self._temporary, of_folder if mode is None else mode)
            hold(descriptor)
            if os.fstat(descriptor).st_nlink:
                break
            os.close(descriptor)  # taken for a leftover before it was locked
        if mode is None:
            os.fchmod(descriptor, of_folder)  # the umask was applied when the folder was made
        return descriptor

    def _flush(self) -> None:
        if self._buffer:
            self._disk.write(self._opened, self._buffer, self._temporary)
            self._buffer.clear()

    def _close(self) -> None:
        descriptor, self._descriptor = self._opened, None
        os.close(descriptor)

    def _errors(self) -> contextlib.AbstractContextManager[None]:
        return disk_errors(self._path, "written", self._error)


@contextlib.contextmanager
def locked(
    path: Path,
    timeout_s: float = 30.0,
    error: type[PslError] = StoreUnreachable,
    by_another: Callable[[], str] | None = None,
) -> Iterator[None]:
    """Hold a lock file against other processes; log a warning if this waits for over a second.

    Raises `error` if another process holds it for longer than the timeout, in the words of `by_another`; or if the lock
    cannot be made.
    """
    with disk_errors(path, "locked", error):
        # A file that can be read can be locked, so only those who may write in the folder may read it.
        shared = path.parent.exists() and path.parent.stat().st_mode & stat.S_IWGRP
        group = stat.S_IRGRP | stat.S_IWGRP if shared else 0
        mode = stat.S_IRUSR | stat.S_IWUSR | group
        _narrow(path, mode)
        lock = FileLock(path, mode=mode)
        try:
            try:
                lock.acquire(timeout=min(timeout_s, _UNSAID_S))
            except Timeout:
                if timeout_s <= _UNSAID_S:
                    raise
                log.warning(
                    "%s: another process is at work there; waiting for it, at most %g s", path.parent, timeout_s
                )
                lock.acquire(timeout=timeout_s - _UNSAID_S)
        except Timeout:
            waited = f"{path.parent}: another process has been at work there for {timeout_s:g} s"
            raise error(by_another() if by_another else f"{waited}; end it, or try again later") from None
    try:
        yield
    finally:
        lock.release()


def _narrow(path: Path, mode: int) -> None:
    """Give an older lock file of this user's these permissions."""
    with contextlib.suppress(FileNotFoundError):
        found = path.lstat()
        if stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid() and found.st_mode & 0o777 & ~mode:
            path.chmod(mode)


def temporary_name(path: Path) -> Path:
    """Return a hidden, unguessable name for a file or folder until it is complete."""
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")


def hold(descriptor: int) -> None:
    """Lock a file or folder in the making until the descriptor is closed, when this process ends at the latest."""
    with contextlib.suppress(OSError):  # a file system without locks: what a crash leaves there stays
        fcntl.flock(descriptor, fcntl.LOCK_EX)


def left_by_a_crash(path: Path, is_kind: Callable[[int], bool]) -> Iterator[Path]:
    """Yield unfinished files, or folders, meant to become `path` whose writers are gone."""
    name = re.compile(rf"\.{re.escape(path.name)}(\.[0-9a-f]{{16}})?\.tmp")
    yield from abandoned([path.parent / entry for entry in os.listdir(path.parent) if name.fullmatch(entry)], is_kind)


def abandoned(hidden: Iterable[Path], is_kind: Callable[[int], bool]) -> Iterator[Path]:
    """Yield the hidden files, or folders, whose writers are gone; each stays locked until the next one."""
    for left in hidden:
        with contextlib.suppress(OSError):
            if not is_kind(left.lstat().st_mode):
                continue  # made by a stranger
            descriptor = os.open(left, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                yield left
            finally:
                os.close(descriptor)
