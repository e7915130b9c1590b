"""Whatever is done to what is signed is detected: the manifest and its age, label versions, the audit log."""

from __future__ import annotations

import shutil
from itertools import islice
from pathlib import Path

import msgspec
import pytest

from psl_flower import errors
from psl_flower.sealed import manifest as manifests
from psl_flower.sealed.audit import AuditLog
from psl_flower.sealed.identities import Identity, Role
from psl_flower.sealed.labels import LabelBook
from psl_flower.sealed.restore import restore
from psl_flower.sealed.seen import SeenBook
from tests.security.sealed_bytes import every_change, problems
from tests.vectors.sealed_support import ArraySource, World


def test_manifest_and_stores_of_different_generations(world: World, tmp_path: Path) -> None:
    old_manifest = (world.out / "manifest.psl").read_bytes()
    shutil.copytree(world.place(1), tmp_path / "old-store")
    world.seal(ArraySource(train=1, test=0, seed=9), append=True)
    new_manifest = (world.out / "manifest.psl").read_bytes()

    (world.out / "manifest.psl").write_bytes(old_manifest)
    assert problems(world) == ["StaleManifest", "StaleManifest"]
    (world.out / "manifest.psl").write_bytes(new_manifest)
    shutil.rmtree(world.place(1))
    shutil.copytree(tmp_path / "old-store", world.place(1))
    assert problems(world) == ["MixedGenerations", "StoreNotFound"]
    with pytest.raises(errors.MixedGenerations):
        list(
            restore(
                world.signed,
                world.places,
                world.restorers,
                [0],
                why="",
                log=AuditLog(world.out / "audit.log"),
            )
        )
    assert not (world.out / "audit.log").exists()


def test_old_forked_and_foreign_manifests_are_remembered(world: World, tmp_path: Path) -> None:
    seen = SeenBook(tmp_path / "seen")
    old = world.signed
    assert not seen.check(old)
    assert seen.check(old)
    world.seal(ArraySource(train=1, test=0, seed=9), append=True)
    seen.check(world.signed)
    with pytest.raises(errors.StaleManifest):
        seen.check(old)
    fork = msgspec.structs.replace(world.signed.manifest, created="later")
    with pytest.raises(errors.ForkedManifest):
        seen.check(manifests.sign(fork, world.owner))
    thief = Identity.generate(Role.OWNER, "thief")
    taken = msgspec.structs.replace(world.signed.manifest, owner=str(thief.public), generation=99)
    with pytest.raises(errors.WrongOwner):
        seen.check(manifests.sign(taken, thief))
    with pytest.raises(errors.WrongOwner):
        manifests.parse(manifests.sign(taken, thief).data, "it", world.owner.public)


def test_every_byte_of_the_manifest(original: World) -> None:
    data = original.signed.data
    expected = (
        errors.UnknownFormat,
        errors.UnknownVersion,
        errors.TruncatedFile,
        errors.TrailingBytes,
        errors.SignatureInvalid,
    )
    for changed in every_change(data):
        with pytest.raises(expected):
            manifests.parse(changed, "it", original.owner.public)
    # Which is which: magic, version, number of signatures, length, content, signature.
    for at, error in ((0, errors.UnknownFormat), (8, errors.UnknownVersion), (16, errors.SignatureInvalid)):
        with pytest.raises(error):
            manifests.parse(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :], "it")
    with pytest.raises(errors.SignatureInvalid):
        manifests.parse(data[:-1] + bytes([data[-1] ^ 1]), "it")
    with pytest.raises(errors.TruncatedFile):
        manifests.parse(data[:-1], "it")
    with pytest.raises(errors.TrailingBytes):
        manifests.parse(data + b"x", "it")


# All of it in the long run; the parts are signed as a whole, so that a part of the changes stands for all.
thorough = pytest.mark.parametrize("step", [11, pytest.param(1, marks=pytest.mark.slow)])


@thorough
def test_every_byte_of_a_label_version(world: World, step: int) -> None:
    path = world.out / "labels" / "000000.psl"
    whole, manifest = path.read_bytes(), world.signed.manifest
    for changed in islice(every_change(whole), 0, None, step):
        path.write_bytes(changed)
        with pytest.raises(errors.StoreError):
            LabelBook(world.out).read(manifest, world.lower)
    path.unlink()
    with pytest.raises(errors.LabelError):
        LabelBook(world.out).read(manifest, world.lower)


