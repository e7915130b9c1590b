"""The files of a dataset's folder: images, tables, and those passed by.

Links to folders are followed. Images are recognised by their extensions or, failing that, by their first bytes.
"""

from __future__ import annotations

import errno
import os
import posixpath
import re
import stat
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from enum import StrEnum
from fnmatch import fnmatchcase
from functools import cache
from io import BytesIO, FileIO
from pathlib import Path
from typing import BinaryIO, NamedTuple

from PIL import Image

from psl_flower.data.account import LeftOutTally
from psl_flower.data.array_files import is_array_name
from psl_flower.data.heif import HEIF_ENDINGS, can_read_heif, is_heif
from psl_flower.data.unreadable import UNREADABLE_ENDINGS, is_unreadable_picture
from psl_flower.errors import CorruptImage, DataError
from psl_flower.text import printable

TABLE_ENDINGS = frozenset({".arrow", ".csv", ".json", ".jsonl", ".parquet", ".tsv"})
ARCHIVE_ENDINGS = frozenset({".7z", ".bz2", ".gz", ".rar", ".tar", ".tgz", ".xz", ".zip"})

HIDDEN = "hidden"
DROPPING = "left by an operating system or a NAS"
NO_FILE = "neither a file nor a folder"
BROKEN_LINK = "link to nothing"
LOOP = "link to a folder that holds it"
ASKED = "named by leave-out"
NO_IMAGE = "not an image"

_DROPPINGS = frozenset({
    "#recycle", "#snapshot", "$recycle.bin", "@eadir", "@recently-snapshot", "@recycle", "@sharebin", "@tmp",
    "__macosx", "desktop.ini", "ehthumbs.db", "icon\r", "lost+found", "network trash folder",
    "system volume information", "temporary items", "thumbs.db",
})  # fmt: skip
_ENDINGS = frozenset({
    ".avif", ".bmp", ".gif", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm",
    ".tif", ".tiff", ".webp",
})  # fmt: skip
# Pillow opens them and cannot decode them, or not without another program: PostScript by Ghostscript, which runs it.
_NOT_DECODED = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MCIDAS", "MPEG", "WMF", "XVTHUMB"})
# Names that a pattern which matches nothing is compared with, at most.
_COMPARED = 2000
# As far as DICOM's mark, and where an SVG begins after its comments.
_PREFIX_BYTES = 1024


class File(NamedTuple):
    """A regular file: its path within the folder, with "/", and what distinguishes it from others of that name."""

    path: str
    size: int
    changed: tuple[int, int]

    @property
    def ending(self) -> str:
        """The extension of its name, in lower case."""
        return os.path.splitext(self.path)[1].lower()


@dataclass(slots=True)
class Listing:
    """The files of a folder and of all folders in it."""

    root: Path  #: The folder.
    files: list[File] = field(default_factory=list)  #: Each folder's files by name, then those of its folders.
    #: Everything passed by: hidden, left by a NAS, no file, or named by `leave_out`.
    left_out: LeftOutTally = field(default_factory=LeftOutTally)
    #: All folders in it, by their paths within it, without those passed by.
    folders: list[str] = field(default_factory=list)
    dead_links: list[str] = field(default_factory=list)  #: Dangling links; also in `left_out`.


def list_files(folder: Path, leave_out: Sequence[str] = ()) -> Listing:
    """List a folder; nothing is opened.

    `leave_out` are patterns, such as "*.nef" or "notes/*", of names and of paths within the folder.

    Raises
    ------
    DataError
        If a folder cannot be listed, or a pattern matches nothing in it.
    """
    listing, patterns = Listing(folder), _Patterns(leave_out)
    try:
        _list(listing, "", patterns, [])
        patterns.check(listing)
    except OSError as error:
        raise DataError(f"cannot list {error.filename or folder}: {error.strerror or error}") from error
    return listing


