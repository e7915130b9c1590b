"""prepare_stores on a dataset that its owner sealed: whom it trusts, what it refuses, and what it trains on."""

from pathlib import Path

import numpy as np
import pytest

from psl_flower.cli.terminal import stores_beside
from psl_flower.config import RunConfig
from psl_flower.engine.build import Blueprint
from psl_flower.errors import ConfigError, LabelError, StaleManifest, WrongNodeKey, WrongOwner
from psl_flower.sealed import keyfile
from psl_flower.sealed import manifest as manifests
from psl_flower.sealed.identities import Identity, Role
from psl_flower.sealed.labels import LabelBook
from psl_flower.sealed.rotate import Changes, rotate
from psl_flower.sealed.seen import SeenBook
from psl_flower.stores.prepare import prepare_stores
from tests.engines import Federation
from tests.unit.tiny_pictures import images_of
from tests.vectors.sealed_support import ArraySource, World


@pytest.fixture
def owners(tmp_path):
    """Return an owner's dataset of 4x4 images for two nodes, and its source; the Lower's key is in keys/."""
    world, source = World(tmp_path / "sealed"), ArraySource(train=6, test=3)
    world.seal(source)
    keyfile.save(world.lower, tmp_path / "keys" / "lower.key")
    return world, source


def owned(tmp_path, **changes):
    values = {"dataset": str(tmp_path / "sealed"), "workspace": str(tmp_path / "workspace")}
    return RunConfig.of(**values | {"keys": str(tmp_path / "keys")} | changes)


