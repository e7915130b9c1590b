"""ensure_sealed and prepare_stores: the patches of plain stores, each for its node alone; reuse, interruption, labels."""

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from psl_flower.config import RunConfig
from psl_flower.data import store_set
from psl_flower.data.ingest import ensure_stores
from psl_flower.data.preparing import prepare_stores
from psl_flower.data.sealed_set import ensure_sealed
from psl_flower.data.store_set import StoreRequest, StoreSet, store_request
from psl_flower.engine.build import make_network
from psl_flower.errors import (
    ConfigError,
    DataError,
    LabelError,
    PslError,
    StaleManifest,
    StoreError,
    StoreExists,
    StoreUnreachable,
    WrongNodeKey,
    WrongOwner,
)
from psl_flower.sealed import ingest, keyfile
from psl_flower.sealed import manifest as manifests
from psl_flower.sealed.keyring import KeyRing
from psl_flower.sealed.keys import Identity, Role
from psl_flower.sealed.labels import LabelBook
from psl_flower.sealed.rotate import Changes, rotate
from psl_flower.sealed.terminal import stores_beside
from psl_flower.stores.opening import open_store
from tests.engines import Federation
from tests.unit.tiny_pictures import files_of, images_of, listing, make_pictures
from tests.vectors.sealed_support import ArraySource, World

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def pictures(tmp_path):
    return make_pictures(tmp_path / "pictures")


@pytest.fixture
def owners(tmp_path):
    """Return an owner's dataset of 4x4 images for two nodes, and its source; the Lower's key is in keys/."""
    world, source = World(tmp_path / "sealed"), ArraySource(train=6, test=3)
    world.seal(source)
    keyfile.save(world.lower, tmp_path / "keys" / "lower.key")
    return world, source


def request(folder, **changes):
    return StoreRequest(**{"dataset": str(folder), "patch_size": (4, 4), "stride": (4, 4)} | changes)


def make(tmp_path, wanted, progress=None, **options):
    return ensure_sealed(tmp_path / "root", wanted, tmp_path / "keys", progress, **options)


def same_sets(sealed: StoreSet, plain: StoreSet) -> None:
    """Check that two sets hold the same, whatever they are called."""
    ours, theirs = sealed.manifest, plain.manifest
    names = [name for name in theirs.__struct_fields__ if name not in ("dataset", "fingerprint")]
    assert {name: getattr(ours, name) for name in names} == {name: getattr(theirs, name) for name in names}
    np.testing.assert_array_equal(sealed.labels, plain.labels)
    for m in range(theirs.num_uppers):
        a, b = sealed.open(m), plain.open(m)
        assert a.meta.positions == b.meta.positions
        np.testing.assert_array_equal(a.read(np.arange(len(a))), b.read(np.arange(len(b))))
        a.close()
        b.close()


def content(*folders: Path) -> dict[Path, bytes]:
    files = (path for folder in folders for path in folder.rglob("*") if path.is_file())
    return {path: path.read_bytes() for path in files if not path.name.endswith("lock")}


CUTS = {
    "whole": {},
    "overlap": {"stride": (2, 2), "num_uppers": 2},
    "one Upper": {"num_uppers": 1},
    "round-robin": {"num_uppers": 2, "assignment": "round-robin"},
    "pad": {"patch_size": (3, 5), "stride": (3, 5), "fit": "pad"},
    "image size": {"image_size": (4, 8)},
    "drawn": {"max_train": 4, "max_test": 2, "seed": 5},
}


@pytest.mark.parametrize("changes", CUTS.values(), ids=CUTS)
def test_the_patches_are_those_of_plain_stores(tmp_path, pictures, changes):
    assert CUTS
    wanted = request(pictures, **changes)
    sealed, plain = make(tmp_path, wanted), ensure_stores(tmp_path / "plain", wanted)
    assert sealed.created and sealed.sealed and not plain.sealed
    assert sealed.folder.name == plain.folder.name
    same_sets(sealed, plain)


def test_the_digits_of_a_run(tmp_path):
    config = RunConfig(workspace=str(tmp_path), max_train=70, max_test=10)
    sealed, plain = prepare_stores(config), prepare_stores(config.replace(stores="plain"))
    assert (sealed.folder.parent, sealed.keys) == (tmp_path / "stores", tmp_path / "keys")
    same_sets(sealed, plain)
    elsewhere = prepare_stores(config.replace(workspace=str(tmp_path / "other"), keys=str(tmp_path / "keys")))
    assert (elsewhere.keys, elsewhere.owner) == (sealed.keys, sealed.owner)