class _Patterns:
    """Patterns of what to leave out, and which of them have matched."""

    def __init__(self, patterns: Sequence[str]) -> None:
        self._patterns = patterns
        self._matched: set[str] = set()
        self._passed_by: list[str] = []

    def reason(self, name: str, path: str) -> str:
        """Return why a file or folder is passed by; empty if it is not."""
        asked = self._match(name, path)
        reason = HIDDEN if name.startswith(".") else DROPPING if name.lower() in _DROPPINGS else ASKED if asked else ""
        if reason and self._patterns:
            self._passed_by.append(path)
        return reason

    def check(self, listing: Listing) -> None:
        """Refuse a pattern that matches no file, not even an ignored one: it may be a typo."""
        for path in self._passed_by if len(self._matched) < len(set(self._patterns)) else ():
            for parent, folders, files in os.walk(listing.root / path):
                for name in (*folders, *files):
                    self._match(name, os.path.relpath(os.path.join(parent, name), listing.root))
        for pattern in self._patterns:
            if pattern not in self._matched and not _names_a_missing_part(pattern, listing):
                paths = [*listing.folders, *(file.path for file in listing.files), *listing.dead_links]
                raise DataError(f"leave-out={pattern} matches nothing in the folder{_nearest(pattern, paths)}")

    def _match(self, name: str, path: str) -> bool:
        matched = [each for each in self._patterns if fnmatchcase(name, each) or fnmatchcase(path, each)]
        self._matched.update(matched)
        return bool(matched)


def _names_a_missing_part(pattern: str, listing: Listing) -> bool:
    """Check if a pattern names a part of a table that has other parts: users thus accept that it is missing."""
    others = re.sub(r"-\d{5}-of-", f"-{'[0-9]' * 5}-of-", pattern)
    return others != pattern and any(
        fnmatchcase(file.path, others) or fnmatchcase(posixpath.basename(file.path), others) for file in listing.files
    )


def _nearest(pattern: str, paths: list[str]) -> str:
    """Return a suggestion for a pattern that matches nothing, as the end of a sentence, or an empty text."""
    if not paths:
        return ""
    known: dict[str, str] = {}
    for path in paths[:_COMPARED]:
        name = posixpath.basename(path)
        for text in (path, name, f"*{posixpath.splitext(name)[1]}"):
            known.setdefault(text.casefold(), text)
    found = get_close_matches(pattern.strip("/").casefold(), known, 1, 0.6)
    meant = f"; did you mean {printable(known[found[0]])}?" if found else ""
    slash = ": folders are named without a slash at the end" if pattern.endswith("/") else ""
    return f"{slash}{meant or f', which holds {printable(paths[0])}, for one'}"


def _list(listing: Listing, inside: str, patterns: _Patterns, above: list[tuple[int, int]]) -> None:
    here = os.path.join(listing.root, inside)
    status = os.stat(here)
    above = [*above, (status.st_dev, status.st_ino)]
    folders = []
    with os.scandir(here) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            path = inside + entry.name
            reason = patterns.reason(entry.name, path)
            if reason:
                listing.left_out.add(reason, path, _count(entry))
                continue
            try:
                status = entry.stat()
            except OSError as error:
                if not entry.is_symlink():
                    raise
                listing.left_out.add(LOOP if error.errno == errno.ELOOP else BROKEN_LINK, path)
                listing.dead_links.append(path)
                continue
            if stat.S_ISDIR(status.st_mode):
                if (status.st_dev, status.st_ino) in above:
                    listing.left_out.add(LOOP, path)
                else:
                    folders.append(path + "/")
            elif stat.S_ISREG(status.st_mode):
                # Replacing a file's content can forge its modification time, but not its change time.
                listing.files.append(File(path, status.st_size, (status.st_mtime_ns, status.st_ctime_ns)))
            else:
                listing.left_out.add(NO_FILE, path)
    for path in folders:
        listing.folders.append(path.removesuffix("/"))
        _list(listing, path, patterns, above)


def _count(entry: os.DirEntry[str]) -> int:
    """Return the number of files in an unread folder; a link counts as one."""
    if not entry.is_dir(follow_symlinks=False):
        return 1
    return sum(
        len(files) + sum(os.path.islink(os.path.join(parent, name)) for name in folders)
        for parent, folders, files in os.walk(entry.path)
    )


class FileKind(StrEnum):
    """Kind of a file's content."""

    IMAGE = "image"
    # A picture that nothing here decodes, such as a camera's raw file.
    PICTURE = "picture that cannot be decoded"
    TABLE = "table"
    ARRAY = "array of numbers"
    ARCHIVE = "archive"
    OTHER = NO_IMAGE


