"""The files of a store behind a URL: SSH, buckets, web servers, and everything else that fsspec supports.

Credentials come from where the protocol's users keep them (~/.ssh, AWS_* variables, ...). Messages show a place by
`shown` and an error by its kind: the far side's own words may repeat a password.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from psl_flower.errors import PatchServerLost, StoreError, StoreNotFound, StoreUnreachable, TruncatedFile
from psl_flower.sealed.folder import FileDraft
from psl_flower.sealed.listing import LISTING_BYTES, names_in
from psl_flower.sealed.web_answers import AnswerTooLong, RedirectedElsewhere, bounded
from psl_flower.system.files import BUFFER_BYTES
from psl_flower.text import printable

_SSH = ("ssh", "sftp")
_WEB = ("http", "https")
# Their "folders" are parts of names; makedirs would create a mistyped bucket.
_BUCKETS = ("s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "oci", "oss", "r2")
# A web server that is silent for this long is taken for lost.
_SILENT_S = 30.0
_CANNOT_NOW = 500
_TARGET_CHARS = 200
# Hosts are known by ~/.ssh/known_hosts, as with ssh (sshfs alone would take anyone's word); a silent peer is given up
# after three unanswered messages; a connection that broke must not come back from fsspec's cache.
_SSH_OPTIONS = {"known_hosts": (), "connect_timeout": 30, "keepalive_interval": 15, "skip_instance_cache": True}
_ADVICE = {
    "HostKeyNotVerifiable": "its host key is not in ~/.ssh/known_hosts; compare and add it (ssh-keyscan)",
    "NoCredentialsError": "no credentials were found",
    "EndpointConnectionError": "no connection",
    "ClientConnectorError": "no connection",
    "AnswerTooLong": "the server sends more than was asked for; it must answer ranges",
    "ListingTooLong": f"its listing of the folder is longer than {LISTING_BYTES} bytes",
}
# Exceptions other than OSError that libraries behind fsspec raise for an unreachable host.
_LOST = (
    "ServerDisconnectedError", "ClientPayloadError", "ConnectionLost", "SFTPConnectionLost", "SFTPNoConnection",
    "EndpointConnectionError", "ConnectionClosedError", "ConnectTimeoutError", "ReadTimeoutError",
)  # fmt: skip


class UrlFolder:
    """A folder at a URL, through fsspec.

    A file is written under a temporary name and then moved, so that a broken transfer leaves none under its
    own; the far side alone decides when it is durable.

    Raises
    ------
    StoreUnreachable
        If fsspec does not support the protocol, lacks a package for it, or cannot connect.
    """

    def __init__(self, url: str) -> None:
        import fsspec

        self._name = shown(url)
        self._scheme = url.partition("://")[0].lower()
        if self._scheme in _SSH and importlib.util.find_spec("sshfs") is None:
            raise StoreUnreachable(f"{self._name}: needs the package sshfs (pip install 'psl-flower[ssh]')")
        try:
            self._fs, self._root = fsspec.core.url_to_fs(url, **_options(self._scheme))
        except Exception as error:  # of any library behind fsspec
            raise _unreachable(f"cannot open {self._name}", error) from None
        # Neither reads ranges: sshfs would fetch the whole file for each, others open it again for each.
        self._by_handle = self._scheme in _SSH or not self._fs.async_impl
        self._open: dict[str, Any] = {}
        # At the latest at the process's end: sshfs waits for ever for a file closed after fsspec's thread is gone.
        weakref.finalize(self, _shut_all, self._open)

    @property
    def name(self) -> str:
        """The URL, without user or password."""
        return self._name

    def list(self) -> list[str]:
        """See Folder."""
        with self._translated():
            self._fs.invalidate_cache()
            if self._scheme in _WEB:
                return sorted(self._listed_by_web())
            try:
                entries: list[dict[str, Any]] = self._fs.ls(self._root, detail=True)
            except FileNotFoundError:
                return []
            root = self._root.rstrip("/")  # buckets may list the folder in itself
            names = [entry["name"].rstrip("/") for entry in entries]
            return sorted(name.rsplit("/", 1)[-1] for name in names if name != root)

    def size(self, name: str) -> int:
        """See Folder."""
        with self._translated(name):
            self._fs.invalidate_cache()
            return int(self._fs.size(self._path(name)))

    def read(self, name: str, limit: int) -> bytes:
        """See Folder."""
        with self._translated(name):
            size = self.size(name)
            if size > limit:
                raise StoreUnreachable(f"{self._name}/{name} is larger than {limit} bytes: not a file of this kind")
            return bytes(self._fs.cat_file(self._path(name), start=0, end=size))  # a range: see `_bounded`

    def ranges(self, name: str, starts: Sequence[int], length: int) -> Sequence[bytes]:
        """See Folder."""
        with self._translated(name):
            parts = self._by_seeking(name, starts, length) if self._by_handle else self._at_once(name, starts, length)
        if any(len(part) != length for part in parts):
            raise TruncatedFile(f"{self._name}/{name} ends before the record that was asked for")
        return parts

    def draft(self, name: str) -> FileDraft:
        """See Folder."""
        with self._translated():
            if self._scheme not in _BUCKETS:
                self._fs.makedirs(self._root, exist_ok=True)
            return _UrlDraft(self, name)

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
        _shut_all(self._open)

    def _listed_by_web(self) -> set[str]:
        """Return the names that a web server lists; none if it lists no folders.

        Not by fsspec's `ls`: its regular expression takes minutes for a page of some thousand blanks.
        """
        try:
            page = bytes(self._fs.cat_file(self._root))
        except (AnswerTooLong, RedirectedElsewhere):
            raise
        except Exception:
            return set()
        return names_in(page.decode("utf-8", "replace"), self._root)

    def _by_seeking(self, name: str, starts: Sequence[int], length: int) -> Sequence[bytes]:
        if name not in self._open:
            self._open[name] = self._fs.open(self._path(name), "rb")
        file, parts = self._open[name], []
        for start in starts:
            file.seek(start)
            parts.append(bytes(file.read(length)))
        return parts

    def _at_once(self, name: str, starts: Sequence[int], length: int) -> Sequence[bytes]:
        ends = [start + length for start in starts]
        parts = self._fs.cat_ranges([self._path(name)] * len(ends), list(starts), ends)
        # cat_ranges returns what was raised for a range in its place.
        failed = next((part for part in parts if isinstance(part, Exception)), None)
        if failed is not None:
            # Many servers refuse a range beyond the end; one that did not answer in time is not asked again.
            refused = not isinstance(failed, FileNotFoundError | TimeoutError | RedirectedElsewhere)
            if refused and self.size(name) < max(ends):
                raise TruncatedFile(f"{self._name}/{name} ends before the record that was asked for")
            raise failed
        return [bytes(part) for part in parts]

    def _path(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}"

    @contextlib.contextmanager
    def _translated(self, name: str = "") -> Iterator[None]:
        """Turn the file system's errors into ours; remote ones raise about anything."""
        where = f"{self._name}/{name}".rstrip("/")
        try:
            yield
        except StoreError:
            raise
        except FileNotFoundError as error:
            # fsspec's HTTP raises this too if the server itself cannot be reached; the cause tells them apart.
            cause = error.__cause__
            if cause is not None and (isinstance(cause, RedirectedElsewhere) or _lost(cause)):
                raise _unreachable(where, cause) from None
            raise StoreNotFound(f"{where} does not exist") from None
        except Exception as error:
            raise _unreachable(where, error) from None