@thorough
def test_every_byte_of_the_audit_log_and_its_head(world: World, step: int) -> None:
    log = AuditLog(world.out / "audit.log")
    log.append(world.signed, world.restorers[:2], "restore", [1], "first")
    log.append(world.signed, world.restorers[:1], "restore", [2], "second")
    manifest = world.signed.manifest
    for path in (log.path, world.out / "audit.head"):
        whole = path.read_bytes()
        for changed in islice(every_change(whole), 0, None, step):
            path.write_bytes(changed)
            with pytest.raises(errors.AuditError):
                log.read(manifest)
        path.write_bytes(whole)
    lines = log.path.read_bytes().splitlines(keepends=True)
    for left, error in (
        (lines[:1], errors.AuditLogTruncated),
        ([], errors.AuditLogTruncated),
        (lines[1:], errors.AuditLogEdited),
        (lines[::-1], errors.AuditLogEdited),
        ([lines[0], lines[0]], errors.AuditLogEdited),
    ):
        log.path.write_bytes(b"".join(left))
        with pytest.raises(error):
            log.read(world.signed.manifest)
        with pytest.raises(error):  # nothing is released on top of a log that is not whole
            log.append(world.signed, world.restorers[:2], "restore", [3], "third")


def test_a_log_cut_together_with_its_head_is_noticed_by_who_saw_it(world: World, tmp_path: Path) -> None:
    log, seen = AuditLog(world.out / "audit.log"), SeenBook(tmp_path / "seen")
    seen.check(world.signed)
    log.append(world.signed, world.restorers[:2], "restore", [1], "first")
    old = (log.path.read_bytes(), (world.out / "audit.head").read_bytes())
    log.append(world.signed, world.restorers[:2], "restore", [2], "second")
    assert len(log.read(world.signed.manifest, seen)) == 2
    log.path.write_bytes(old[0])
    (world.out / "audit.head").write_bytes(old[1])
    assert len(log.read(world.signed.manifest)) == 1
    with pytest.raises(errors.AuditLogTruncated):
        log.read(world.signed.manifest, seen)
    # Nor at another place, by its first entry.
    moved = tmp_path / "moved" / "audit.log"
    moved.parent.mkdir()
    for file in (log.path, log.path.with_suffix(".head")):
        file.rename(moved.with_name(file.name))
    with pytest.raises(errors.AuditLogTruncated, match="1 entry; 2 were seen"):
        AuditLog(moved).read(world.signed.manifest, seen)
    # At the old place there should still be two.
    with pytest.raises(errors.AuditLogTruncated, match="0 entries; 2 were seen"):
        log.read(world.signed.manifest, seen)
    # Another log of this dataset, such as a node's, has nothing to do with it.
    other = AuditLog(tmp_path / "node" / "audit.log")
    other.append(world.signed, world.restorers[:1], "restore", [1], "its own first")
    assert len(other.read(world.signed.manifest, seen)) == 1


def test_what_an_earlier_version_remembered_of_a_log_still_counts(world: World, tmp_path: Path) -> None:
    """It knew logs by their paths alone."""
    log, seen = AuditLog(world.out / "audit.log"), SeenBook(tmp_path / "seen")
    seen.check(world.signed)
    log.append(world.signed, world.restorers[:2], "restore", [1], "first")
    book = msgspec.json.decode((tmp_path / "seen" / "seen.json").read_bytes())
    (known,) = book.values()
    for remembered in (2, 1):
        known["audit"] = {str(log.path): remembered}
        (tmp_path / "seen" / "seen.json").write_bytes(msgspec.json.encode(book))
        if remembered == 2:
            with pytest.raises(errors.AuditLogTruncated):
                log.read(world.signed.manifest, seen)
    # Read once, as long as it was, it is known by its first entry, too.
    assert len(log.read(world.signed.manifest, seen)) == 1
    log.append(world.signed, world.restorers[:2], "restore", [2], "second")
    assert len(log.read(world.signed.manifest, seen)) == 2
    (known,) = msgspec.json.decode((tmp_path / "seen" / "seen.json").read_bytes()).values()
    assert len(known["audit"]) == 2 and set(known["audit"].values()) == {2}