def test_a_second_call_decodes_and_draws_nothing(tmp_path, pictures, monkeypatch):
    first = make(tmp_path, request(pictures))
    before = content(tmp_path)

    def forbidden(*_, **__):
        raise AssertionError("opened the dataset again")

    monkeypatch.setattr(store_set, "open_dataset", forbidden)
    again = make(tmp_path, request(pictures))
    assert not again.created
    assert (again.folder, again.manifest, again.owner) == (first.folder, first.manifest, first.owner)
    assert content(tmp_path) == before


def test_a_key_opens_its_own_store_alone(tmp_path, pictures):
    made = make(tmp_path, request(pictures))
    keys = tmp_path / "keys"
    assert stat.S_IMODE(keys.stat().st_mode) == 0o700
    files = sorted(keys.glob("*.key"))
    names = ["lower", *(f"node-00{m}" for m in range(4)), "owner", "restorer-1", "restorer-2"]
    assert [file.stem for file in files] == names
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
    for m in range(4):
        ring = KeyRing(keys / f"node-00{m}.key")
        for other in range(4):
            place = made.store_path(other)
            if other == m:
                open_store(place, ring, other).close()
                assert open_store(place, ring).meta.upper == m
                continue
            with pytest.raises(WrongNodeKey, match=f"of Upper {other}; get the right key"):
                open_store(place, ring, other)
            with pytest.raises(StoreError):
                open_store(place, ring)
    for name in ("owner", "lower", "restorer-1"):
        with pytest.raises(WrongNodeKey):
            open_store(made.store_path(0), KeyRing(keys / f"{name}.key"), 0)


REPLACED = {
    "all": lambda keys: [path.unlink() for path in keys.glob("*.*")],
    "folder": shutil.rmtree,
    "owner": lambda keys: [path.unlink() for path in keys.glob("owner.*")],
    "lower": lambda keys: [path.unlink() for path in keys.glob("lower.*")],
}


@pytest.mark.parametrize("lost", REPLACED.values(), ids=REPLACED)
def test_keys_that_were_replaced(tmp_path, pictures, lost):
    """Other stores, made afterwards, bring new keys; these stores were not sealed to those."""
    assert REPLACED
    made = make(tmp_path, request(pictures))
    lost(tmp_path / "keys")
    make(tmp_path, request(pictures, seed=1))
    with pytest.raises(StoreError, match="delete .* to have the stores made again") as caught:
        make(tmp_path, request(pictures))
    assert f"delete {made.folder} " in str(caught.value)
    shutil.rmtree(made.folder)
    again = make(tmp_path, request(pictures))
    assert again.created
    np.testing.assert_array_equal(images_of(again), files_of(pictures).transpose(0, 3, 1, 2))


@pytest.mark.parametrize(
    "lost", [REPLACED["all"], REPLACED["folder"], REPLACED["lower"]], ids=["all", "folder", "lower"]
)
def test_keys_that_were_lost(tmp_path, pictures, lost):
    made = make(tmp_path, request(pictures))
    lost(tmp_path / "keys")
    with pytest.raises(StoreError, match="delete .* to have the stores made again") as caught:
        make(tmp_path, request(pictures))
    assert f"delete {made.folder} " in str(caught.value)


def test_a_public_key_without_its_private_key_is_not_replaced(tmp_path, pictures):
    make(tmp_path, request(pictures))
    (tmp_path / "keys" / "owner.key").unlink()
    assert not make(tmp_path, request(pictures)).created  # nobody need sign where nothing is made
    with pytest.raises(StoreExists, match=r"owner\.key\.pub exists already"):
        make(tmp_path, request(pictures, seed=1))


def test_the_permissions_of_a_folder_named_for_keys_stay(tmp_path, pictures):
    (tmp_path / "keys").mkdir(mode=0o755)
    make(tmp_path, request(pictures))
    assert stat.S_IMODE((tmp_path / "keys").stat().st_mode) == 0o755
    assert {stat.S_IMODE(file.stat().st_mode) for file in (tmp_path / "keys").glob("*.key")} == {0o600}


