"""A sealed dataset survives a crash at every single write, fsync, rename and removal.

Each test first counts the operations of an undisturbed run, then is killed at each of them in turn; with a
power cut, everything that was not synchronised is lost as well. Afterwards each store reads as the old or the
new generation, and running the same again completes it.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from psl_flower.errors import SourceChanged, StoreNotFound
from psl_flower.patches import PatchGrid
from psl_flower.sealed.audit import AuditLog
from psl_flower.sealed.labels import LabelBook
from psl_flower.sealed.rotate import Changes, rotate
from psl_flower.sealed.verify import verify
from psl_flower.system.files import DISK, Disk
from tests.vectors.sealed_support import ArraySource, CrashingDisk, Killed, World

OLD, NEW = ArraySource(train=2, test=1, seed=1), ArraySource(train=1, test=1, seed=2)
NONE = OLD.all_NCHW[:0]
GRID = PatchGrid(image_size=(4, 4), patch_size=(2, 2), stride=(2, 2))
BOTH = np.concatenate([OLD.all_NCHW, NEW.all_NCHW])


# A power cut loses more than the end of a process; the latter is therefore left to the long run.
both = pytest.mark.parametrize("power_cut", [True, pytest.param(False, marks=pytest.mark.slow)])


@pytest.fixture(autouse=True)
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("psl_flower.sealed.ingest.sizes", lambda *_: (2, 2))
    # What a power cut loses is simulated; really waiting for the disk hundreds of times proves nothing more.
    monkeypatch.setattr("os.fsync", lambda _: None)


@pytest.fixture(scope="module")
def people() -> World:
    return World(Path())


@pytest.fixture
def sealed(people: World, tmp_path: Path) -> World:
    """OLD, sealed in one generation."""
    world = people.at(tmp_path / "start")
    world.seal(OLD)
    return world


def crashes(start: World, act: Callable[[World, Disk], object], power_cut: bool) -> Iterator[World]:
    """Yield a copy of `start` for each operation of `act`, in which `act` was killed at that operation."""

    def copy(name: str) -> World:
        out = start.out.with_name(name)
        if start.out.exists():
            shutil.copytree(start.out, out)
        return start.at(out)

    peaceful = CrashingDisk()
    act(copy("peace"), peaceful)
    assert peaceful.count >= 4
    for number in range(1, peaceful.count + 1):
        world = copy(f"{number}")
        with pytest.raises(Killed):
            act(world, CrashingDisk(number, power_cut=power_cut))
        yield world
        shutil.rmtree(world.out, ignore_errors=True)


def reads_as(world: World, upper: int, expected: list[np.ndarray]) -> None:
    """Check that a store reads as one of the states; where one of them is nothing, it may also be missing."""
    try:
        store = world.open(upper)
    except StoreNotFound:
        assert any(len(images) == 0 for images in expected)
        return
    found = store.read(np.arange(len(store)))
    store.close()
    positions = list(store.meta.positions)
    states = [images for images in expected if len(images) == len(found)]
    assert states, f"{len(found)} samples are neither the old nor the new generation"
    assert (GRID.split(states[0])[:, positions] == found).all()


def completes(world: World, images: np.ndarray, generation: int) -> None:
    assert world.signed.manifest.generation == generation
    assert verify(world.places, world.signed).ok
    assert (world.images() == images).all()
    assert not (world.out / "draft.psl").exists()


@both
def test_first_ingest(people: World, tmp_path: Path, power_cut: bool) -> None:
    for world in crashes(people.at(tmp_path / "start"), lambda w, disk: w.seal(OLD, disk=disk), power_cut):
        for upper in range(2):
            reads_as(world, upper, [NONE, OLD.all_NCHW])
        if not (world.out / "manifest.psl").exists() or (world.out / "draft.psl").exists():
            world.seal(OLD)
        completes(world, OLD.all_NCHW, 1)
        labels = LabelBook(world.out).read(world.signed.manifest, world.lower)
        assert labels.labels_N.tolist() == OLD.all_labels
        assert labels.version == 0


def interrupted(world: World) -> None:
    """Leave the draft of an ingest that was killed before it was committed."""
    disk = CrashingDisk()
    world.at(world.out.with_name("peace")).seal(OLD, disk=disk)
    with pytest.raises(Killed):
        world.seal(OLD, disk=CrashingDisk(disk.count // 2))
    assert (world.out / "draft.psl").exists() and not (world.out / "manifest.psl").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"assignment": "round-robin"},
        {"stride": (1, 1)},
        {"patch": (4, 4)},
        {"lower": None},
        {"fit": "pad"},
        {"margin": 1},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_an_interrupted_ingest_does_not_go_on_with_other_settings(
    people: World, tmp_path: Path, changes: dict[str, Any]
) -> None:
    world = people.at(tmp_path / "start")
    interrupted(world)
    with pytest.raises(SourceChanged, match="other settings"):
        world.seal(OLD, world.plan(**changes))
    world.seal(OLD)
    completes(world, OLD.all_NCHW, 1)


@both
def test_append(sealed: World, power_cut: bool) -> None:
    for world in crashes(sealed, lambda w, disk: w.seal(NEW, append=True, disk=disk), power_cut):
        for upper in range(2):
            reads_as(world, upper, [OLD.all_NCHW, BOTH])
        if world.signed.manifest.generation == 1 or (world.out / "draft.psl").exists():
            world.seal(NEW, append=True)
        completes(world, BOTH, 2)
        labels = LabelBook(world.out).read(world.signed.manifest, world.lower)
        assert labels.labels_N.tolist() == OLD.all_labels + NEW.all_labels


def test_a_dropped_draft_leaves_no_labels_behind(people: World, tmp_path: Path) -> None:
    """Killed after the labels, dropped, begun anew with other images: nothing of the first attempt counts."""
    other = ArraySource(train=3, test=1, seed=3)
    for world in crashes(people.at(tmp_path / "start"), lambda w, disk: w.seal(OLD, disk=disk), False):
        if (world.out / "manifest.psl").exists() or not (world.out / "labels" / "000000.psl").exists():
            continue
        (world.out / "draft.psl").unlink()
        world.seal(other)
        completes(world, other.all_NCHW, 1)
        labels = LabelBook(world.out).read(world.signed.manifest, world.lower)
        assert labels.labels_N.tolist() == other.all_labels
        return
    raise AssertionError("no crash came between labels and manifest")


@both
def test_rotation(sealed: World, power_cut: bool) -> None:
    changes = Changes(drop_restorers=("bob",))

    def act(world: World, disk: Disk = DISK) -> object:
        return rotate(world.out, world.owner, world.places, changes, disk=disk)

    for world in crashes(sealed, act, power_cut):
        for upper in range(2):
            reads_as(world, upper, [OLD.all_NCHW])
        if world.signed.manifest.epoch == 1 or (world.out / "draft.psl").exists():
            act(world)
        assert world.signed.manifest.epoch == 2
        completes_rotation(world)


def test_what_was_reported_as_done_survives_a_power_cut(people: World, tmp_path: Path) -> None:
    """The power goes right after each command has returned."""
    world = people.at(tmp_path / "start")

    def durably(act: Callable[[Disk], object]) -> None:
        disk = CrashingDisk(power_cut=True)
        act(disk)
        disk.lose()

    durably(lambda disk: world.seal(OLD, disk=disk))
    assert (world.images() == OLD.all_NCHW).all()
    durably(lambda disk: world.seal(NEW, append=True, disk=disk))
    assert (world.images() == BOTH).all()
    manifest = world.signed.manifest
    durably(lambda disk: LabelBook(world.out, disk).relabel(manifest, world.restorers[0], [(1, 2)], "why"))
    assert LabelBook(world.out).read(manifest, world.lower).labels_N[1] == 2
    log = AuditLog(world.out / "audit.log")
    durably(lambda disk: AuditLog(log.path, disk).append(world.signed, world.restorers[:2], "restore", [0], ""))
    assert len(log.read(manifest)) == 1
    durably(lambda disk: rotate(world.out, world.owner, world.places, Changes(), disk=disk))
    assert world.signed.manifest.epoch == 2
    assert (world.images() == BOTH).all()


def completes_rotation(world: World) -> None:
    report = verify(world.places, world.signed)
    assert report.ok
    assert all(store.remains and not store.strangers for store in report.stores)
    assert (world.images() == OLD.all_NCHW).all()
    labels = LabelBook(world.out).read(world.signed.manifest, world.restorers[0])
    assert labels.labels_N.tolist() == OLD.all_labels


@both
def test_relabel(sealed: World, power_cut: bool) -> None:
    def act(world: World, disk: Disk = DISK) -> object:
        return LabelBook(world.out, disk).relabel(world.signed.manifest, world.restorers[0], [(1, 2)], "why")

    for world in crashes(sealed, act, power_cut):
        found = LabelBook(world.out).read(world.signed.manifest, world.lower)
        assert found.labels_N.tolist() in (OLD.all_labels, [0, 2, 0])
        act(world)
        assert LabelBook(world.out).read(world.signed.manifest, world.lower).labels_N.tolist() == [0, 2, 0]


@both
def test_audit_log(sealed: World, power_cut: bool) -> None:
    def act(world: World, disk: Disk = DISK) -> object:
        log = AuditLog(world.out / "audit.log", disk)
        return log.append(world.signed, world.restorers[:2], "restore", [0], "why")

    act(sealed)
    for world in crashes(sealed, act, power_cut):
        log = AuditLog(world.out / "audit.log")
        before = len(log.read(world.signed.manifest))
        assert before in (1, 2)
        act(world)
        assert len(log.read(world.signed.manifest)) == before + 1


@both
def test_audit_log_after_two_crashes(sealed: World, power_cut: bool) -> None:
    """Both between the log and its head: it must not look edited."""

    def act(world: World, disk: Disk = DISK) -> object:
        log = AuditLog(world.out / "audit.log", disk)
        return log.append(world.signed, world.restorers[:2], "restore", [0], "why")

    act(sealed)
    for number, world in enumerate(crashes(sealed, act, power_cut)):
        again = sealed.out.parent / f"again-{number}" / "start"
        shutil.copytree(world.out, again)
        for twice in crashes(world.at(again), act, power_cut):
            log = AuditLog(twice.out / "audit.log")
            before = len(log.read(twice.signed.manifest))
            assert before in (1, 2, 3)
            act(twice)
            assert len(log.read(twice.signed.manifest)) == before + 1
