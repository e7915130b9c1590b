"""A local folder as a dataset: images by class, images listed in a table, tables that hold the images, or arrays.

Its content decides; if that is ambiguous, the settings do.
"""

from __future__ import annotations

import hashlib
import json
import os
import posixpath
import zipfile
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from psl_flower.data.files import FileKind, Listing, is_image_name, kind_of, list_files
from psl_flower.data.image_folder import read_image_folder
from psl_flower.data.images import RawDataset
from psl_flower.data.layout import NO_CLASS, Layout, read_layout
from psl_flower.data.lost_folders import check_lost_folders
from psl_flower.data.options import SourceOptions, leave_out_setting
from psl_flower.errors import DataError
from psl_flower.text import counted, printable

if TYPE_CHECKING:
    from psl_flower.data.arrays import ArrayFolder
    from psl_flower.data.columns import Resolve
    from psl_flower.data.table_files import ImageTables

_NOT_NAMED = "in no row that is taken"
_LISTS_NOTHING = "table that lists no images"
_CARDS = ("README.md", ".huggingface.yaml")
_CARD_BYTES = 1 << 20
_UNREAD_TABLES = (".feather", ".h5", ".mat", ".ndjson", ".ods", ".pkl", ".txt", ".xls", ".xlsx", ".xml")
_TAR_ENDINGS = (".7z", ".rar", ".tar", ".tar.bz2", ".tar.gz", ".tar.xz", ".tgz")


def list_dataset(name: str, folder: Path, options: SourceOptions) -> Listing:
    """List a dataset's folder; raises DataError if it cannot be listed."""
    try:
        return list_files(folder, options.patterns)
    except DataError as error:
        raise DataError(f"{name}: {error}") from error


def content_of(listing: Listing) -> str:
    """Return hex digits that change with the folder's place and with any of its files."""
    files = [(os.fsencode(file.path).hex(), file.size, *file.changed) for file in listing.files]
    return hashlib.sha256(json.dumps((os.fsencode(listing.root).hex(), files)).encode()).hexdigest()


def read_folder(name: str, listing: Listing, options: SourceOptions) -> RawDataset:
    """Return the images of a folder and their classes.

    Raises
    ------
    DataError
        If it can be read in no way, or in two.
    """
    kinds = {file.path: kind_of(listing.root, file) for file in listing.files}
    pictures = _of(kinds, FileKind.IMAGE, FileKind.PICTURE)
    tables = _image_tables(listing, kinds, options) if options.read_as != "folders" else None
    stored = _arrays(listing, kinds, options)
    archives = _of(kinds, FileKind.ARCHIVE)
    holds_others = bool(pictures or (tables and tables.paths) or (stored and stored.hold_a_dataset()))
    if _has_card(listing):
        return _by_library(name, listing, kinds, options)
    if archives and not holds_others:
        raise DataError(
            f"{name}: {printable(archives[0])} is an archive, and nothing beside it holds images: unpack it"
            f"{_count_images(listing.root / archives[0])}"
        )
    listed = tables.paths if tables is not None else []
    layout = _layout(name, pictures, tables, options)
    if tables is not None and (layout is not None or stored is not None):
        # Like an archive, it may hold labelled images.
        tables.check(name, large_only=True)
    if stored is not None and stored.hold_a_dataset():
        _check_alone(name, stored, layout, listed)
        return _by_arrays(name, listing, kinds, stored)
    if layout is None and tables is not None and listed:
        return _by_tables(name, listing, kinds, tables, options)
    if layout is None and stored is not None and not pictures:
        return _by_arrays(name, listing, kinds, stored)
    if layout is None:
        raise DataError(f"{name}: {listing.root} {_what_is_wrong(kinds, pictures, tables)}")
    if listed:
        raise DataError(
            f"{name}: holds images by class, and {printable(listed[0])} lists images; choose with read-as=folders or "
            "read-as=tables"
        )
    if options.image_column or options.label_column:
        raise DataError(f"{name}: has no columns to choose from; leave image-column and label-column empty")
    if not options.read_as:
        _check_labelled(name, kinds, layout)
        _check_archives(name, listing.root, archives)
    notes = check_lost_folders(name, listing, kinds, layout, options)
    raw = read_image_folder(name, listing, kinds, layout, options)
    raw.notes.extend(notes)
    return raw


def _of(kinds: dict[str, FileKind], *wanted: FileKind) -> list[str]:
    return [path for path, kind in kinds.items() if kind in wanted]