def interrupt(tmp_path, pictures, monkeypatch, stage, at):
    """Begin to seal in segments of 4 and stop after `at` images of a split."""
    monkeypatch.setattr(ingest, "sizes", lambda *_: (4, 2))

    def stop(split, done, total):
        if (split, done) == (stage, at):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(tmp_path, request(pictures), stop)


@pytest.mark.parametrize(("stage", "at", "kept"), [("train", 4, 4), ("train", 8, 8), ("test", 3, 12)])
def test_an_interrupted_ingest_is_completed(tmp_path, pictures, monkeypatch, stage, at, kept):
    interrupt(tmp_path, pictures, monkeypatch, stage, at)
    (left,) = listing(tmp_path / "root")
    segments = {path: data for path, data in content(tmp_path / "root").items() if "segment" in path.name}
    calls = []
    made = make(tmp_path, request(pictures), lambda *call: calls.append(call))
    assert made.created and made.folder.name == left
    assert len(segments) == 4 * kept // 4
    assert segments.items() <= content(tmp_path / "root").items()
    assert sum(1 for _ in calls) == len({call for call in calls})
    assert [call for call in calls if call[0] == "train"] == [("train", done, 9) for done in (4, 8, 9) if done > kept]
    np.testing.assert_array_equal(images_of(made), files_of(pictures).transpose(0, 3, 1, 2))
    same_sets(made, ensure_stores(tmp_path / "plain", request(pictures)))
    assert not make(tmp_path, request(pictures)).created


@pytest.mark.parametrize("replaced", ["*", "owner*", "lower*", "node-001*", "restorer-1*"])
def test_an_interrupted_ingest_under_other_keys_is_done_again(tmp_path, pictures, monkeypatch, replaced):
    interrupt(tmp_path, pictures, monkeypatch, "train", 8)
    for path in (tmp_path / "keys").glob(replaced):
        path.unlink()
    calls = []
    made = make(tmp_path, request(pictures), lambda *call: calls.append(call))
    assert made.created and calls[0] == ("train", 4, 9)
    np.testing.assert_array_equal(images_of(made), files_of(pictures).transpose(0, 3, 1, 2))


def broken(folder):
    (folder / "train" / "b" / "2.png").write_bytes(b"nonsense")


def uneven(folder):
    Image.new("RGB", (20, 10)).save(folder / "test" / "b" / "0.png")


def grey(folder):
    Image.new("L", (8, 8)).save(folder / "train" / "b" / "3.png")


BAD = {
    "corrupt": (broken, {}, "image 7 of split"),
    "first is corrupt": (lambda f: (f / "train/a/0.png").write_bytes(b""), {}, "image 0 of split"),
    "sizes": (uneven, {}, "set image-size"),
    "channels": (grey, {}, "1 channel"),
    "one class": (lambda f: [shutil.rmtree(f / split / "b") for split in ("train", "test")], {}, "one class"),
    "uppers": (lambda f: None, {"num_uppers": 5}, "uppers: 5"),
    "no such Upper": (lambda f: None, {"num_uppers": -1}, "uppers: "),
    "grid": (lambda f: None, {"patch_size": (3, 3), "stride": (3, 3)}, "do not tile"),
    "assignment": (lambda f: None, {"assignment": "random"}, "assignment"),
    "image size": (lambda f: None, {"image_size": (0, 8)}, "image-size"),
    "seed": (lambda f: None, {"seed": -1}, "seed"),
    "no dataset": (shutil.rmtree, {}, "no such folder"),
}


@pytest.mark.parametrize(("damage", "changes", "match"), BAD.values(), ids=BAD)
def test_a_bad_dataset_is_refused_as_for_plain_stores(tmp_path, pictures, monkeypatch, damage, changes, match):
    assert BAD
    monkeypatch.setattr(ingest, "sizes", lambda *_: (4, 2))
    whole = shutil.copytree(pictures, tmp_path / "whole")
    damage(pictures)
    with pytest.raises(PslError) as plain:
        ensure_stores(tmp_path / "plain", request(pictures, **changes))
    with pytest.raises(PslError, match=match) as sealed:
        make(tmp_path, request(pictures, **changes))
    assert sealed.type is plain.type
    assert issubclass(sealed.type, DataError | ConfigError)
    assert not (tmp_path / "root").exists() or listing(tmp_path / "root") == []
    shutil.rmtree(pictures, ignore_errors=True)
    shutil.copytree(whole, pictures)
    assert make(tmp_path, request(pictures)).created