def test_an_owners_dataset(tmp_path, owners):
    world, source = owners
    found = prepare_stores(owned(tmp_path, owner=str(world.owner.public)))
    assert (found.created, found.folder, found.owner) == (False, world.out, str(world.owner.public))
    assert found.labels.tolist() == source.all_labels
    assert found.description.class_names == source.class_names
    units = source.images["train"] / 255
    np.testing.assert_allclose(found.description.mean, units.mean(axis=(0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(found.description.std, units.std(axis=(0, 1, 2)), rtol=1e-12)
    with pytest.raises(WrongNodeKey):
        found.open(0)
    for node in world.nodes:
        keyfile.save(node, tmp_path / "keys" / f"{node.name}.key")
    np.testing.assert_array_equal(images_of(found), source.all_NCHW)


def test_an_owners_dataset_needs_the_lowers_key(tmp_path, owners):
    world, _ = owners
    fingerprint = world.lower.public.fingerprint
    for keys in ("", str(world.out)):
        with pytest.raises(ConfigError, match=f"sealed to Lower {fingerprint}, .* the setting keys"):
            prepare_stores(owned(tmp_path, keys=keys))
    with pytest.raises(ConfigError, match=r"no-keys: no such folder"):
        prepare_stores(owned(tmp_path, keys=str(tmp_path / "no-keys")))


def test_an_owners_dataset_with_labels_in_clear(tmp_path):
    world, source = World(tmp_path / "sealed"), ArraySource()
    world.seal(source, world.plan(lower=None))
    assert prepare_stores(owned(tmp_path, keys="")).labels.tolist() == source.all_labels
    with pytest.raises(ConfigError, match="stores: plain is given"):
        prepare_stores(owned(tmp_path, keys="", stores="plain"))


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


def test_older_states_than_seen_are_refused(tmp_path, owners, monkeypatch):
    world, _ = owners
    prepare_stores(owned(tmp_path))
    old = (world.out / manifests.FILE).read_bytes()
    world.seal(ArraySource(train=2, test=1, seed=1), append=True)
    LabelBook(world.out).relabel(world.signed.manifest, world.restorers[0], [(0, 2)], "misread")
    assert prepare_stores(owned(tmp_path)).description.labels_version == 2
    (world.out / "labels" / "000002.psl").unlink()
    with pytest.raises(LabelError, match="version 2 was seen before"):
        prepare_stores(owned(tmp_path))
    (world.out / manifests.FILE).write_bytes(old)
    with pytest.raises(StaleManifest):
        prepare_stores(owned(tmp_path))
    with pytest.raises(StaleManifest):  # whatever the workspace
        prepare_stores(owned(tmp_path, workspace=str(tmp_path / "another")))
    monkeypatch.setenv("PSL_STATE", str(tmp_path / "newcomer"))
    assert prepare_stores(owned(tmp_path)).description.num_samples == 9


def test_what_an_earlier_version_remembered_in_the_workspace_is_taken_over(tmp_path, owners, monkeypatch, capsys):
    world, _ = owners
    old = (world.out / manifests.FILE).read_bytes()
    world.seal(ArraySource(train=2, test=1, seed=1), append=True)
    workspace, state = Path(owned(tmp_path).run.workspace), tmp_path / "state"
    assert not SeenBook(workspace / "seen").check(world.signed)
    monkeypatch.setenv("PSL_STATE", str(state))
    (world.out / manifests.FILE).write_bytes(old)
    with pytest.raises(StaleManifest):
        prepare_stores(owned(tmp_path))
    assert capsys.readouterr().err == f"psl-flower: moved this user's state from {workspace / 'seen'} to {state}\n"
    assert not (workspace / "seen" / "seen.json").exists()
    with pytest.raises(StaleManifest):
        prepare_stores(owned(tmp_path))
    assert capsys.readouterr().err == ""


CONTRADICTIONS = [
    {"image_size": (8, 8)},
    {"patch_size": (4, 4)},
    {"patch_size": (2, 2), "stride": (1, 1)},
    {"uppers": 4},
    {"max_train": 5},
    {"max_test": 1},
    {"train_split": "train"},
    {"pixel_range": "0..4095"},
    {"leave_out": "notes"},
    {"fit": "pad"},
    {"margin": 1},
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
    assert prepare_stores(agreeing).description.patch_size == (2, 2)
    with pytest.raises(ConfigError, match=next(reversed(changes)).replace("_", "-")):
        prepare_stores(owned(tmp_path, **changes))


def test_a_run_takes_the_margin_of_an_owners_stores(tmp_path):
    world = World(tmp_path / "sealed")
    world.seal(ArraySource(6, 3, shape=(8, 8, 1)), world.plan(patch=(4, 4), margin=2))
    for identity in (world.lower, *world.nodes):
        keyfile.save(identity, tmp_path / "keys" / f"{identity.name}.key")
    config = owned(tmp_path, batch_size=3, rounds=1, shift=2, steps_per_round=2)
    stores = prepare_stores(config)
    assert (config.patches.margin, stores.description.margin) == (0, 2)
    assert prepare_stores(owned(tmp_path, margin=2)).description == stores.description
    with pytest.raises(ConfigError, match="margin: 1 is given, but .* holds stores made with 2"):
        prepare_stores(owned(tmp_path, margin=1))
    federation = Federation(config, stores, tmp_path / "states", small=True)
    federation.run(stop_step=2)
    wide = owned(tmp_path, shift=3)
    with pytest.raises(ConfigError, match="shift=3 reaches beyond the 2 pixels .* choose shift=2 or less"):
        Federation(wide, prepare_stores(wide), tmp_path / "others", small=True)


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
    manifest = stores.description
    assert manifest.splits == {"train": ((0, 6), (9, 13)), "test": ((6, 9), (13, 15))}
    assert manifest.source != began.description.source
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
    assert stores.description.num_uppers == 3
    # The dropped node's folder is still there, and is not taken for a store.
    assert stores_beside(world.out, []) == [str(world.place(m)) for m in (0, 2, 3)]
    assert [stores.store_path(m) for m in range(3)] == [world.place(m) for m in (0, 2, 3)]
    np.testing.assert_array_equal(images_of(stores)[:6], source.images["train"].transpose(0, 3, 1, 2))
    config = owned(tmp_path, batch_size=3, rounds=1, evaluate_batch_size=4)
    assert Blueprint(config, stores.description).network().assignment == stores.description.assignment
    Federation(config, stores, tmp_path / "states", small=True).run(stop_step=2)
