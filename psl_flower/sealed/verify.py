"""Checks stores, labels and audit log against a manifest, and names faults and missing parts. Needs no key."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from psl_flower.errors import (
    DigestTableDamaged,
    ForkedManifest,
    MixedGenerations,
    PslError,
    RecordDamaged,
    RecordDuplicated,
    RecordError,
    RecordForeign,
    RecordsReordered,
    RecordSwapped,
    SegmentDamaged,
    StaleManifest,
    StoreError,
)
from psl_flower.sealed import manifest as manifests
from psl_flower.sealed import merkle
from psl_flower.sealed.audit import FILE as AUDIT_FILE
from psl_flower.sealed.audit import AuditLog
from psl_flower.sealed.folder import Folder
from psl_flower.sealed.header import SegmentHeader
from psl_flower.sealed.labels import LabelBook
from psl_flower.sealed.manifest import Manifest, SegmentEntry, SignedManifest, StoreEntry, segment_file
from psl_flower.sealed.matching import match
from psl_flower.sealed.seen import SeenBook, opened
from psl_flower.sealed.segment import check_head, scan
from psl_flower.sealed.suite import equal
from psl_flower.text import OnProgress

_MAX_NAMED = 20


class Problem(msgspec.Struct, frozen=True):
    """One fault: the error's class, and the message."""

    error: str
    message: str


class StoreReport(msgspec.Struct, frozen=True):
    """One store: its place and owner, the records checked, and its faults."""

    place: str
    upper: int
    records: int
    problems: list[Problem]
    remains: list[str]
    strangers: list[str]


class ListReport(msgspec.Struct, frozen=True):
    """Labels or audit log: their place, the number of versions or entries, and their faults."""

    place: str
    count: int
    problems: list[Problem]


class Report(msgspec.Struct, frozen=True):
    """What was given: stores, labels and audit log.

    `missing` are Uppers whose stores were not given. `labels` and `audit_log` are None if not found: the names
    of those that should be there are in `absent`.
    """

    dataset: str
    owner: str
    epoch: int
    generation: int
    num_samples: int
    stores: list[StoreReport]
    missing: list[int]
    labels: ListReport | None
    audit_log: ListReport | None
    absent: list[str]

    @property
    def ok(self) -> bool:
        """Whether no fault was found."""
        lists = [part.problems for part in (self.labels, self.audit_log) if part is not None]
        return not any([*lists, *(store.problems for store in self.stores)])

    @property
    def complete(self) -> bool:
        """Whether all that the manifest commits to was given."""
        return not self.missing and not self.absent


def verify(
    places: Sequence[str | Path],
    signed: SignedManifest,
    progress: OnProgress | None = None,
    *,
    folder: Path | None = None,
    seen: SeenBook | None = None,
) -> Report:
    """Check every byte of the stores given; faults are reported, not raised.

    Labels and audit log, compared with what was `seen`, are in `folder`; they are not checked without it.

    Raises
    ------
    StoreExists
        If a store is given twice, or there are too many.
    """
    manifest = signed.manifest
    matched = match(places, manifest)
    reports = [_verify_store(folder, entry, signed, matched, progress) for folder, entry in matched]
    here = {entry.upper for _, entry in matched}
    labels = _verify_labels(folder, manifest, seen) if folder is not None else None
    audit_log = _verify_audit_log(folder, manifest, seen) if folder is not None else None
    absent = ["the labels"] if labels is None and manifest.labels_version >= 0 else []
    if audit_log is None and manifest.epoch > 1:  # the rotation to this epoch was logged
        absent.append("the audit log")
    return Report(
        dataset=manifest.dataset.hex(),
        owner=signed.owner.fingerprint,
        epoch=manifest.epoch,
        generation=manifest.generation,
        num_samples=manifest.num_samples,
        stores=reports,
        missing=[entry.upper for entry in manifest.stores if entry.upper not in here],
        labels=labels,
        audit_log=audit_log,
        absent=absent,
    )


def _verify_labels(folder: Path, manifest: Manifest, seen: SeenBook | None) -> ListReport | None:
    book = LabelBook(folder)

    def check() -> int:
        with opened(seen) as memory:
            digests = book.digests(manifest)
            memory.check_labels(manifest.dataset, digests)
        return len(digests)

    return _list_report(book.folder, check) if os.path.lexists(book.folder) else None


def _verify_audit_log(folder: Path, manifest: Manifest, seen: SeenBook | None) -> ListReport | None:
    log = AuditLog(folder / AUDIT_FILE)
    report = _list_report(log.path, lambda: len(log.read(manifest, seen)))
    return report if report.count or report.problems or os.path.lexists(log.path) else None


def _list_report(path: Path, check: Callable[[], int]) -> ListReport:
    try:
        return ListReport(str(path), check(), [])
    except PslError as error:
        return ListReport(str(path), 0, [Problem(type(error).__name__, str(error))])