def test_a_full_disk_is_an_error_and_what_it_leaves_is_completed(tmp_path, pictures, monkeypatch):
    make(tmp_path, request(pictures, seed=1))
    create, count = ingest.DISK.create, []

    def full(path, mode=0o644):
        count.append(path)
        if len(count) > 9:
            raise StoreUnreachable("no space left")
        return create(path, mode)

    with monkeypatch.context() as patch:
        patch.setattr(ingest.DISK, "create", full)
        with pytest.raises(StoreUnreachable):
            make(tmp_path, request(pictures))
    made = make(tmp_path, request(pictures))
    assert made.created
    np.testing.assert_array_equal(images_of(made), files_of(pictures).transpose(0, 3, 1, 2))


def correct(made: StoreSet, who: str, *changes: tuple[int, int]) -> int:
    author = keyfile.load(made.keys / f"{who}.key")
    return LabelBook(made.folder).relabel(manifests.load(made.folder).manifest, author, changes, "misread")


def test_corrected_labels_are_used_and_the_old_ones_can_be_had(tmp_path, pictures):
    made = make(tmp_path, request(pictures))
    assert (made.manifest.labels_version, made.note) == (0, "")
    assert correct(made, "restorer-2", (1, 1)) == 1
    once = make(tmp_path, request(pictures))
    assert (once.created, once.manifest.labels_version) == (False, 1)
    assert once.note.startswith("labels: version 1, 1 image relabelled in all, last by restorer-2 on 20")
    assert correct(made, "owner", (1, 0), (11, 0), (10, 1)) == 2
    twice = make(tmp_path, request(pictures))
    assert twice.manifest.labels_version == 2
    assert twice.note.startswith("labels: version 2, 3 images relabelled in all, last by owner on 20")
    begun = [0] * 5 + [1] * 4 + [0, 0, 1]
    assert made.labels.tolist() == begun
    assert once.labels.tolist() == [0, 1, *begun[2:]]
    assert twice.labels.tolist() == [*begun[:10], 1, 0]
    for version, expected in enumerate((made, once, twice)):
        then = make(tmp_path, request(pictures), labels_version=version)
        assert then.manifest == expected.manifest
        assert then.note == expected.note
        np.testing.assert_array_equal(then.labels, expected.labels)
    with pytest.raises(LabelError, match="version 3 is missing") as caught:
        make(tmp_path, request(pictures), labels_version=3)
    assert "delete" not in str(caught.value)


# Each process says that it is ready and waits for a word; the callback shows that the maker was in the middle.
TOGETHER = """
import sys; from pathlib import Path; from psl_flower.data.sealed_set import *
r = StoreRequest(dataset=sys.argv[2], patch_size=(4, 4), stride=(4, 4))
root = Path(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
print(ensure_sealed(root / "root", r, root / "keys").created)
"""


def test_two_processes_at_once_make_one_set(tmp_path, pictures):
    both = [
        subprocess.Popen(
            [sys.executable, "-c", TOGETHER, str(tmp_path), str(pictures)], cwd=ROOT, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )
        for _ in range(2)
    ]  # fmt: skip
    for process in both:
        assert process.stdout.readline() == "ready\n"
    for process in both:
        process.stdin.write("go\n")
        process.stdin.flush()
    assert sorted(process.communicate(timeout=60)[0].strip() for process in both) == ["False", "True"]
    made = make(tmp_path, request(pictures))
    assert not made.created
    np.testing.assert_array_equal(images_of(made), files_of(pictures).transpose(0, 3, 1, 2))


