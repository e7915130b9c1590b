"""Image numbers tell nothing of labels: an owner's images are numbered in an order that takes the owner's key to know.

Datasets come sorted by class; every node, relay, audit log and block of a store goes by the numbers.
"""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from psl_flower.errors import KeyMismatch, PslError, SourceChanged
from psl_flower.sealed import keyfile
from psl_flower.sealed import manifest as manifests
from psl_flower.sealed.identities import Identity, Role
from psl_flower.sealed.ingest import ingest
from psl_flower.sealed.labels import LabelBook
from psl_flower.sealed.manifest import Manifest
from psl_flower.sealed.numbering import secret_orders
from psl_flower.sealed.rotate import Changes, rotate
from psl_flower.sealed.sealing import load_draft
from psl_flower.sealed.verify import verify
from tests.security.sealed_commands import make_keys, psl
from tests.unit.test_sealed_vectors import EXPECTED, IMAGES, VECTORS
from tests.unit.tiny_pictures import colour, encode
from tests.vectors.sealed_support import ArraySource, CrashingDisk, Killed, World

CLASSES, A_CLASS, BLOCK = ("cat", "dog"), 60, 16
SPLITS = ("train", "test")


@pytest.fixture(autouse=True)
def drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """What Python draws at random is that of a seed, and so are root keys and the order of images."""
    random = np.random.default_rng(20)
    monkeypatch.setattr("secrets.token_bytes", lambda count=32: random.bytes(count))
    monkeypatch.setattr("psl_flower.sealed.ingest.sizes", lambda *_: (2 * BLOCK, BLOCK))
    monkeypatch.setattr("os.fsync", lambda _: None)  # what a power cut loses is simulated


def level(label: int, k: int) -> int:
    """Return the level of grey of a picture, which tells its class."""
    return A_CLASS * label + k


def add_pictures(folder: Path, first: int, count: int) -> None:
    """Write pictures of both classes into folders of classes."""
    for label, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for k in range(first, first + count):
            (folder / name / f"{k:03d}.png").write_bytes(encode(colour(level(label, k), (8, 8))))


def sealed(folder: Path, *more: str) -> Path:
    """Seal the pictures of a folder by the owner's command."""
    arguments: list[str | Path] = ["ingest", folder / "pets", "--out", folder / "sealed", "--patch-size", "4x4"]
    arguments += ["--owner-key", folder / "owner.key", "--restorer", f"alice={folder / 'alice.key.pub'}"]
    arguments += [word for m in range(2) for word in ("--node-key", folder / f"node{m}.key.pub")]
    psl(*arguments, "--lower-key", folder / "lower.key.pub", *more)
    return folder / "sealed"