def _options(scheme: str) -> Mapping[str, object]:
    """Return fsspec's options for URLs of this protocol."""
    if scheme in _SSH:
        return _SSH_OPTIONS
    if scheme in _WEB and importlib.util.find_spec("aiohttp") is not None:  # else fsspec says what to install
        import aiohttp

        # Its default limit is five minutes for a whole request, which a large one may exceed.
        silent = aiohttp.ClientTimeout(total=None, sock_connect=_SILENT_S, sock_read=_SILENT_S)
        return {"client_kwargs": {"timeout": silent, "response_class": bounded(_SILENT_S)}}
    return {}


class _UrlDraft:
    def __init__(self, folder: UrlFolder, name: str) -> None:
        self._folder, self._name = folder, name
        self._temporary = folder._path(f".{name}.tmp")
        self._file: Any = folder._fs.open(self._temporary, "wb")
        weakref.finalize(self, _shut, self._file)  # as with the files that are read
        self._buffer = bytearray()
        self._done = False

    def write(self, data: bytes) -> None:
        # A write can be a round trip.
        self._buffer += data
        if len(self._buffer) >= BUFFER_BYTES:
            self._flush()

    def commit(self) -> None:
        self._flush()
        with self._folder._translated():
            self._file.close()
            self._folder._fs.mv(self._temporary, self._folder._path(self._name))
        self._done = True

    def abort(self) -> None:
        if self._done:
            return
        self._done = True
        _shut(self._file)
        with contextlib.suppress(Exception):
            self._folder._fs.rm_file(self._temporary)

    def _flush(self) -> None:
        with self._folder._translated():
            self._file.write(bytes(self._buffer))
        self._buffer.clear()


def _shut_all(files: dict[str, Any]) -> None:
    while files:
        _shut(files.popitem()[1])


def _shut(file: Any) -> None:
    """Close a file; one whose connection broke is not closed again by its finaliser, which could wait for ever."""
    try:
        file.close()
    except Exception:
        with contextlib.suppress(AttributeError):
            file.close = lambda: None


def shown(url: str) -> str:
    """Return a place in a form fit for messages: a URL without user, password or query; a path unchanged."""
    if "://" not in url:
        return url
    # Also of URLs within a chain such as simplecache::ssh://...
    text = re.sub(r"://[^/?#]*@", "://", url)
    # A password with an unescaped / ? or # ends wherever the last @ is.
    text = re.sub(r"://[^/?#@]*:.*@", "://", text)
    return text.split("?", 1)[0]


def _unreachable(what: str, error: BaseException) -> StoreUnreachable:
    """Return our error for a library's; its class shows whether the far side may come back."""
    return (PatchServerLost if _lost(error) else StoreUnreachable)(f"{what}: {_reason(error)}")


def _lost(error: BaseException) -> bool:
    """Check if the far side is unreachable for now; a web server's 5xx counts."""
    if isinstance(error, OSError):
        return not isinstance(error, PermissionError | FileNotFoundError)
    return type(error).__name__ in _LOST or getattr(error, "status", 0) >= _CANNOT_NOW


def _reason(error: BaseException) -> str:
    """Say why, in words of our own."""
    if isinstance(error, ImportError):
        return str(error)  # which package to install
    if isinstance(error, RedirectedElsewhere):
        target = printable(shown(str(error)[:_TARGET_CHARS]))
        return f"the server redirects to another one, {target}, which is not followed; if it is right, use its URL"
    kind = type(error).__name__
    if isinstance(error, PermissionError) or kind == "SFTPPermissionDenied":
        return "access denied; check the credentials and what they permit"
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    return f"{kind}: {_ADVICE[kind]}" if kind in _ADVICE else kind