def unwritable(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    config = RunConfig(max_train=20, max_test=5, workspace=str(tmp_path / "workspace"))
    folder, _, _ = store_request(config).locate(tmp_path / "locked" / "stores")
    folder.with_name(f".{folder.name}.lock").mkdir(parents=True)
    return {
        "workspace is in a file": config.replace(workspace=str(tmp_path / "file" / "deeper")),
        "nobody may write": config.replace(workspace="/proc/nowhere"),
        "no lock": config.replace(workspace=str(tmp_path / "locked")),
        "keys are a file": config.replace(keys=str(tmp_path / "file")),
        "keys are in a file": config.replace(keys=str(tmp_path / "file" / "keys")),
    }


@pytest.mark.parametrize(
    "where",
    ["workspace is in a file", "nobody may write", "no lock", "keys are a file", "keys are in a file"],
)
def test_what_cannot_be_written_is_one_error(tmp_path, where):
    with pytest.raises(PslError) as caught:
        prepare_stores(unwritable(tmp_path)[where])
    assert type(caught.value) is not PslError
    assert str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_workspace_that_may_only_be_read(tmp_path):
    (tmp_path / "stores").mkdir(mode=0o500)
    with pytest.raises(StoreError, match="cannot make the stores"):
        prepare_stores(RunConfig(max_train=20, max_test=5, workspace=str(tmp_path)))


def owned(tmp_path, **changes):
    values = {"dataset": str(tmp_path / "sealed"), "workspace": str(tmp_path / "workspace")}
    return RunConfig(**values | {"keys": str(tmp_path / "keys")} | changes)


def test_an_owners_dataset(tmp_path, owners):
    world, source = owners
    found = prepare_stores(owned(tmp_path, owner=str(world.owner.public)))
    assert (found.created, found.folder, found.owner) == (False, world.out, str(world.owner.public))
    assert found.labels.tolist() == source.all_labels
    assert found.manifest.class_names == source.class_names
    units = source.images["train"] / 255
    np.testing.assert_allclose(found.manifest.mean, units.mean(axis=(0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(found.manifest.std, units.std(axis=(0, 1, 2)), rtol=1e-12)
    with pytest.raises(WrongNodeKey):
        found.open(0)
    for node in world.nodes:
        keyfile.save(node, tmp_path / "keys" / f"{node.name}.key")
    np.testing.assert_array_equal(images_of(found), source.all_NCHW)


def test_an_owners_dataset_needs_the_lowers_key(tmp_path, owners):
    world, _ = owners
    fingerprint = world.lower.public.fingerprint
    for keys in ("", str(tmp_path / "no-keys"), str(world.out)):
        with pytest.raises(ConfigError, match=f"sealed to Lower {fingerprint}, .* the setting keys"):
            prepare_stores(owned(tmp_path, keys=keys))


def test_an_owners_dataset_with_labels_in_clear(tmp_path):
    world, source = World(tmp_path / "sealed"), ArraySource()
    world.seal(source, world.plan(lower=None))
    assert prepare_stores(owned(tmp_path, keys="")).labels.tolist() == source.all_labels


def test_another_owner_is_refused(tmp_path, owners):
    world, _ = owners
    stranger = World(tmp_path / "stranger").owner.public
    with pytest.raises(WrongOwner):
        prepare_stores(owned(tmp_path, owner=str(stranger)))
    prepare_stores(owned(tmp_path))  # trusts the first one seen ...
    signed = manifests.load(world.out)
    forged = World(tmp_path / "forged", owner=world.owner.generate(Role.OWNER, "owner"), lower=world.lower)
    forged.seal(ArraySource(train=6, test=3))
    other = manifests.load(forged.out).manifest
    taken = {"dataset": signed.manifest.dataset, "owner": str(forged.owner.public)}
    replaced = type(other)(**{name: getattr(other, name) for name in other.__struct_fields__} | taken)
    (world.out / manifests.FILE).write_bytes(manifests.sign(replaced, forged.owner).data)
    with pytest.raises(WrongOwner, match="signed by another owner before"):  # ... from then on
        prepare_stores(owned(tmp_path))


def test_older_states_than_seen_are_refused(tmp_path, owners):
    world, _ = owners
    prepare_stores(owned(tmp_path))
    old = (world.out / manifests.FILE).read_bytes()
    world.seal(ArraySource(train=2, test=1, seed=1), append=True)
    LabelBook(world.out).relabel(world.signed.manifest, world.restorers[0], [(0, 2)], "misread")
    assert prepare_stores(owned(tmp_path)).manifest.labels_version == 2
    (world.out / "labels" / "000002.psl").unlink()
    with pytest.raises(LabelError, match="version 2 was seen before"):
        prepare_stores(owned(tmp_path))
    (world.out / manifests.FILE).write_bytes(old)
    with pytest.raises(StaleManifest):
        prepare_stores(owned(tmp_path))
    assert prepare_stores(owned(tmp_path, workspace=str(tmp_path / "newcomer"))).manifest.num_samples == 9


CONTRADICTIONS = [
    {"image_size": (8, 8)},
    {"patch_size": (4, 4)},
    {"patch_size": (2, 2), "stride": (1, 1)},
    {"uppers": 4},
    {"max_train": 5},
    {"max_test": 1},
    {"fit": "pad"},
    {"assignment": "round-robin"},
    {"stores": "plain"},
]


@pytest.mark.parametrize("changes", CONTRADICTIONS, ids="-".join)
def test_settings_that_contradict_the_owner_are_refused(tmp_path, changes):
    assert CONTRADICTIONS
    world = World(tmp_path / "sealed")
    world.seal(ArraySource(shape=(4, 8, 1)), world.plan())
    keyfile.save(world.lower, tmp_path / "keys" / "lower.key")
    agreeing = owned(tmp_path, image_size=(4, 8), patch_size=(2, 2), stride=(2, 2), uppers=2)
    assert prepare_stores(agreeing).manifest.patch_size == (2, 2)
    with pytest.raises(ConfigError, match=next(reversed(changes)).replace("_", "-")):
        prepare_stores(owned(tmp_path, **changes))


def test_images_appended_later_train_and_test(tmp_path):
    """Two generations, so two ranges of each split: both are trained on and tested on, with their own pixels."""
    world = World(tmp_path / "sealed")
    first, second = (ArraySource(train, test, shape=(8, 8, 1), seed=train) for train, test in ((6, 3), (4, 2)))
    plan = world.plan(patch=(4, 4))
    world.seal(first, plan)
    keys = tmp_path / "keys"
    for identity in (world.lower, *world.nodes):
        keyfile.save(identity, keys / f"{identity.name}.key")
    began = prepare_stores(owned(tmp_path))
    world.seal(second, plan, append=True)
    stores = prepare_stores(owned(tmp_path))
    manifest = stores.manifest
    assert manifest.splits == {"train": ((0, 6), (9, 13)), "test": ((6, 9), (13, 15))}
    assert manifest.source != began.manifest.source
    images, train, test = images_of(stores), manifest.samples_of("train"), manifest.samples_of("test")
    for split, numbers in (("train", train), ("test", test)):
        expected = np.concatenate([first.images[split], second.images[split]]).transpose(0, 3, 1, 2)
        np.testing.assert_array_equal(images[numbers], expected)
        labels = [label for source in (first, second) for _, label in source.samples(split)]
        assert stores.labels[numbers].tolist() == labels
    units = images[train] / 255
    np.testing.assert_allclose((manifest.mean, manifest.std), ([units.mean()], [units.std()]), rtol=1e-12)

    config = owned(tmp_path, batch_size=5, rounds=1, evaluate_batch_size=4)
    federation = Federation(config, stores, tmp_path / "states", small=True)
    order = federation.driver.task.order
    assert sorted(sample for step in range(2) for sample in order.samples(step)) == train.tolist()
    predicted = federation.run(stop_step=2)
    assert predicted.sample.tolist() == test.tolist()
    assert predicted.label.tolist() == stores.labels[test].tolist()

    # A run that began before goes on with labels that the new images do not have.
    with pytest.raises(LabelError, match="6 of 15 images were added after label version 0"):
        prepare_stores(owned(tmp_path), labels_version=0)


def test_positions_that_a_rotation_moved_train(tmp_path):
    """The owner drops a node; its positions go to others, by no method that a setting could name."""
    world = World(tmp_path / "sealed", nodes=[Identity.generate(Role.NODE, f"node{m}") for m in range(4)])
    source = ArraySource(6, 3, shape=(8, 8, 1))
    world.seal(source, world.plan(patch=(4, 4)))
    keys = tmp_path / "keys"
    for identity in (world.lower, *world.nodes):
        keyfile.save(identity, keys / f"{identity.name}.key")
    rotate(world.out, world.owner, world.places, Changes(drop_nodes=(1,)))
    stores = prepare_stores(owned(tmp_path))
    assert stores.manifest.num_uppers == 3
    # The dropped node's folder is still there, and is not taken for a store.
    assert stores_beside(world.out, []) == [str(world.place(m)) for m in (0, 2, 3)]
    np.testing.assert_array_equal(images_of(stores)[:6], source.images["train"].transpose(0, 3, 1, 2))
    config = owned(tmp_path, batch_size=3, rounds=1, evaluate_batch_size=4)
    assert make_network(config, stores.manifest).assignment == stores.manifest.assignment
    Federation(config, stores, tmp_path / "states", small=True).run(stop_step=2)
