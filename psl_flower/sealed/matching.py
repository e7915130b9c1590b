"""Match folders to the stores of a manifest by their headers, which are checked afterwards."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

from psl_flower.errors import StoreError, StoreExists, StoreNotFound
from psl_flower.patches.store import store_folder
from psl_flower.sealed.folder import Folder
from psl_flower.sealed.folders import open_folder
from psl_flower.sealed.header import STORE_AT
from psl_flower.sealed.manifest import Manifest, StoreEntry, segment_file
from psl_flower.system.files import DISK, Disk
from psl_flower.text import counted


def match(places: Sequence[str | Path], manifest: Manifest, disk: Disk = DISK) -> list[tuple[Folder, StoreEntry]]:
    """Return each folder with its entry; folders that do not name theirs take the remaining ones, in order.

    Raises
    ------
    StoreExists
        If more folders are given than there are stores, or one store twice.
    """
    folders = [open_folder(place, disk) for place in places]
    if len(folders) > len(manifest.stores):
        raise StoreExists(f"{counted(len(folders), 'store')} given, the manifest has {len(manifest.stores)}")
    by_name = {entry.store: entry for entry in manifest.stores}
    told: list[StoreEntry | None] = []
    found: dict[int, str] = {}
    for folder in folders:
        name, file = _name(folder, manifest)
        entry, where = by_name.get(name), f"{folder.name}/{file}"
        if entry is not None and entry.upper in found:
            raise StoreExists(
                f"the store of Upper {entry.upper} is given twice: {found[entry.upper]} and {where} are both of it; "
                "name each folder once, or put back the file that was exchanged"
            )
        if entry is not None:
            found[entry.upper] = where
        told.append(entry)
    left = iter([entry for entry in manifest.stores if entry.upper not in found])
    return [(folder, entry or next(left)) for folder, entry in zip(folders, told, strict=True)]


def match_all(places: Sequence[str | Path], manifest: Manifest, disk: Disk = DISK) -> list[tuple[Folder, StoreEntry]]:
    """Return all stores of a manifest with their folders, in the manifest's order.

    Raises
    ------
    StoreNotFound
        If one is missing.
    """
    matched = match(places, manifest, disk)
    here = {entry.upper for _, entry in matched}
    missing = [str(entry.upper) for entry in manifest.stores if entry.upper not in here]
    if missing:
        raise StoreNotFound(f"all stores are needed; missing: those of Upper {', '.join(missing)} (--store)")
    return sorted(matched, key=lambda pair: pair[1].upper)


def place_of(folder: Path, manifest: Manifest, upper: int) -> Path:
    """Return the place, beside a manifest, of an Upper's store; rotations that drop nodes leave gaps in the numbers.

    Raises
    ------
    StoreNotFound
        If it is not there.
    """
    wanted = next((entry.store for entry in manifest.stores if entry.upper == upper), None)
    usual = store_folder(folder, upper)
    for place in sorted(folder.glob("store-*"), key=lambda place: place != usual):
        with contextlib.closing(open_folder(place)) as found:
            if wanted is not None and place.is_dir() and _name(found, manifest)[0] == wanted:
                return place
    raise StoreNotFound(f"{folder} does not hold the store of Upper {upper}")


def _name(folder: Folder, manifest: Manifest) -> tuple[bytes, str]:
    """Return the store's name by most of its segments, so that one exchanged segment does not mislead, and one of them.

    Both are empty without segments.
    """
    files: dict[bytes, list[str]] = {}
    for segment in range(max((len(entry.segments) for entry in manifest.stores), default=0)):
        file = segment_file(manifest.epoch, segment)
        # Asked for by name: a web server may list nothing. Reading the store reports its faults.
        with contextlib.suppress(StoreError):
            files.setdefault(folder.ranges(file, [0], STORE_AT.stop)[0][STORE_AT], []).append(file)
    name, of_it = max(files.items(), key=lambda told: len(told[1]), default=(b"", [""]))
    return name, of_it[0]