def _layout(name: str, pictures: list[str], tables: ImageTables | None, options: SourceOptions) -> Layout | None:
    """Return the images by class, if their folders are read that way; else None."""
    listed = tables.paths if tables is not None else []
    # Only a table has a column of splits.
    if not pictures or options.read_as == "tables" or (listed and options.split_column not in ("", "none")):
        return None
    try:
        layout = read_layout(name, pictures, options)
    except DataError as error:
        if not listed:
            raise
        raise DataError(f"{error}; or take the classes from {printable(listed[0])} with read-as=tables") from error
    classes = {label for files in layout.splits.values() for _, label in files} if layout is not None else set()
    if tables is not None and not options.read_as and len(classes) == 1:
        # A single folder of images beside a table is where the table's images lie.
        if not listed:
            raise DataError(
                f"{name}: all images lie in one class folder, and no table lists them: {tables.unread(pictures)}"
            )
        return None
    return layout


def _image_tables(listing: Listing, kinds: dict[str, FileKind], options: SourceOptions) -> ImageTables | None:
    files = _of(kinds, FileKind.TABLE)
    if not files:
        return None
    from psl_flower.data.table_files import ImageTables

    return ImageTables(listing.root, files, _resolver(listing.root, kinds), options.patterns)


def _arrays(listing: Listing, kinds: dict[str, FileKind], options: SourceOptions) -> ArrayFolder | None:
    files = _of(kinds, FileKind.ARRAY)
    if not files or options.read_as:
        return None
    from psl_flower.data.arrays import ArrayFolder

    return ArrayFolder(listing.root, files, options)


def _resolver(root: Path, kinds: dict[str, FileKind]) -> Resolve:
    """Return a finder of images that a table names: beside the table, in the dataset, or by its file name."""
    pictures = set(_of(kinds, FileKind.IMAGE, FileKind.PICTURE))
    by_name: dict[str, set[str]] = {}
    for path in pictures:
        name = posixpath.basename(path)
        for known in (name, posixpath.splitext(name)[0]):
            by_name.setdefault(known, set()).add(path)

    def resolve(text: str, beside: str = "") -> Path | None:
        text = text.strip().replace("\\", "/")
        if not text or posixpath.isabs(text):
            return Path(text) if text and os.path.isfile(text) else None
        for place in (beside, ""):
            path = posixpath.normpath(posixpath.join(place, text))
            if path in pictures:
                return root / path
        alike = by_name.get(text, ())
        return root / next(iter(alike)) if len(alike) == 1 else None

    return resolve


def _by_tables(
    name: str, listing: Listing, kinds: dict[str, FileKind], tables: ImageTables, options: SourceOptions
) -> RawDataset:
    from psl_flower.data.class_tables import declared_classes
    from psl_flower.data.hub import load_files
    from psl_flower.data.table_files import LARGE_ENDINGS
    from psl_flower.data.tables import read_tables

    tables.check(name)
    splits = tables.by_split(name)
    ending = PurePosixPath(tables.paths[0]).suffix.lower()
    if ending in LARGE_ENDINGS:
        declared_classes(name, [(path, listing.root / path) for paths in splits.values() for path in paths])
        files = {split: [str(listing.root / path) for path in paths] for split, paths in splits.items()}
        opened = load_files(name, ending.removeprefix("."), files, content_of(listing))
    else:
        opened = {split: tables.read(name, paths) for split, paths in splits.items()}
    named: set[Path] = set()
    raw = read_tables(name, opened, options, _resolver(listing.root, kinds), listing.left_out, named)
    raw.notes.extend(tables.notes)
    for path, kind in kinds.items():
        if path in tables.others:
            listing.left_out.add(_LISTS_NOTHING, path)
        elif kind is not FileKind.TABLE and listing.root / path not in named:
            listing.left_out.add(_NOT_NAMED if kind in (FileKind.IMAGE, FileKind.PICTURE) else kind, path)
    return raw


def _check_alone(name: str, stored: ArrayFolder, layout: Layout | None, listed: list[str]) -> None:
    """Refuse arrays that hold a dataset where images by class, or a table of images, do, too."""
    if layout is None and not listed:
        return
    other, way = ("images by class", "folders") if not listed else (printable(listed[0]), "tables")
    array = printable(stored.images[0].path)
    raise DataError(
        f"{name}: holds {other} and arrays with images and labels, such as {array}; choose with read-as="
        f"{way}, or leave the others out with leave-out"
    )