def kind_of(root: Path, file: File) -> FileKind:
    """Return a file's kind, by its ending or, unless that is an image's, by its first bytes.

    An image that is damaged after these counts as an image, so that decoding it reports the damage; a file that cannot
    be opened does not.
    """
    ending = file.ending
    if is_image_name(file.path):
        return FileKind.PICTURE if ending in HEIF_ENDINGS and not can_read_heif() else FileKind.IMAGE
    if ending in UNREADABLE_ENDINGS:
        return FileKind.PICTURE
    if ending in _rare_endings():
        return FileKind.IMAGE
    within = _kind_within(root / file.path)
    if within is not FileKind.OTHER:
        return within
    if is_array_name(file.path):
        return FileKind.ARRAY
    return (
        FileKind.TABLE if ending in TABLE_ENDINGS else FileKind.ARCHIVE if ending in ARCHIVE_ENDINGS else FileKind.OTHER
    )


def is_image_name(name: str) -> bool:
    """Check if a name has the ending of a decodable image."""
    ending = os.path.splitext(name)[1].lower()
    return ending in _ENDINGS or ending in HEIF_ENDINGS


def decodable() -> tuple[str, ...]:
    """Return Pillow's names of the image formats that are accepted, regardless of file names."""
    Image.init()
    return _decodable(len(Image.ID))


@cache
def _decodable(num_formats: int) -> tuple[str, ...]:
    # By their number: pillow-heif adds one, once it is loaded.
    return tuple(name for name in Image.ID[:num_formats] if name not in _NOT_DECODED)


@cache
def _rare_endings() -> frozenset[str]:
    Image.init()
    return frozenset(
        ending for ending, name in Image.EXTENSION.items() if name in Image.OPEN and name not in _NOT_DECODED
    )


def _kind_within(path: Path) -> FileKind:
    try:
        with path.open("rb") as file:
            prefix = file.read(_PREFIX_BYTES)
            if is_unreadable_picture(prefix) or (is_heif(prefix) and not can_read_heif()):
                return FileKind.PICTURE
            return FileKind.IMAGE if _is_image(prefix, file) else FileKind.OTHER
    except OSError:
        return FileKind.OTHER


def begins_as_image(encoded: bytes) -> bool:
    """Check if a file's content begins as a decodable image; the rest may be damaged."""
    return _is_image(encoded[:_PREFIX_BYTES], BytesIO(encoded))


def _is_image(prefix: bytes, file: BinaryIO) -> bool:
    if is_heif(prefix):
        return can_read_heif()
    names = [name for name in decodable() if _accepts(name, prefix[:16])]
    file.seek(0)
    return bool(names) and _opens(file, names)


def _opens(file: BinaryIO, names: list[str]) -> bool:
    try:
        with warnings.catch_warnings():
            # Of metadata, which is for the decoding to say.
            warnings.simplefilter("ignore")
            Image.open(file, formats=names)
    except Image.DecompressionBombError:
        return True
    except Exception:
        # Text that begins as an image does, such as "BMW": Pillow documents no list of what its plugins raise.
        return False
    return True


def _accepts(kind: str, prefix: bytes) -> bool:
    accept = Image.OPEN[kind][1]
    try:
        # Some plugins do not test the first bytes; they read any file with their extension.
        return accept is not None and accept(prefix) is True
    except Exception:
        return False  # too few bytes; see `_opens`


def read_image_file(path: Path | str, where: str) -> bytes:
    """Return the content of an image file.

    Raises
    ------
    CorruptImage
        If it cannot be read, is a camera's raw file or the like, of which Pillow might take a preview for the image, or
        is no regular file: one would wait for ever for what a named pipe holds.
    """
    if os.path.splitext(path)[1].lower() in UNREADABLE_ENDINGS:
        raise CorruptImage(f"{where}: is a picture that cannot be decoded; convert it, to PNG say")
    try:
        # Not blocking, or a named pipe would be waited for.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise CorruptImage(f"{where}: is not a regular file; leave it out")
            return FileIO(descriptor, closefd=False).readall()
        finally:
            os.close(descriptor)
    except OSError as error:
        raise CorruptImage(f"{where}: cannot be read: {error.strerror or error}") from error
