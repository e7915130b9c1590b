"""What this user has seen before: pins owners, and detects that somebody shows an older state.

A signature tells that the owner once said something, not that it is the latest. So the newest generation,
label version and length of the audit log seen for each dataset are remembered, by default with the rest of the user's
state (`psl_flower.system.state`). Nothing in it is secret.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import msgspec

from psl_flower.errors import (
    AuditLogTruncated,
    ForkedManifest,
    LabelError,
    StaleManifest,
    StoreNotFound,
    StoreUnreachable,
    WrongOwner,
)
from psl_flower.sealed.manifest import LOCK_FILE, SignedManifest
from psl_flower.system.files import DISK, disk_errors, locked, read_file, write_file
from psl_flower.system.state import VARIABLE, note_moved, state_home

_FILE = "seen.json"
_LIMIT = 64 << 20


class _Seen(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    owner: str
    generation: int
    digest: bytes
    labels: int = 0
    labels_digest: bytes = b""
    audit: dict[str, int] = {}


class SeenBook:
    """The memory of one user.

    Parameters
    ----------
    folder : Path, optional
        Where it is kept.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or state_home()
        self._file = self.folder / _FILE

    def prepare(self) -> None:
        """Check that it can be read and written, before work is done that it has to remember.

        Raises
        ------
        StoreError
            If it cannot, as where the home folder is not writable.
        """
        try:
            with self._locked():
                self._save(self._load())
        except StoreUnreachable as error:
            raise StoreUnreachable(
                f"{error}; what was seen of datasets is remembered there: set PSL_STATE to a folder that can be written"
            ) from error

    def check(self, signed: SignedManifest) -> bool:
        """Check a manifest against what was seen, and remember it. Return whether its owner was known.

        Raises
        ------
        WrongOwner
            If the dataset had another owner.
        StaleManifest
            If a newer generation was seen.
        ForkedManifest
            If another manifest of this generation was seen.
        """
        manifest = signed.manifest
        with self._locked():
            book = self._load()
            known = book.get(manifest.dataset.hex())
            if known is None:
                book[manifest.dataset.hex()] = _Seen(
                    owner=manifest.owner, generation=manifest.generation, digest=signed.digest
                )
                self._save(book)
                return False
            if known.owner != manifest.owner:
                raise WrongOwner(
                    f"{signed.where}: this dataset was signed by another owner before; if that is right, "
                    f"remove its entry from {self._file}"
                )
            if manifest.generation < known.generation:
                raise StaleManifest(
                    f"{signed.where}: generation {manifest.generation}, but {known.generation} was seen "
                    "before; get the newest manifest from the owner"
                )
            if manifest.generation == known.generation and signed.digest != known.digest:
                raise ForkedManifest(
                    f"{signed.where}: another generation {manifest.generation} was seen before; ask the owner"
                )
            if manifest.generation > known.generation:
                known.generation, known.digest = manifest.generation, signed.digest
                self._save(book)
            return True

    def check_labels(self, dataset: bytes, digests: list[bytes]) -> None:
        """Check the label versions' digests, oldest first, and remember the last.

        Raises
        ------
        LabelError
            If versions that were seen are missing or were replaced.
        """
        with self._locked():
            book = self._load()
            known = book.get(dataset.hex())
            if known is None or not digests:
                return
            if known.labels and (len(digests) < known.labels or digests[known.labels - 1] != known.labels_digest):
                raise LabelError(f"label version {known.labels - 1} was seen before and is missing or replaced")
            if len(digests) > known.labels:
                known.labels, known.labels_digest = len(digests), digests[-1]
                self._save(book)

    def check_audit(self, dataset: bytes, names: Sequence[str], count: int) -> None:
        """Check the length of an audit log, known by any of its names, and remember it under all of them.

        Raises
        ------
        AuditLogTruncated
            If more entries were seen before.
        """
        with self._locked():
            book = self._load()
            known = book.get(dataset.hex())
            if known is None:
                return
            before = max(known.audit.get(name, 0) for name in names)
            if count < before:
                raise AuditLogTruncated(f"the audit log has {count} entries; {before} were seen before")
            now = dict.fromkeys(names, count)
            if known.audit | now != known.audit:
                known.audit |= now
                self._save(book)

    def absorb(self, folder: Path) -> None:
        """Take over what an earlier version remembered in another folder, and remove it there.

        Raises
        ------
        StaleManifest
            If it is damaged.
        """
        if not (folder / _FILE).exists():
            return
        with self._locked():
            book = self._load()
            for dataset, old in _load(folder / _FILE).items():
                book[dataset] = _newest(book.get(dataset, old), old)
            self._save(book)
            (folder / _FILE).unlink(missing_ok=True)
        note_moved(folder, self.folder)

    def _locked(self) -> AbstractContextManager[None]:
        with disk_errors(self.folder, "made", advice=f"name another folder with {VARIABLE}"):
            DISK.make_folder(self.folder)
        return locked(self.folder / LOCK_FILE)

    def _load(self) -> dict[str, _Seen]:
        return _load(self._file)

    def _save(self, book: dict[str, _Seen]) -> None:
        write_file(self._file, msgspec.json.encode(book), mode=0o600)


def _load(file: Path) -> dict[str, _Seen]:
    try:
        return msgspec.json.decode(read_file(file, limit=_LIMIT), type=dict[str, _Seen])
    except StoreNotFound:
        return {}
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise StaleManifest(f"{file} is damaged: what was seen before is not known; restore or remove it") from None


def _newest(known: _Seen, other: _Seen) -> _Seen:
    """Return the newest state of a dataset in two memories; where these name two owners, the first holds."""
    if known.owner != other.owner:
        return known
    manifest = max(known, other, key=lambda seen: seen.generation)
    labels = max(known, other, key=lambda seen: seen.labels)
    return msgspec.structs.replace(
        manifest,
        labels=labels.labels,
        labels_digest=labels.labels_digest,
        audit={name: max(known.audit.get(name, 0), other.audit.get(name, 0)) for name in (*known.audit, *other.audit)},
    )
