"""Rotations: who leaves loses access to what comes, who comes gains it, and the images stay the same."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec
import numpy as np
import pytest

from psl_flower import errors
from psl_flower.cli.terminal import stores_beside
from psl_flower.sealed import envelope
from psl_flower.sealed import labels as label_versions
from psl_flower.sealed.audit import AuditLog
from psl_flower.sealed.identities import Identity, Role
from psl_flower.sealed.labels import LabelBook
from psl_flower.sealed.restore import restore
from psl_flower.sealed.rotate import Changes, rotate
from psl_flower.sealed.store import SealedStore
from psl_flower.sealed.verify import verify
from psl_flower.system.files import Disk
from tests.unit.tiny_sealed import content
from tests.vectors.sealed_support import ArraySource, World

SOURCE = ArraySource(9, 3, (4, 4, 3))


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Three nodes for four positions."""
    found = World(tmp_path / "out", nodes=[Identity.generate(Role.NODE, f"node{m}") for m in range(3)])
    found.seal(SOURCE)
    return found


def turn(world: World, **changes: object) -> None:
    rotate(world.out, world.owner, world.places, Changes(**changes))  # type: ignore[arg-type]


def restored(world: World, people: list[Identity]) -> np.ndarray:
    log = AuditLog(world.out / "audit.log")
    places = world.places[: len(world.signed.manifest.stores)]
    return np.concatenate(list(restore(world.signed, places, people, range(12), why="", log=log)))


def test_everything_is_new_but_the_images(world: World) -> None:
    before = world.signed
    old = world.open(0).read(np.arange(12))
    turn(world)
    manifest = world.signed.manifest
    assert (manifest.epoch, manifest.generation, manifest.previous) == (2, 2, before.digest)
    assert manifest.root_commitment != before.manifest.root_commitment
    for new, was in zip(manifest.stores, before.manifest.stores, strict=True):
        assert new.store != was.store
        assert new.key_commitment != was.key_commitment
    assert (world.open(0).read(np.arange(12)) == old).all()
    assert (restored(world, world.restorers[:2]) == SOURCE.all_NCHW).all()
    assert (
        manifest.description.fingerprint == before.manifest.description.fingerprint
    )  # a run may go on after a rotation
    assert [entry.action for entry in AuditLog(world.out / "audit.log").read(manifest)] == [
        "rotate",
        "restore",
    ]


def test_dropping_a_node_gives_its_positions_to_the_others(world: World) -> None:
    gone = world.nodes[1]
    turn(world, drop_nodes=(1,))
    manifest = world.signed.manifest
    assert [dropped.name for dropped in manifest.dropped] == ["node-1"]
    assert sorted(p for store in manifest.stores for p in store.positions) == [0, 1, 2, 3]
    places = [world.place(0), world.place(2)]
    assert verify(places, world.signed).ok
    for upper, (place, node) in enumerate(zip(places, [world.nodes[0], world.nodes[2]], strict=True)):
        store = SealedStore.open(place, node, owner=world.owner.public)
        expected = manifest.description.grid().split(SOURCE.all_NCHW)[:, list(manifest.stores[upper].positions)]
        assert (store.read(np.arange(12)) == expected).all()
        with pytest.raises(errors.WrongNodeKey):
            SealedStore.open(place, gone)


def test_a_new_node_key_replaces_the_old(world: World) -> None:
    new = Identity.generate(Role.NODE, "new")
    turn(world, nodes={1: new.public})
    with pytest.raises(errors.WrongNodeKey):
        SealedStore.open(world.place(1), world.nodes[1])
    assert len(SealedStore.open(world.place(1), new, owner=world.owner.public).read(np.arange(12))) == 12


def test_restorers_come_and_go(world: World) -> None:
    alice, bob, carol = world.restorers
    dave, lower = Identity.generate(Role.RESTORER, "dave"), Identity.generate(Role.LOWER, "other")
    LabelBook(world.out).relabel(world.signed.manifest, bob, [(0, 2)], "by bob")
    turn(world, drop_restorers=("bob",), add_restorers={"dave": dave.public}, threshold=3, lower=lower.public)
    with pytest.raises(errors.TooFewShares):
        restored(world, [alice, dave])
    assert (restored(world, [dave, carol, alice]) == SOURCE.all_NCHW).all()
    expected = [2, *SOURCE.all_labels[1:]]
    for reader in (dave, lower, alice):
        found = LabelBook(world.out).read(world.signed.manifest, reader)
        assert found.labels_N.tolist() == expected
    assert found.history[1].why == "by bob"
    assert LabelBook(world.out).read(world.signed.manifest, dave).history[1].why == "(sealed to others)"
    for stranger, error in (
        (bob, errors.RevokedRestorer),
        (world.lower, errors.LabelError),
        (None, errors.LabelError),
    ):
        with pytest.raises(error):
            LabelBook(world.out).read(world.signed.manifest, stranger)