def _by_arrays(name: str, listing: Listing, kinds: dict[str, FileKind], stored: ArrayFolder) -> RawDataset:
    if not stored.broken:
        _check_archives(name, listing.root, _of(kinds, FileKind.ARCHIVE))
    raw = stored.read(name, listing.left_out)
    for path, kind in kinds.items():
        if kind is not FileKind.ARRAY:
            reason = (
                NO_CLASS
                if kind in (FileKind.IMAGE, FileKind.PICTURE)
                else _LISTS_NOTHING
                if kind is FileKind.TABLE
                else kind
            )
            listing.left_out.add(reason, path)
    return raw


def _by_library(name: str, listing: Listing, kinds: dict[str, FileKind], options: SourceOptions) -> RawDataset:
    """Return the tables that the `datasets` library reads by the rules of a dataset's card."""
    from psl_flower.data.hub import load_folder
    from psl_flower.data.shards import check_copies, check_shards
    from psl_flower.data.table_files import LARGE_ENDINGS
    from psl_flower.data.tables import read_tables

    opened, taken, notes = load_folder(name, listing.root, content_of(listing))
    left = {str(listing.root / path): path for path in kinds}
    hidden = [path for path in taken if path not in left]
    if hidden:
        raise DataError(f"{name}: {hidden[0]} is hidden or to be left out, and is a part of the dataset by its card")
    tables = sorted(left[path] for path in taken if kinds[left[path]] is FileKind.TABLE)
    check_shards(name, tables, {}, options.patterns)
    check_copies(name, listing.root, [path for path in tables if PurePosixPath(path).suffix.lower() in LARGE_ENDINGS])
    raw = read_tables(name, opened, options, _resolver(listing.root, kinds), listing.left_out, set())
    raw.notes.extend(notes)
    rows = sum(table.num_rows for table in opened.values())
    held = sum(_images_in(Path(path)) for path in taken)
    if held > rows:
        raise DataError(f"{name}: its archives hold {held} images, of which {rows} would be read; unpack them")
    for path, inside in left.items():
        if path not in taken:
            listing.left_out.add(kinds[inside], inside)
    return raw


def _has_card(listing: Listing) -> bool:
    """Check if the dataset's card assigns files to splits."""
    for file in listing.files:
        if file.path in _CARDS and file.size < _CARD_BYTES:
            text = (listing.root / file.path).read_bytes()
            head = text.split(b"\n---", 1)[0] if text.startswith(b"---") else b""
            return b"\nconfigs:" in head
    return False


def _check_labelled(name: str, kinds: dict[str, FileKind], layout: Layout) -> None:
    """Refuse images of a single class beside a file that may hold their classes, and is not read."""
    classes = {label for files in layout.splits.values() for _, label in files}
    unread = [path for path, kind in kinds.items() if kind is FileKind.OTHER and path.lower().endswith(_UNREAD_TABLES)]
    if len(classes) == 1 and unread:
        raise DataError(
            f"{name}: all images lie in one class folder, and {printable(unread[0])} is not read, in case it holds "
            "their classes: save these as csv, with a column of the images' paths and one of their classes"
        )


def _check_archives(name: str, root: Path, archives: Iterable[str]) -> None:
    """Refuse archives that may hold images beside those by class, which would be left out."""
    for path in archives:
        if path.lower().endswith(_TAR_ENDINGS) or is_image_name(posixpath.splitext(path)[0]) or _images_in(root / path):
            raise DataError(
                f"{name}: {printable(path)} may hold images, which would be left out: unpack it, or pass it by with "
                f"{leave_out_setting(path)}"
            )


def _count_images(archive: Path) -> str:
    count = _images_in(archive)
    return f" ({counted(count, 'image')})" if count else ""


def _images_in(archive: Path) -> int:
    """Return the number of images in a ZIP file, by their endings; 0 for other files."""
    if archive.suffix.lower() != ".zip":
        return 0
    try:
        with zipfile.ZipFile(archive) as content:
            return sum(is_image_name(name) for name in content.namelist())
    except (OSError, zipfile.BadZipFile):
        return 0


def _what_is_wrong(kinds: dict[str, FileKind], pictures: list[str], tables: ImageTables | None) -> str:
    if pictures:
        reason = f"{counted(len(pictures), 'image')}, such as {printable(pictures[0])}, in no class folder"
    elif kinds:
        reason = f"{counted(len(kinds), 'file')}, such as {printable(next(iter(kinds)))}"
    else:
        reason = "no file"
    return (
        "holds neither images in a folder for each class nor files of images with their classes, such as parquet, csv "
        f"or npz: it holds {reason}{f'; {tables.unread(pictures)}' if tables is not None else ''}"
    )