@pytest.fixture
def pets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keys, and 50 pictures of each class."""
    monkeypatch.setenv("PSL_STATE", str(tmp_path / "state"))
    make_keys(tmp_path)
    add_pictures(tmp_path / "pets", 0, 50)
    return tmp_path


def labels_of(folder: Path, out: Path) -> tuple[Manifest, np.ndarray]:
    manifest = manifests.load(out).manifest
    return manifest, LabelBook(out).read(manifest, keyfile.load(folder / "owner.key")).labels_N


def of_chance(labels: np.ndarray) -> None:
    """Check that labels of two classes, as often, stand in no order: within four deviations of what chance gives."""
    count = len(labels)
    assert abs(np.corrcoef(np.arange(count), labels)[0, 1]) < 4 / np.sqrt(count)
    changes = int((np.diff(labels) != 0).sum())
    assert abs(changes - count / 2) < 4 * np.sqrt(count) / 2


def test_numbers_of_class_folders_do_not_tell_labels(pets: Path) -> None:
    manifest, labels = labels_of(pets, sealed(pets))
    assert [(part.name, part.count) for part in manifest.splits] == [("train", 80), ("test", 20)]
    of_chance(labels[:80])
    of_chance(labels[80:])
    # Nor is a block of a store, in which records stand in a secret order, one of a single class.
    for start in range(0, 80, BLOCK):
        assert set(labels[start : start + BLOCK].tolist()) == {0, 1}


def test_each_number_has_its_image_and_its_label(pets: Path) -> None:
    out = sealed(pets)
    add_pictures(pets / "pets", 50, 10)
    sealed(pets, "--append")
    manifest, labels = labels_of(pets, out)
    assert (manifest.generation, manifest.num_samples) == (2, 120)
    restoring = ["restore", "--manifest", out, "--identity", pets / "alice.key", "--out", pets / "restored"]
    psl(*restoring, "--image", ",".join(map(str, range(120))))
    rows = list(csv.DictReader((pets / "restored" / "images.csv").open()))
    levels = [int(np.asarray(Image.open(pets / "restored" / row["file"]))[0, 0, 0]) for row in rows]
    assert [int(row["image"]) for row in rows] == list(range(120))
    assert sorted(levels) == list(range(120))
    assert [row["label"] for row in rows] == [CLASSES[found // A_CLASS] for found in levels]
    assert labels.tolist() == [found // A_CLASS for found in levels]
    # The appended ones, too, are in an order of their own.
    assert {found % A_CLASS for found in levels[:100]} == set(range(50))
    of_chance(labels[100:116])


def test_an_owner_learns_the_numbers_of_files_that_have_moved(pets: Path) -> None:
    """The one question that needs a number for a file: whose label is to be corrected."""
    sealed(pets)
    (pets / "pets" / "cat" / "007.png").rename(pets / "pets" / "dog" / "moved.png")
    arguments: list[str | Path] = ["ingest", pets / "pets", "--out", pets / "sealed", "--append"]
    arguments += ["--owner-key", pets / "owner.key"]
    ((image, name),) = json.loads(psl(*arguments, "--json").stdout)["classes_here"].items()
    assert name == "dog"
    assert f"1 of those sealed before has another class here ({image} dog): psl relabel" in psl(*arguments).stdout
    psl(
        "restore",
        "--manifest",
        pets / "sealed",
        "--identity",
        pets / "alice.key",
        "--image",
        image,
        "--out",
        pets / "r",
    )
    (row,) = csv.DictReader((pets / "r" / "images.csv").open())
    assert (int(np.asarray(Image.open(pets / "r" / row["file"]))[0, 0, 0]), row["label"]) == (level(0, 7), "cat")


# --- by hand: images of an array, whose place in the source is known


def in_order(world: World, source: ArraySource, manifest: Manifest | None = None) -> tuple[np.ndarray, list[int]]:
    """Return a source's images and labels as the newest generation, or a draft's, should have them."""
    manifest = manifest or world.signed.manifest
    counts = {split: source.num_samples(split) for split in SPLITS}
    orders = secret_orders(manifest, world.owner, counts)
    assert all(sorted(order.tolist()) == list(range(counts[split])) for split, order in orders.items())
    of_split = [source.images[split][orders[split]] for split in SPLITS]
    labels = [int(number) % len(source.class_names) for split in SPLITS for number in orders[split]]
    return np.concatenate(of_split).transpose(0, 3, 1, 2), labels


def finished(world: World, manifest: Manifest) -> dict[Path, bytes]:
    """Return the segments that a manifest, or a draft's, names."""
    places = [
        world.place(store.upper) / manifests.segment_file(manifest.epoch, part.segment)
        for store in manifest.stores
        for part in store.segments
    ]
    return {place: place.read_bytes() for place in places}


def check(world: World, images: np.ndarray, labels: list[int]) -> None:
    assert verify(world.places, world.signed).ok
    assert (world.images() == images).all()
    assert LabelBook(world.out).read(world.signed.manifest, world.lower).labels_N.tolist() == labels
    assert not (world.out / "draft.psl").exists()


@pytest.mark.parametrize("power_cut", [True, False])
def test_an_interrupted_ingest_goes_on_in_its_order(tmp_path: Path, power_cut: bool) -> None:
    people, source, whole = World(tmp_path), ArraySource(70, 20), CrashingDisk()
    plan = people.plan(secret_order=True)
    people.at(tmp_path / "whole").seal(source, plan, disk=whole)
    resumed = 0
    for at in range(1, whole.count, 5):
        world = people.at(tmp_path / f"at-{at}")
        with pytest.raises(Killed):
            world.seal(source, plan, disk=CrashingDisk(at, power_cut=power_cut))
        draft = load_draft(world.out, world.owner.public)
        expected = in_order(world, source, draft.manifest) if draft else None
        before = finished(world, draft.manifest) if draft else {}
        if draft or not (world.out / "manifest.psl").exists():
            resumed += world.seal(source, plan).resumed
        check(world, *(expected or in_order(world, source)))
        assert before.items() <= finished(world, world.signed.manifest).items()
        shutil.rmtree(world.out)
    assert resumed


