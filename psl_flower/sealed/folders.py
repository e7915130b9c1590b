"""Opens the folder of a store: a local folder, or any URL that fsspec opens."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from psl_flower.errors import StoreNotFound, StoreUnreachable, TruncatedFile
from psl_flower.sealed.disk import DISK, Disk, read_file, write_file
from psl_flower.sealed.folder import BUFFER_BYTES, Draft, Folder
from psl_flower.sealed.url_folder import UrlFolder


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
        try:
            return sorted(p.name for p in self.path.iterdir() if p.is_file()) if self.path.is_dir() else []
        except OSError as error:
            raise StoreUnreachable(f"cannot read {self.path}: {error.strerror}") from None

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
        if len(self._buffer) >= BUFFER_BYTES:
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
