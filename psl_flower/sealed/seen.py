"""Memory of the datasets that this user has seen: pins owners, and detects an older state.

A signature shows that the owner once signed a state, not that it is the latest. So the newest generation,
label version and length of the audit log seen for each dataset are remembered, by default with the rest of the user's
state (`psl_flower.system.state`). Nothing in it is secret.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import msgspec

from psl_flower.errors import (
    AuditLogEdited,
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
from psl_flower.text import counted

_FILE = "seen.json"
_LIMIT = 64 << 20


class _Seen(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    owner: str
    generation: int
    digest: bytes
    labels: int = 0
    labels_digest: bytes = b""
    audit: dict[str, int] = {}
    audit_last: dict[str, bytes] = {}


class Memory:
    """The locked record of what was seen: data read while it is held is as new as others remember, or newer."""

    def __init__(self, book: dict[str, _Seen], file: Path) -> None:
        self._book, self._file = book, file
        self.changed = False

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
        known = self._book.get(manifest.dataset.hex())
        if known is None:
            self._book[manifest.dataset.hex()] = _Seen(
                owner=manifest.owner, generation=manifest.generation, digest=signed.digest
            )
            self.changed = True
            return False
        if known.owner != manifest.owner:
            raise WrongOwner(
                f"{signed.where}: this dataset was signed by another owner before; if that is right, "
                f"remove its entry from {self._file}"
            )
        if manifest.generation < known.generation:
            raise StaleManifest(
                f"{signed.where}: generation {manifest.generation}, but {known.generation} was seen "
                "before; get the newest manifest from the owner (as the owner: put back the newest copy of this folder)"
            )
        if manifest.generation == known.generation and signed.digest != known.digest:
            raise ForkedManifest(
                f"{signed.where}: another generation {manifest.generation} was seen before; ask the owner"
            )
        if manifest.generation > known.generation:
            known.generation, known.digest = manifest.generation, signed.digest
            self.changed = True
        return True

    def check_unknown(self, dataset: bytes, where: str) -> None:
        """Check that no manifest of a dataset was seen; raises StaleManifest, if one was."""
        known = self._book.get(dataset.hex())
        if known is not None:
            raise StaleManifest(f"{where}: its manifest is missing; generation {known.generation} was seen before")

    def check_labels(self, dataset: bytes, digests: Sequence[bytes]) -> None:
        """Check the label versions' digests, oldest first, and remember the last.

        Raises
        ------
        LabelError
            If versions that were seen are missing or were replaced.
        """
        known = self._book.get(dataset.hex())
        if known is None:
            return
        if known.labels and (len(digests) < known.labels or digests[known.labels - 1] != known.labels_digest):
            raise LabelError(f"label version {known.labels - 1} was seen before and is missing or replaced")
        if len(digests) > known.labels:
            known.labels, known.labels_digest = len(digests), digests[-1]
            self.changed = True

    def check_audit(self, dataset: bytes, name: str, digests: Sequence[bytes]) -> None:
        """Check the digests of an audit log's entries, oldest first, and remember the last.

        A log is identified by its first entry, in any folder; and by its name, even if all of it is gone.

        Raises
        ------
        AuditLogTruncated
            If more entries were seen before.
        AuditLogEdited
            If an entry that was seen is replaced by another.
        """
        known = self._book.get(dataset.hex())
        if known is None:
            return
        names, count = [name, *(first.hex() for first in digests[:1])], len(digests)
        before = max(known.audit.get(name, 0) for name in names)
        if count < before:
            raise AuditLogTruncated(f"the audit log has {counted(count, 'entry')}; {before} were seen before")
        for name in names:
            last = known.audit_last.get(name)
            if last is not None and digests[known.audit[name] - 1] != last:
                raise AuditLogEdited(f"the audit log's entry {known.audit[name] - 1} is not the one seen before")
        if not digests:
            return
        now, last_now = dict.fromkeys(names, count), dict.fromkeys(names, digests[-1])
        if known.audit | now != known.audit or known.audit_last | last_now != known.audit_last:
            known.audit |= now
            known.audit_last |= last_now
            self.changed = True


class SeenBook:
    """The memory of one user, kept in a folder."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or state_home()
        self._file = self.folder / _FILE

    def prepare(self) -> None:
        """Check that it can be read and written, before starting work that it must record.

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

    @contextmanager
    def open(self) -> Iterator[Memory]:
        """Hold the memory against other processes.

        What is compared with it is read meanwhile: read before, it may be older than what another command has just
        written and remembered. No lock of a dataset's folder is taken meanwhile.

        Raises
        ------
        StaleManifest
            If the memory is damaged.
        StoreUnreachable
            If the disk refuses.
        """
        with self._locked():
            memory = Memory(self._load(), self._file)
            try:
                yield memory
            finally:
                if memory.changed:
                    self._save(memory._book)

    def check(self, signed: SignedManifest) -> bool:
        """Check and remember a manifest that nobody else changes; see `Memory.check`."""
        with self.open() as memory:
            return memory.check(signed)

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


@contextmanager
def opened(seen: SeenBook | None) -> Iterator[Memory]:
    """Hold a memory as `SeenBook.open` does; without a book, an empty memory that is discarded."""
    if seen is None:
        yield Memory({}, Path())
    else:
        with seen.open() as memory:
            yield memory


def _load(file: Path) -> dict[str, _Seen]:
    try:
        return msgspec.json.decode(read_file(file, limit=_LIMIT), type=dict[str, _Seen])
    except StoreNotFound:
        return {}
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise StaleManifest(f"{file} is damaged: what was seen before is not known; restore or remove it") from None


def _newest(known: _Seen, other: _Seen) -> _Seen:
    """Return the newest state of a dataset in two memories; if these name two owners, the first holds."""
    if known.owner != other.owner:
        return known
    manifest = max(known, other, key=lambda seen: seen.generation)
    labels = max(known, other, key=lambda seen: seen.labels)
    longest = {
        name: known if known.audit.get(name, 0) >= other.audit.get(name, 0) else other
        for name in (*known.audit, *other.audit)
    }
    return msgspec.structs.replace(
        manifest,
        labels=labels.labels,
        labels_digest=labels.labels_digest,
        audit={name: seen.audit[name] for name, seen in longest.items()},
        audit_last={name: seen.audit_last[name] for name, seen in longest.items() if name in seen.audit_last},
    )