@pytest.mark.parametrize("first_in_secret_order", [True, False])
def test_appended_images_have_an_order_of_their_own(tmp_path: Path, first_in_secret_order: bool) -> None:
    """Also those that are appended to a set of an earlier version, whose numbers stay as they are."""
    world, first, more = World(tmp_path / "out"), ArraySource(40, 8, seed=1), ArraySource(50, 9, seed=2)
    world.seal(first, world.plan(secret_order=first_in_secret_order))
    images, labels = in_order(world, first) if first_in_secret_order else (first.all_NCHW, first.all_labels)
    assert (images != first.all_NCHW).any() == first_in_secret_order
    # After a rotation the root key is another.
    rotate(world.out, world.owner, world.places, Changes())
    plan = world.plan(secret_order=True)

    def stop(split: str, done: int, total: int) -> None:
        if split == "test":
            raise Killed

    with pytest.raises(Killed):
        ingest(more, world.out, world.owner, plan, append=True, progress=stop)
    assert world.seal(more, plan, append=True).resumed > 0
    added, added_labels = in_order(world, more)
    assert (added != more.all_NCHW).any()
    check(world, np.concatenate([images, added]), labels + added_labels)
    # What is sealed is passed over, in whatever order it comes.
    assert world.seal(more, plan, append=True).known == 59


def test_the_frozen_set_of_version_1_is_appended_to(tmp_path: Path) -> None:
    out = shutil.copytree(VECTORS, tmp_path / "frozen")
    for file in (out / "keys").glob("*.key"):
        file.chmod(0o600)
    owner, lower, *nodes = (keyfile.load(out / "keys" / f"{name}.key") for name in ("owner", "lower", "node0", "node1"))
    world, more = World(out, owner=owner, lower=lower, nodes=nodes), ArraySource(30, 4, (4, 6, 3), seed=5)
    world.seal(more, world.plan(secret_order=True), append=True)
    images, labels = in_order(world, more)
    check(world, np.concatenate([IMAGES, images]), EXPECTED["labels"] + labels)


def test_the_order_takes_the_owners_key(tmp_path: Path) -> None:
    """Another owner has another order, and so has the same owner another time; nobody else can open the root key."""
    source = ArraySource(60, 20)
    first = World(tmp_path / "first")
    worlds = [first, first.at(tmp_path / "again"), World(tmp_path / "another")]
    for world in worlds:
        world.seal(source, world.plan(secret_order=True))
        check(world, *in_order(world, source))
    found = [world.images() for world in worlds]
    assert not any((found[a] == found[b]).all() for a, b in ((0, 1), (0, 2), (1, 2)))
    for a, b in ((0, 1), (0, 2), (1, 2)):
        same = (found[a][:60] == found[b][:60]).all(axis=(1, 2, 3)).sum()
        assert same < 8  # one by chance
    manifest, counts = first.signed.manifest, {"train": 60, "test": 20}
    with pytest.raises(KeyMismatch):
        secret_orders(manifest, Identity.generate(Role.OWNER, "stranger"), counts)
    for other in (*first.nodes, *first.restorers, first.lower):
        with pytest.raises(PslError):
            secret_orders(manifest, other, counts)
    # Each split has an order of its own, and neither is that of the source.
    train, test = secret_orders(manifest, first.owner, {"train": 60, "test": 60}).values()
    assert (train != test).sum() > 50 and (train != np.arange(60)).sum() > 50


@pytest.mark.parametrize("begun", [False, True])
def test_what_was_begun_in_one_order_does_not_go_on_in_the_other(tmp_path: Path, begun: bool) -> None:
    """Such as what an interruption of an earlier version left: its first images would give their labels away."""
    world, source = World(tmp_path / "out"), ArraySource(70, 20)
    with pytest.raises(Killed):
        world.seal(source, world.plan(secret_order=begun), disk=CrashingDisk(20))
    with pytest.raises(SourceChanged, match="numbered the images (in a secret order|as they come)") as caught:
        world.seal(source, world.plan(secret_order=not begun))
    assert f"remove {world.out / 'draft.psl'} to discard it" in str(caught.value)
    (world.out / "draft.psl").unlink()
    world.seal(source, world.plan(secret_order=not begun))
    check(world, *((source.all_NCHW, source.all_labels) if begun else in_order(world, source)))
