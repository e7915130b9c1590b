"""Opens the folder of a store: a local folder, or any URL that fsspec opens."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from psl_flower.errors import StoreNotFound, TruncatedFile
from psl_flower.sealed.folder import FileDraft, Folder
from psl_flower.sealed.url_folder import UrlFolder
from psl_flower.system.files import (
    DISK,
    Disk,
    NewFile,
    disk_errors,
    open_regular,
    read_file,
    require_regular,
    write_file,
)


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
        with disk_errors(self.path, "read"):
            return sorted(p.name for p in self.path.iterdir()) if self.path.is_dir() else []

    def size(self, name: str) -> int:
        """See Folder."""
        with disk_errors(self.path / name, "read", missing=StoreNotFound):
            found = (self.path / name).stat()
            require_regular(self.path / name, found)
            return found.st_size

    def read(self, name: str, limit: int) -> bytes:
        """See Folder."""
        return read_file(self.path / name, limit=limit)

    def ranges(self, name: str, starts: Sequence[int], length: int) -> Sequence[bytes]:
        """See Folder. pread, not mmap: a file cut short under a mapping would end the process by a signal."""
        with disk_errors(self.path / name, "read", missing=StoreNotFound):
            if name not in self._open:
                self._open[name] = open_regular(self.path / name)
            parts = [os.pread(self._open[name], length, start) for start in starts]
        if any(len(part) != length for part in parts):
            raise TruncatedFile(f"{self.path / name} ends before the record that was asked for")
        return parts

    def draft(self, name: str) -> FileDraft:
        """See Folder."""
        return NewFile(self.path / name, mode=0o644, parents=True, disk=self._disk)

    def write(self, name: str, data: bytes) -> None:
        """See Folder."""
        write_file(self.path / name, data, mode=0o644, parents=True, disk=self._disk)

    def remove(self, name: str) -> None:
        """See Folder."""
        with disk_errors(self.path / name, "removed"):
            self._disk.remove(self.path / name)

    def close(self) -> None:
        """See Folder."""
        while self._open:
            os.close(self._open.popitem()[1])
