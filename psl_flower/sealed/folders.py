"""Where the files of a store lie: a local folder, or any URL that fsspec opens.

A file appears under its name whole or not at all. Readers ask for many short ranges at once, since one
request per record would make a remote store useless.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from psl_flower.errors import StoreNotFound, StoreUnreachable, TruncatedFile
from psl_flower.sealed.disk import DISK, Disk, read_file, write_file

_BUFFER_BYTES = 1 << 20


class Draft(Protocol):
    """A file being written."""

    def write(self, data: bytes) -> None:
        """Append bytes."""
        ...

    def commit(self) -> None:
        """Make the file durable and give it its name."""
        ...

    def abort(self) -> None:
        """Drop what was written; harmless after commit."""
        ...


class Folder(Protocol):
    """The files of one store. Every method raises StoreUnreachable where the file system refuses."""

    @property
    def name(self) -> str:
        """Path or URL, for messages."""
        ...

    def list(self) -> list[str]:
        """Names of the files, in order; none where the folder does not exist."""
        ...

    def size(self, name: str) -> int:
        """Size of a file in bytes; StoreNotFound where it is missing."""
        ...

    def read(self, name: str, limit: int) -> bytes:
        """Return a whole file of at most `limit` bytes; StoreNotFound where it is missing."""
        ...

    def ranges(self, name: str, starts: Sequence[int], length: int) -> Sequence[bytes]:
        """Return `length` bytes from each start; TruncatedFile where the file ends before."""
        ...

    def draft(self, name: str) -> Draft:
        """Begin a file."""
        ...

    def write(self, name: str, data: bytes) -> None:
        """Write a whole file, at once."""
        ...

    def remove(self, name: str) -> None:
        """Remove a file if it is there."""
        ...

    def close(self) -> None:
        """Release open files."""
        ...


def open_folder(place: str | Path, disk: Disk = DISK) -> Folder:
    """Open a local folder, or the folder at a URL (anything with ``://``)."""
    if isinstance(place, str) and "://" in place and not place.startswith("file://"):
        return UrlFolder(place)
    return LocalFolder(Path(str(place).removeprefix("file://")), disk)


class LocalFolder:
    """A folder of this machine."""

    def __init__(self, path: Path, disk: Disk = DISK) -> None:
        self.path = path
        self._disk = disk
        self._open: dict[str, int] = {}

    @property
    def name(self) -> str:
        """The path."""
        return str(self.path)

    def list(self) -> list[str]:
        """See Folder."""
        return sorted(p.name for p in self.path.iterdir() if p.is_file()) if self.path.is_dir() else []

    def size(self, name: str) -> int:
        """See Folder."""
        try:
            return (self.path / name).stat().st_size
        except (FileNotFoundError, NotADirectoryError):
            raise StoreNotFound(f"{self.path / name} does not exist") from None
        except OSError as error:
            raise StoreUnreachable(f"cannot read {self.path / name}: {error.strerror}") from None

    def read(self, name: str, limit: int) -> bytes:
        """See Folder."""
        return read_file(self.path / name, limit)

    def ranges(self, name: str, starts: Sequence[int], length: int) -> Sequence[bytes]:
        """See Folder. pread, not mmap: a file cut short under a mapping would end the process by a signal."""
        descriptor = self._descriptor(name)
        try:
            parts = [os.pread(descriptor, length, start) for start in starts]
        except OSError as error:
            raise StoreUnreachable(f"cannot read {self.path / name}: {error.strerror}") from None
        if any(len(part) != length for part in parts):
            raise TruncatedFile(f"{self.path / name} ends before the record that was asked for")
        return parts

    def draft(self, name: str) -> Draft:
        """See Folder."""
        self._disk.make_folder(self.path)
        return _LocalDraft(self.path / name, self._disk)

    def write(self, name: str, data: bytes) -> None:
        """See Folder."""
        self._disk.make_folder(self.path)
        write_file(self.path / name, data, disk=self._disk)

    def remove(self, name: str) -> None:
        """See Folder."""
        self._disk.remove(self.path / name)

    def close(self) -> None:
        """See Folder."""
        while self._open:
            os.close(self._open.popitem()[1])

    def _descriptor(self, name: str) -> int:
        if name not in self._open:
            try:
                self._open[name] = os.open(self.path / name, os.O_RDONLY | os.O_CLOEXEC)
            except (FileNotFoundError, NotADirectoryError):
                raise StoreNotFound(f"{self.path / name} does not exist") from None
            except OSError as error:
                raise StoreUnreachable(f"cannot read {self.path / name}: {error.strerror}") from None
        return self._open[name]


class _LocalDraft:
    def __init__(self, path: Path, disk: Disk) -> None:
        self._path, self._disk = path, disk
        self._temporary = path.with_name(f".{path.name}.tmp")
        self._descriptor: int | None = disk.create(self._temporary)
        self._buffer = bytearray()

    def write(self, data: bytes) -> None:
        self._buffer += data
        if len(self._buffer) >= _BUFFER_BYTES:
            self._flush()

    def commit(self) -> None:
        self._flush()
        assert self._descriptor is not None
        self._disk.sync(self._descriptor, self._temporary)
        os.close(self._descriptor)
        self._descriptor = None
        self._disk.rename(self._temporary, self._path)
        self._disk.sync_folder(self._path.parent)

    def abort(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
            self._disk.remove(self._temporary)

    def _flush(self) -> None:
        assert self._descriptor is not None
        if self._buffer:
            self._disk.write(self._descriptor, bytes(self._buffer), self._temporary)
            self._buffer.clear()


class UrlFolder:
    """A folder at a URL, through fsspec, which also knows the credentials; messages show none.

    A file is written under a temporary name and then moved, so that a broken transfer leaves none under its
    own; what the far side makes durable, and when, is its own affair.
    """

    def __init__(self, url: str) -> None:
        import fsspec  # type: ignore[import-untyped,unused-ignore]

        try:
            self._fs, self._root = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError, OSError) as error:
            raise StoreUnreachable(f"cannot open {shown(url)}: {type(error).__name__}: {error}") from None
        self._name = shown(url)

    @property
    def name(self) -> str:
        """The URL, without user or password."""
        return self._name

    def list(self) -> list[str]:
        """See Folder."""
        with self._translated(""):
            self._fs.invalidate_cache()
            if not self._fs.isdir(self._root):
                return []
            entries: list[dict[str, Any]] = self._fs.ls(self._root, detail=True)
            return sorted(entry["name"].rsplit("/", 1)[-1] for entry in entries if entry["type"] == "file")

    def size(self, name: str) -> int:
        """See Folder."""
        with self._translated(name):
            self._fs.invalidate_cache()
            return int(self._fs.size(self._path(name)))

    def read(self, name: str, limit: int) -> bytes:
        """See Folder."""
        with self._translated(name):
            if self.size(name) > limit:
                raise StoreUnreachable(f"{self._name}/{name} is larger than {limit} bytes: not a file of this kind")
            return bytes(self._fs.cat_file(self._path(name)))

    def ranges(self, name: str, starts: Sequence[int], length: int) -> Sequence[bytes]:
        """See Folder."""
        path = self._path(name)
        with self._translated(name):
            parts = self._fs.cat_ranges([path] * len(starts), list(starts), [start + length for start in starts])
        if any(len(part) != length for part in parts):
            raise TruncatedFile(f"{self._name}/{name} ends before the record that was asked for")
        return [bytes(part) for part in parts]

    def draft(self, name: str) -> Draft:
        """See Folder."""
        with self._translated(name):
            self._fs.makedirs(self._root, exist_ok=True)
            return _UrlDraft(self, self._path(f".{name}.tmp"), self._path(name))

    def write(self, name: str, data: bytes) -> None:
        """See Folder."""
        draft = self.draft(name)
        try:
            draft.write(data)
            draft.commit()
        except BaseException:
            draft.abort()
            raise

    def remove(self, name: str) -> None:
        """See Folder."""
        with self._translated(name), contextlib.suppress(FileNotFoundError):
            self._fs.rm_file(self._path(name))

    def close(self) -> None:
        """See Folder."""

    def _path(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}"

    @contextlib.contextmanager
    def _translated(self, name: str) -> Any:
        """Turn the file system's errors into ours; remote ones raise about anything."""
        try:
            yield
        except (StoreNotFound, StoreUnreachable):
            raise
        except FileNotFoundError as error:
            # fsspec's HTTP says so too where the server itself cannot be reached; the cause tells.
            if isinstance(error.__cause__, OSError) and not isinstance(error.__cause__, FileNotFoundError):
                raise StoreUnreachable(f"{self._name}/{name}: {type(error.__cause__).__name__}") from None
            raise StoreNotFound(f"{self._name}/{name} does not exist") from None
        except Exception as error:
            raise StoreUnreachable(f"{self._name}/{name}: {type(error).__name__}") from None


class _UrlDraft:
    def __init__(self, folder: UrlFolder, temporary: str, final: str) -> None:
        self._folder, self._temporary, self._final = folder, temporary, final
        self._file: Any = folder._fs.open(temporary, "wb")
        self._done = False

    def write(self, data: bytes) -> None:
        with self._folder._translated(self._final.rsplit("/", 1)[-1]):
            self._file.write(data)

    def commit(self) -> None:
        with self._folder._translated(self._final.rsplit("/", 1)[-1]):
            self._file.close()
            self._folder._fs.mv(self._temporary, self._final)
        self._done = True

    def abort(self) -> None:
        if self._done:
            return
        self._done = True
        with contextlib.suppress(Exception):
            self._file.close()
        with contextlib.suppress(Exception):
            self._folder._fs.rm_file(self._temporary)


def shown(url: str) -> str:
    """Return a place as it may be shown: a URL without user, password or query; a path as it is."""
    if "://" not in url:
        return url
    scheme, rest = url.split("://", 1)
    host, slash, path = rest.partition("/")
    return f"{scheme}://{host.rsplit('@', 1)[-1]}{slash}{path}".split("?", 1)[0]
