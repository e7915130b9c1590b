"""The newest state of a dataset's folder: manifest, labels and audit log, held to what was seen of all three.

Every command that writes reads the folder this way first, so that nothing is built on an older copy that somebody has
put back; and once more at its end, so that what it wrote is remembered.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from psl_flower.sealed import manifest as manifests
from psl_flower.sealed.audit import FILE as AUDIT_FILE
from psl_flower.sealed.audit import AuditLog
from psl_flower.sealed.identities import Identity, PublicIdentity
from psl_flower.sealed.labels import FOLDER, LabelBook, Labels
from psl_flower.sealed.manifest import SignedManifest
from psl_flower.sealed.seen import SeenBook, opened


@dataclass(frozen=True, slots=True)
class NewestDataset:
    """A folder's manifest, whether its owner was known before, and the labels, if a reader was named."""

    signed: SignedManifest
    known: bool
    labels: Labels | None


def read_newest_dataset(
    path: Path,
    seen: SeenBook | None,
    owner: PublicIdentity | None = None,
    *,
    reader: Identity | None = None,
    whole: bool = True,
) -> NewestDataset:
    """Read a folder, compare it with what was seen, and remember it, in one step.

    `path` is the folder, or the manifest in it. `owner` is trusted, and `reader` reads the labels. With `whole` these
    must exist, as in the owner's folder; otherwise a manifest alone will do.

    Raises
    ------
    WrongOwner, StaleManifest, ForkedManifest
        If the manifest is not the owner's newest that was seen.
    LabelError, RevokedRestorer, UnknownRestorer
        If labels that were seen are missing or replaced, or the reader is not allowed to read them.
    AuditError
        If the audit log is not one, or is not that which was seen.
    """
    folder = path if path.is_dir() else path.parent
    with opened(seen) as memory:
        signed = manifests.load(path, owner)
        manifest, book = signed.manifest, LabelBook(folder)
        known = memory.check(signed)
        labels = None
        if whole or (folder / FOLDER).is_dir():
            labels = book.read(manifest, reader) if reader is not None else None
            digests = labels.digests if labels is not None else book.digests(manifest)
            memory.check_labels(manifest.dataset, digests)
        AuditLog(folder / AUDIT_FILE).check(manifest, memory)
    return NewestDataset(signed, known, labels)
