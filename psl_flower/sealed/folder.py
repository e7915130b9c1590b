"""Interface of a store's folder for readers and writers, local or remote.

A file appears under its name complete or not at all. Readers ask for many short ranges at once, since one request per
record would make a remote store useless.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class FileDraft(Protocol):
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
    """The files of one store. Every method raises StoreUnreachable if the file system refuses."""

    @property
    def name(self) -> str:
        """Path or URL, for messages."""
        ...

    def list(self) -> list[str]:
        """Names of all that lies there, in order; none if there is no folder, or a web server does not list it."""
        ...

    def size(self, name: str) -> int:
        """Size of a file in bytes; StoreNotFound if it is missing."""
        ...

    def read(self, name: str, limit: int) -> bytes:
        """Return a whole file of at most `limit` bytes; StoreNotFound if it is missing."""
        ...

    def ranges(self, name: str, starts: Sequence[int], length: int) -> Sequence[bytes]:
        """Return `length` bytes from each start; TruncatedFile if the file ends before."""
        ...

    def draft(self, name: str) -> FileDraft:
        """Begin a file."""
        ...

    def write(self, name: str, data: bytes) -> None:
        """Write a whole file, at once."""
        ...

    def remove(self, name: str) -> None:
        """Remove a file if it exists."""
        ...

    def close(self) -> None:
        """Release open files."""
        ...
