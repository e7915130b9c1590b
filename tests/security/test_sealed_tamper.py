"""Whatever is done to a sealed dataset's files is detected, each kind of change by an error of its own.

The dataset is small enough to try every byte and every length. `verify` needs no key; what it reports is
checked against where the change was made. Readers with keys must refuse as well.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import msgspec
import numpy as np
import pytest

from psl_flower import errors
from psl_flower.errors import PslError
from psl_flower.sealed import envelope, remote
from psl_flower.sealed import manifest as manifests
from psl_flower.sealed.audit import AuditLog
from psl_flower.sealed.bundle import pack, receive
from psl_flower.sealed.disk import Disk
from psl_flower.sealed.header import SegmentHeader
from psl_flower.sealed.keys import Identity, PublicIdentity, Role
from psl_flower.sealed.labels import LabelBook
from psl_flower.sealed.restore import restore
from psl_flower.sealed.rotate import Changes, rotate
from psl_flower.sealed.seen import SeenBook
from psl_flower.sealed.shares import open_root
from psl_flower.sealed.store import SealedStore
from psl_flower.sealed.suite import digest
from psl_flower.sealed.verify import verify
from tests.vectors.sealed_support import ArraySource, World

SOURCE = ArraySource(train=4, test=1)
SEGMENT = "epoch-0001-segment-000000.psl"
HEADER, RECORD, COUNT = 128 + 2 * 4 + 32, 16 + 12 + 2 * 4 + 16, 5
TABLE = HEADER + COUNT * RECORD
# Where a byte is changed (offset in the header) -> what `verify` calls it.
HEADER_ERRORS = {
    range(0, 8): "UnknownFormat",
    range(8, 12): "UnknownVersion",
    range(12, 16): "HeaderDamaged",
    range(16, 32): "WrongDataset",
    range(32, 48): "WrongStore",
    range(48, 52): "WrongEpoch",
    range(52, 60): "WrongSegment",
    range(60, 64): "WrongStore",
    range(64, 72): "WrongSegment",
    range(72, 128): "HeaderDamaged",
    range(128, 136): "WrongStore",
    range(136, 168): "HeaderDamaged",
}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> World:
    world = World(tmp_path_factory.mktemp("sealed") / "out")
    world.seal(SOURCE)
    return world


@pytest.fixture
def world(original: World, tmp_path: Path) -> World:
    """A copy to be damaged."""
    shutil.copytree(original.out, tmp_path / "out")
    return original.at(tmp_path / "out")


def problems(world: World) -> list[str]:
    return [p.error for store in verify(world.places, world.signed).stores for p in store.problems]


def reader_refuses(world: World, upper: int = 0) -> None:
    with pytest.raises(PslError):
        world.open(upper).read(np.arange(COUNT))


def swap(data: bytes, a: int, b: int) -> bytes:
    """Exchange two records, digests at the end left as they are."""
    parts = records(data)
    parts[a], parts[b] = parts[b], parts[a]
    return data[:HEADER] + b"".join(parts) + data[TABLE:]


def records(data: bytes) -> list[bytes]:
    return [data[HEADER + k * RECORD : HEADER + (k + 1) * RECORD] for k in range(COUNT)]


def test_every_byte_of_a_segment(world: World) -> None:
    path = world.place(0) / SEGMENT
    whole = path.read_bytes()
    assert len(whole) == TABLE + COUNT * 32
    for at in range(len(whole)):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << (at % 8)
        path.write_bytes(damaged)
        expected = {next((e for span, e in HEADER_ERRORS.items() if at in span), "")}
        if at >= HEADER:
            expected = {"RecordDamaged"} if at < TABLE else {"DigestTableDamaged"}
        elif 128 <= at < 136:
            expected |= {"HeaderDamaged"}  # positions that do not ascend are no positions
        found = problems(world)
        assert len(found) == 1 and found[0] in expected, (at, found)
        if at < TABLE:
            reader_refuses(world)
        else:
            world.open(0).read(np.arange(COUNT))  # the digests are for `verify` alone


def test_every_truncation_and_extension_of_a_segment(world: World) -> None:
    path = world.place(0) / SEGMENT
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert problems(world) == ["TruncatedFile"], length
        reader_refuses(world)
    for more in (1, 31, 32, RECORD, RECORD + 32):
        path.write_bytes(whole + bytes(more))
        assert problems(world) == ["TrailingBytes"]
        reader_refuses(world)
    path.unlink()
    assert problems(world) == ["StoreNotFound"]
    reader_refuses(world)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda data: swap(data, 0, 3), ["RecordSwapped"]),
        (lambda data: swap(swap(data, 0, 1), 1, 2), ["RecordsReordered"]),
        (
            lambda data: data[: HEADER + RECORD] + data[HEADER : HEADER + RECORD] + data[HEADER + 2 * RECORD :],
            ["RecordDuplicated"],
        ),
        (lambda data: data[:HEADER] + bytes(RECORD) + data[HEADER + RECORD : -1] + b"\0", ["SegmentDamaged"]),
    ],
)
def test_moved_records(world: World, change: Callable[[bytes], bytes], expected: list[str]) -> None:
    path = world.place(0) / SEGMENT
    path.write_bytes(change(path.read_bytes()))
    assert problems(world) == expected
    reader_refuses(world)


def test_moved_records_with_their_digests(world: World) -> None:
    """Whoever moves the digests along leaves a root that was not signed."""
    path = world.place(0) / SEGMENT
    data = swap(path.read_bytes(), 0, 1)
    path.write_bytes(data[:TABLE] + data[TABLE + 32 : TABLE + 64] + data[TABLE : TABLE + 32] + data[TABLE + 64 :])
    assert problems(world) == ["SegmentDamaged"]
    reader_refuses(world)


def test_reader_names_what_it_finds(world: World) -> None:
    path = world.place(0) / SEGMENT
    whole = path.read_bytes()
    foreign = records((world.place(1) / SEGMENT).read_bytes())[0]
    damaged_id = bytes([records(whole)[0][0] ^ 1]) + records(whole)[0][1:]
    for first, error in (
        (records(whole)[1], errors.RecordDuplicated),
        (foreign, errors.RecordForeign),
        (records(whole)[0][:-1] + bytes([records(whole)[0][-1] ^ 1]), errors.RecordDamaged),
        (damaged_id, errors.RecordDamaged),
    ):
        path.write_bytes(whole[:HEADER] + first + whole[HEADER + RECORD :])
        with pytest.raises(error):
            world.open(0).read(np.arange(COUNT))


def test_record_of_another_store(world: World) -> None:
    path, other = world.place(0) / SEGMENT, world.place(1) / SEGMENT
    data = path.read_bytes()
    path.write_bytes(data[:HEADER] + records(other.read_bytes())[2] + data[HEADER + RECORD :])
    assert problems(world) == ["RecordForeign"]
    reader_refuses(world)


def test_record_ids_moved_along_do_not_help(world: World) -> None:
    """A record put in another's place under the other's id fails by its associated data."""
    path = world.place(0) / SEGMENT
    data = path.read_bytes()
    first, second = records(data)[:2]
    path.write_bytes(data[:HEADER] + first[:16] + second[16:] + data[HEADER + RECORD :])
    with pytest.raises(errors.RecordDamaged):
        world.open(0).read(np.arange(COUNT))


def exchanged(world: World, other: World, upper: int = 0) -> None:
    shutil.copy(other.place(upper) / SEGMENT, world.place(0) / SEGMENT)


def test_segments_of_elsewhere(world: World, tmp_path: Path) -> None:
    exchanged(world, world, upper=1)
    with pytest.raises(errors.WrongStore):
        world.open(0)
    other = world.at(tmp_path / "other")
    other.seal(SOURCE)
    exchanged(world, other)
    assert problems(world) == ["WrongDataset"]
    with pytest.raises(errors.WrongDataset):
        world.open(0)


def test_segments_of_another_generation_place_and_epoch(world: World) -> None:
    before = (world.place(0) / SEGMENT).read_bytes()
    world.seal(ArraySource(train=1, test=0, seed=9), append=True)
    added = world.place(0) / "epoch-0001-segment-000001.psl"
    appended = added.read_bytes()
    added.write_bytes(before)
    assert problems(world) == ["WrongSegment"]
    added.write_bytes(appended)
    rotate(world.out, world.owner, world.places, Changes())
    (world.place(0) / "epoch-0002-segment-000000.psl").write_bytes(before)
    assert problems(world) == ["WrongEpoch"]
    with pytest.raises(errors.WrongEpoch):
        world.open(0)


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


def every_change(data: bytes) -> Iterator[bytes]:
    """Yield the data with every byte changed, of every shorter length, and longer."""
    for at in range(len(data)):
        yield data[:at] + bytes([data[at] ^ (1 << (at % 8))]) + data[at + 1 :]
    for length in range(len(data)):
        yield data[:length]
    yield data + b"\0"
    yield data + b"\n"
    yield data + data


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


def test_bundles(world: World, tmp_path: Path) -> None:
    entry, node = world.signed.manifest.stores[0], world.nodes[0]
    bundle, target = tmp_path / "b.pslbundle", tmp_path / "received"
    pack(world.place(0), entry, world.signed, bundle)
    whole = bundle.read_bytes()
    head = 8 + 2 + 2 + 16 + 16 + 4 + 4 + 80
    for at in [*range(head), *range(head, len(whole), 29)]:
        bundle.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        error = errors.BundleDamaged if at >= head else errors.WrongNodeKey if at >= 12 else errors.StoreError
        with pytest.raises(error):
            receive(bundle, node, target, owner=world.owner.public)
    for length in [*range(0, head + 40, 3), *range(head, len(whole), 61)]:
        bundle.write_bytes(whole[:length])
        with pytest.raises((errors.BundleDamaged, errors.UnknownFormat)):
            receive(bundle, node, target, owner=world.owner.public)
    bundle.write_bytes(whole + b"x")
    with pytest.raises(errors.BundleDamaged):
        receive(bundle, node, target, owner=world.owner.public)
    bundle.write_bytes(whole)
    with pytest.raises(errors.WrongNodeKey):
        receive(bundle, world.nodes[1], target, owner=world.owner.public)
    with pytest.raises(errors.WrongOwner):
        receive(bundle, node, target, owner=Identity.generate(Role.OWNER, "x").public)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b.pslbundle", "out"]  # nothing half is left
    receive(bundle, node, target, owner=world.owner.public)
    assert (SealedStore.open(target, node).read(np.arange(5)) == world.open(0).read(np.arange(5))).all()
    with pytest.raises(errors.StoreExists):
        receive(bundle, node, target, owner=world.owner.public)


def test_a_node_key_opens_exactly_one_store(world: World) -> None:
    for node in [*world.nodes, Identity.generate(Role.NODE, "stranger")]:
        opened = []
        for upper in range(2):
            try:
                SealedStore.open(world.place(upper), node, owner=world.owner.public).close()
                opened.append(upper)
            except (errors.WrongNodeKey, errors.WrongStore):
                continue
        assert opened == ([world.nodes.index(node)] if node in world.nodes else [])


def test_a_foreign_node_key_cannot_unwrap(world: World) -> None:
    """Naming another node in the manifest, even signed by the owner, opens nothing."""
    stranger = Identity.generate(Role.NODE, "stranger")
    manifest = world.signed.manifest
    entry = msgspec.structs.replace(manifest.stores[0], node=str(stranger.public))
    forged = manifests.sign(msgspec.structs.replace(manifest, stores=(entry, manifest.stores[1])), world.owner)
    with pytest.raises(errors.WrongNodeKey):
        SealedStore.open(world.place(0), stranger, manifest=forged)


def test_a_wrong_data_key_is_known_before_it_is_used(world: World) -> None:
    manifest = world.signed.manifest
    entry = msgspec.structs.replace(manifest.stores[0], key_commitment=bytes(32))
    forged = manifests.sign(msgspec.structs.replace(manifest, stores=(entry, manifest.stores[1])), world.owner)
    with pytest.raises(errors.KeyMismatch):
        SealedStore.open(world.place(0), world.nodes[0], manifest=forged)


def test_a_header_that_the_key_did_not_make(world: World) -> None:
    """Even an owner's signature over a header does not replace its MAC: it commits the header to the key."""
    path, manifest = world.place(0) / SEGMENT, world.signed.manifest
    data = bytearray(path.read_bytes())
    data[HEADER - 1] ^= 1
    path.write_bytes(data)
    part = msgspec.structs.replace(manifest.stores[0].segments[0], header=digest(bytes(data[:HEADER])))
    entry = msgspec.structs.replace(manifest.stores[0], segments=(part,))
    forged = manifests.sign(msgspec.structs.replace(manifest, stores=(entry, manifest.stores[1])), world.owner)
    with pytest.raises(errors.KeyMismatch, match="header"):
        SealedStore.open(world.place(0), world.nodes[0], manifest=forged)