def check_copy(folder: Folder, signed: SignedManifest) -> None:
    """Check that the manifest's copy in a store is this manifest.

    Raises
    ------
    StaleManifest
        If the store has a newer one.
    MixedGenerations
        If the store has an older one.
    ForkedManifest
        If it has another one of the same generation.
    StoreError
        If the copy is missing or damaged.
    """
    copy = manifests.load_copy(folder, signed.owner)
    have, want = copy.manifest.generation, signed.manifest.generation
    if have > want:
        raise StaleManifest(f"{folder.name} is of generation {have}, newer than the manifest's {want}")
    if have < want:
        raise MixedGenerations(f"{folder.name} is of generation {have}, the manifest of {want}; send the store again")
    if copy.digest != signed.digest:
        raise ForkedManifest(f"{folder.name} holds another manifest of generation {have}")


def _verify_store(
    folder: Folder,
    entry: StoreEntry,
    signed: SignedManifest,
    matched: list[tuple[Folder, StoreEntry]],
    progress: OnProgress | None,
) -> StoreReport:
    manifest, problems, records = signed.manifest, [], 0
    try:
        check_copy(folder, signed)
    except PslError as error:
        problems.append(error)
    for part in entry.segments:
        try:
            header, _ = check_head(folder, manifest, entry, part)
            problems += check_records(folder, manifest, part, header, matched)
            records += part.count
        except StoreError as error:
            problems.append(error)
        if progress is not None:
            progress(f"Upper {entry.upper}", records, manifest.num_samples)
    names: set[str] = set()
    try:
        names.update(folder.list())
    except StoreError as error:
        problems.append(error)
    old = {file for remains in manifest.remains for file in remains.files}
    known = {manifests.FILE, *(segment_file(manifest.epoch, part.segment) for part in entry.segments)}
    folder.close()
    return StoreReport(
        place=folder.name,
        upper=entry.upper,
        records=records,
        problems=[Problem(type(error).__name__, str(error)) for error in problems],
        remains=sorted(names & old),
        strangers=sorted(names - old - known),
    )


def check_records(
    folder: Folder,
    manifest: Manifest,
    part: SegmentEntry,
    header: SegmentHeader,
    matched: Sequence[tuple[Folder, StoreEntry]] = (),
) -> list[StoreError]:
    """Return the faults of the records of a segment whose header was checked."""
    where = f"{folder.name}/{segment_file(manifest.epoch, part.segment)}"
    leaves, table = [], []
    for record, listed in scan(folder, manifest, part, header):
        leaves.append(merkle.leaf(record))
        table.append(listed)
    if equal(merkle.root(leaves), part.records):
        if leaves != table:
            return [DigestTableDamaged(f"{where}: the digests at the end were changed; the records are whole")]
        return []
    if not equal(merkle.root(table), part.records):
        return [SegmentDamaged(f"{where}: records and digests were changed; fetch the segment again")]
    wrong = [slot for slot, found in enumerate(leaves) if found != table[slot]]
    slot_of = {found: slot for slot, found in enumerate(table)}
    comes_from = {slot: slot_of.get(leaves[slot]) for slot in wrong}
    if sorted(wrong) == sorted(slot for slot in comes_from.values() if slot is not None):
        if len(wrong) == 2:
            return [RecordSwapped(f"{where}: records {wrong[0]} and {wrong[1]} changed places")]
        return [RecordsReordered(f"{where}: {len(wrong)} records changed places, the first is {wrong[0]}")]
    foreign = _foreign({leaves[slot] for slot in wrong if comes_from[slot] is None}, manifest, matched)
    errors: list[StoreError] = [
        _name(slot, comes_from[slot], foreign.get(leaves[slot]), where) for slot in wrong[:_MAX_NAMED]
    ]
    if len(wrong) > _MAX_NAMED:
        errors.append(RecordDamaged(f"{where}: {len(wrong) - _MAX_NAMED} more records are not what was stored"))
    return errors


def _name(slot: int, comes_from: int | None, foreign: str | None, where: str) -> RecordError:
    if comes_from is not None:
        return RecordDuplicated(f"{where}: record {slot} is a copy of record {comes_from}")
    if foreign is not None:
        return RecordForeign(f"{where}: record {slot} comes from {foreign}")
    return RecordDamaged(f"{where}: record {slot} was changed")


def _foreign(leaves: set[bytes], manifest: Manifest, matched: Sequence[tuple[Folder, StoreEntry]]) -> dict[bytes, str]:
    """Look for records in the other segments that were given."""
    found: dict[bytes, str] = {}
    for other, entry in matched if leaves else ():
        for part in entry.segments:
            try:
                header, _ = check_head(other, manifest, entry, part)
            except StoreError:
                continue
            name = f"{other.name}/{segment_file(manifest.epoch, part.segment)}"
            for slot, (_, listed) in enumerate(scan(other, manifest, part, header)):
                if listed in leaves:
                    found[listed] = f"{name}, record {slot}"
    return found