def test_a_dropped_restorer_cannot_write_labels_as_of_the_past(world: World) -> None:
    """A version that claims an older generation than the one before it is refused, well signed or not."""
    bob, old = world.restorers[1], world.signed.manifest
    turn(world, drop_restorers=("bob",))
    folder = world.out / "labels"
    last = (folder / "000001.psl").read_bytes()
    LabelBook(world.out).relabel(world.signed.manifest, world.restorers[0], [(0, 1)], "")
    payload = envelope.parse(label_versions.KIND, (folder / "000002.psl").read_bytes(), "").payload
    version = envelope.decode(payload, label_versions.Version, "")
    assert version.previous == hashlib.sha256(last).digest()
    forged = msgspec.structs.replace(version, generation=old.generation, author=str(bob.public), name="bob")
    data = envelope.sign(label_versions.KIND, envelope.encode(forged), [bob])
    (folder / "000002.psl").write_bytes(data)
    with pytest.raises(errors.LabelError):
        LabelBook(world.out).read(world.signed.manifest, world.lower)
    forged = msgspec.structs.replace(forged, generation=version.generation)
    (folder / "000002.psl").write_bytes(envelope.sign(label_versions.KIND, envelope.encode(forged), [bob]))
    with pytest.raises(errors.LabelError, match="may not write"):
        LabelBook(world.out).read(world.signed.manifest, world.lower)


@pytest.mark.parametrize(
    ("error", "changes"),
    [
        (errors.UnknownRestorer, {"drop_restorers": ("eve",)}),
        (errors.ConfigError, {"drop_restorers": ("alice", "bob")}),
        (errors.ConfigError, {"drop_restorers": ("alice", "bob", "carol"), "threshold": 2}),
        (errors.ConfigError, {"threshold": 4}),
        (errors.ConfigError, {"drop_nodes": (0, 1, 2)}),
        (errors.ConfigError, {"drop_nodes": (7,)}),
    ],
)
def test_changes_that_do_not_fit_change_nothing(
    world: World, error: type[errors.PslError], changes: dict[str, object]
) -> None:
    with pytest.raises(error):
        turn(world, **changes)
    assert world.signed.manifest.epoch == 1
    assert not (world.out / "draft.psl").exists()
    assert not (world.out / "audit.log").exists()


def test_a_dropped_key_does_not_come_back(world: World) -> None:
    turn(world, drop_restorers=("bob",))
    with pytest.raises(errors.ConfigError, match="dropped before"):
        turn(world, add_restorers={"robert": world.restorers[1].public})


def test_an_interrupted_rotation_must_be_finished_first(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise errors.StoreUnreachable("the disk is full")

    with monkeypatch.context() as patched:
        patched.setattr("psl_flower.sealed.sealing.Sealing.commit", fail)
        with pytest.raises(errors.StoreUnreachable):
            turn(world, drop_restorers=("bob",))
    with pytest.raises(errors.SourceChanged):
        turn(world, drop_restorers=("carol",))
    with pytest.raises(errors.SourceChanged):
        world.seal(SOURCE, append=True)
    with pytest.raises(errors.LabelError, match=r"repeat the interrupted ingest or rotation, or remove draft\.psl"):
        LabelBook(world.out).relabel(world.signed.manifest, world.restorers[0], [(0, 1)], "")
    turn(world, drop_restorers=("bob",))
    assert [member.name for member in world.signed.manifest.restorers] == ["alice", "carol"]


@pytest.mark.parametrize("drop", [(), (0,)], ids=["same nodes", "one node less"])
@pytest.mark.parametrize("left", [3, 2, 0])
def test_old_files_are_removed_though_the_end_was_interrupted(world: World, drop: tuple[int, ...], left: int) -> None:
    """Committed, and killed at the first or second old file or at the draft: the same command removes the rest."""

    class Dying(Disk):
        def remove(self, path: Path) -> None:
            last = path.name.startswith("epoch-0001") if left else path.name == "draft.psl"
            if last and len(list(world.out.rglob("epoch-0001*"))) == left:
                raise KeyboardInterrupt
            super().remove(path)

    changes = Changes(drop_nodes=drop)
    with pytest.raises(KeyboardInterrupt):
        rotate(world.out, world.owner, world.places, changes, delete_old=True, disk=Dying())
    committed = world.signed
    assert committed.manifest.epoch == 2
    assert len(list(world.out.rglob("epoch-0001*"))) == left
    places = stores_beside(world.out, [])
    again = rotate(world.out, world.owner, places, changes, delete_old=True)
    assert again.digest == committed.digest
    assert not list(world.out.rglob("epoch-0001*"))
    assert not (world.out / "draft.psl").exists()
    assert verify(places, world.signed).ok


def test_images_are_appended_after_a_node_was_dropped(world: World) -> None:
    """The folders keep their numbers, the Uppers move up; the dropped node's folder is not written to."""
    turn(world, drop_nodes=(0,))
    left = content(world.place(0))
    more = ArraySource(2, 1, (4, 4, 3), seed=1)
    world.seal(more, append=True)
    places = stores_beside(world.out, [])
    assert places == [str(world.place(1)), str(world.place(2))]
    assert verify(places, world.signed).ok
    assert content(world.place(0)) == left
    images = restore(world.signed, places, world.restorers, range(15), why="", log=AuditLog(world.out / "audit.log"))
    assert (np.concatenate(list(images)) == np.concatenate([SOURCE.all_NCHW, more.all_NCHW])).all()


def test_a_store_that_is_gone_is_not_continued_in_that_of_another(world: World) -> None:
    """Upper 1's is elsewhere; in the folder of its number lies that of Upper 0, since node 0 was dropped."""
    turn(world, drop_nodes=(0,))
    elsewhere = world.place(2).rename(world.out.parent / "elsewhere")
    before = content(world.out)
    more = ArraySource(2, 1, (4, 4, 3), seed=1)
    with pytest.raises(errors.StoreNotFound, match="--out 1=PLACE"):
        world.seal(more, append=True)
    assert content(world.out) == before
    world.seal(more, append=True, places={1: str(elsewhere)})
    assert verify([world.place(1), elsewhere], world.signed).ok