def test_nothing_is_released_that_cannot_be_logged(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(Disk):
        def write(self, descriptor: int, data: bytes, path: Path) -> None:
            raise errors.StoreUnreachable("the disk is full")

    def released(*_: object) -> None:
        raise AssertionError("a record was read before it was logged")

    monkeypatch.setattr(SealedStore, "read", released)
    log = AuditLog(world.out / "audit.log", Full())
    with pytest.raises(errors.StoreUnreachable):
        restore(world.signed, world.places, world.restorers, [0], why="", log=log)
    request = remote.authorise(world.signed, world.restorers[:2], [0], why="")
    with pytest.raises(errors.StoreUnreachable):
        remote.answer(request, world.signed, world.open(0), world.nodes[0], log)
    assert not log.path.exists()


def test_shares(world: World) -> None:
    manifest, (alice, bob, carol) = world.signed.manifest, world.restorers
    root = open_root(manifest, [alice, bob])
    for chosen in ([bob, carol], [carol, alice], [alice, bob, carol], [alice, bob, alice]):
        assert open_root(manifest, chosen).reveal() == root.reveal()
    for few in ([alice], [alice, alice], []):
        with pytest.raises(errors.TooFewShares):
            open_root(manifest, few)
    with pytest.raises(errors.UnknownRestorer):
        open_root(manifest, [alice, Identity.generate(Role.RESTORER, "eve")])
    with pytest.raises(errors.WrongRole):
        open_root(manifest, [alice, world.owner])


def test_wrong_shares_are_named(world: World) -> None:
    manifest, (alice, bob, _) = world.signed.manifest, world.restorers
    members = manifest.restorers
    box = members[0].share
    for share, error in (
        (box[:40] + bytes([box[40] ^ 1]) + box[41:], errors.WrongShare),
        (members[1].share, errors.WrongShare),
        (alice.public.seal(bytes(32), b""), errors.WrongShare),
    ):
        changed = (msgspec.structs.replace(members[0], share=share), *members[1:])
        with pytest.raises(error, match="alice"):
            open_root(msgspec.structs.replace(manifest, restorers=changed), [alice, bob])
    moved = (msgspec.structs.replace(members[0], commitment=bytes(32)), *members[1:])
    with pytest.raises(errors.WrongShare, match="alice"):
        open_root(msgspec.structs.replace(manifest, restorers=moved), [alice, bob])


def test_a_dropped_restorer_is_refused(world: World) -> None:
    rotate(world.out, world.owner, world.places, Changes(drop_restorers=("bob",)))
    with pytest.raises(errors.RevokedRestorer, match="bob"):
        open_root(world.signed.manifest, world.restorers[:2])
    with pytest.raises(errors.LabelError):
        LabelBook(world.out).relabel(world.signed.manifest, world.restorers[1], [(0, 1)], "")
    open_root(world.signed.manifest, [world.restorers[0], world.restorers[2]])


@pytest.mark.parametrize(
    "point",
    [
        bytes(32),
        b"\1" + bytes(31),
        bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
        bytes.fromhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
        bytes.fromhex("ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
        bytes.fromhex("edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
        bytes.fromhex("eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
    ],
)
def test_low_order_x25519_points(world: World, point: bytes) -> None:
    good = world.nodes[0].public
    with pytest.raises(errors.WeakKey):
        PublicIdentity(Role.NODE, good.sign_key, point)
    # As the encapsulated key of a box it opens nothing either.
    entry = world.signed.manifest.stores[0]
    forged = msgspec.structs.replace(entry, key_for_node=point + entry.key_for_node[32:])
    manifest = msgspec.structs.replace(world.signed.manifest, stores=(forged, world.signed.manifest.stores[1]))
    with pytest.raises(errors.WrongNodeKey):
        SealedStore.open(world.place(0), world.nodes[0], manifest=manifests.sign(manifest, world.owner))


@pytest.mark.parametrize(
    "point",
    [
        "0100000000000000000000000000000000000000000000000000000000000000",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "0000000000000000000000000000000000000000000000000000000000000080",
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
    ],
)
def test_low_order_ed25519_points(world: World, point: str) -> None:
    with pytest.raises(errors.WeakKey):
        PublicIdentity(Role.OWNER, bytes.fromhex(point), world.owner.public.seal_key)


def test_a_refused_restoration_leaves_nothing(world: World, tmp_path: Path) -> None:
    log = AuditLog(world.out / "audit.log")
    with pytest.raises(errors.TooFewShares):
        restore(world.signed, world.places, world.restorers[:1], [0], why="", log=log)
    with pytest.raises(errors.StoreNotFound):
        restore(world.signed, world.places[:1], world.restorers, [0], why="", log=log)
    with pytest.raises(errors.ManifestError):
        restore(world.signed, world.places, world.restorers, [COUNT], why="", log=log)
    assert not log.path.exists()


def test_remote_restoration(world: World, tmp_path: Path) -> None:
    signed, (alice, bob, _) = world.signed, world.restorers
    request = remote.co_sign(remote.authorise(signed, [alice], [3, 0], why="look"), signed, bob)
    logs = [AuditLog(tmp_path / f"node{m}" / "audit.log") for m in range(2)]

    def ask(data: bytes, when: float | None = None) -> list[bytes]:
        return [remote.answer(data, signed, world.open(m), world.nodes[m], logs[m], when) for m in range(2)]

    answers = ask(request)
    assert (remote.open_answers(answers, request, signed, alice) == SOURCE.all_NCHW[[3, 0]]).all()
    assert [entry.images for entry in logs[1].read(signed.manifest)] == [(3, 0)]
    with pytest.raises(errors.AuthorisationInvalid):  # bob signed, but only alice is a recipient
        remote.open_answers(answers, request, signed, bob)
    for wrong, error in (
        (answers[:1], errors.AuthorisationInvalid),
        ([answers[0], answers[0]], errors.AuthorisationInvalid),
        (ask(remote.authorise(signed, [alice, bob], [3, 0], why="")), errors.AuthorisationInvalid),
    ):
        with pytest.raises(error):
            remote.open_answers(wrong, request, signed, alice)
    forged = envelope.sign(remote.ANSWER, envelope.parse(remote.ANSWER, answers[0], "").payload, [world.nodes[1]])
    with pytest.raises(errors.SignatureInvalid):
        remote.open_answers([forged, answers[1]], request, signed, alice)

    before = len(logs[0].read(signed.manifest))
    eve = Identity.generate(Role.RESTORER, "eve")
    payload = envelope.parse(remote.AUTHORISATION, request, "").payload
    other = msgspec.structs.replace(remote.check(request, signed), epoch=2)
    refusals: list[tuple[bytes, float | None, type[PslError]]] = [
        (remote.authorise(signed, [alice], [3], why=""), None, errors.TooFewShares),
        (request, 4e9, errors.AuthorisationInvalid),
        (request, 0.0, errors.AuthorisationInvalid),
        (envelope.sign(remote.AUTHORISATION, payload, [alice, eve]), None, errors.UnknownRestorer),
        (
            envelope.sign(remote.AUTHORISATION, envelope.encode(other), [alice, bob]),
            None,
            errors.AuthorisationInvalid,
        ),
        (envelope.sign(remote.AUTHORISATION, payload, [alice, alice]), None, errors.SignatureInvalid),
    ]
    for data, when, refusal in refusals:
        with pytest.raises(refusal):
            ask(data, when)
    for changed in every_change(request):
        with pytest.raises(PslError):
            remote.check(changed, signed)
    # What is refused is not answered, and not logged as if it were.
    assert len(logs[0].read(signed.manifest)) == before
    for changed in list(every_change(answers[0]))[::5]:
        with pytest.raises(PslError):
            remote.open_answers([changed, answers[1]], request, signed, alice)
    with pytest.raises(errors.AuthorisationInvalid):
        remote.authorise(signed, [alice], [COUNT], why="")
    with pytest.raises(errors.AuthorisationInvalid):
        remote.authorise(signed, [alice], [0], why="", recipients=[eve.public])


def test_errors_have_classes_of_their_own() -> None:
    """The tests above tell kinds apart by class; here, that no class is the parent of another kind's."""
    kinds: list[type[PslError]] = [
        errors.RecordDamaged,
        errors.RecordSwapped,
        errors.RecordsReordered,
        errors.RecordDuplicated,
    ]
    kinds += [errors.RecordForeign, errors.DigestTableDamaged, errors.SegmentDamaged, errors.HeaderDamaged]
    kinds += [
        errors.WrongDataset,
        errors.WrongStore,
        errors.WrongEpoch,
        errors.WrongSegment,
        errors.TruncatedFile,
    ]
    kinds += [
        errors.TrailingBytes,
        errors.UnknownVersion,
        errors.UnknownFormat,
        errors.WrongNodeKey,
        errors.WrongShare,
    ]
    kinds += [
        errors.TooFewShares,
        errors.StaleManifest,
        errors.MixedGenerations,
        errors.SignatureInvalid,
        errors.WeakKey,
    ]
    assert not any(a is not b and issubclass(a, b) for a in kinds for b in kinds)


def test_unknown_version_of_a_segment_is_not_read(world: World) -> None:
    path = world.place(0) / SEGMENT
    data = bytearray(path.read_bytes())
    data[8] = 2
    with pytest.raises(errors.UnknownVersion):
        SegmentHeader.parse(bytes(data[:HEADER]), 2, "it")
