"""Sealed stores with a margin: what is kept, restored, appended and rotated, and what a manifest says of it."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest

from psl_flower.errors import ConfigError, ManifestError
from psl_flower.patches import PatchGrid
from psl_flower.sealed import authorisation
from psl_flower.sealed.audit import AuditLog
from psl_flower.sealed.manifest import ManifestGrid, fingerprint_of, sign
from psl_flower.sealed.restore import restore
from psl_flower.sealed.rotate import Changes, rotate
from psl_flower.sealed.verify import verify
from tests.vectors.sealed_support import ArraySource, World

GRID = PatchGrid(image_size=(6, 8), patch_size=(3, 4), stride=(3, 4), margin=2)
OLD, NEW = (ArraySource(5, 2, (6, 8, 3), seed=seed) for seed in (0, 1))
BOTH = np.concatenate([OLD.all_NCHW, NEW.all_NCHW])


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Return a dataset sealed with a margin of 2 pixels."""
    world = World(tmp_path / "sealed")
    world.seal(OLD, world.plan((3, 4), margin=2))
    return world


def restored(world: World) -> np.ndarray:
    log = AuditLog(world.out / "audit.log")
    images = range(world.signed.manifest.num_samples)
    return np.concatenate(list(restore(world.signed, world.places, world.restorers[:2], images, why="", log=log)))


def test_nodes_hold_what_lies_around_their_patches(world: World) -> None:
    manifest = world.signed.manifest
    assert (manifest.grid.margin, manifest.grid.patch, manifest.description.grid()) == (2, (3, 4), GRID)
    fields = GRID.split(OLD.all_NCHW)
    for upper in range(2):
        store = world.open(upper)
        assert store.meta.patch_shape == (3, 7, 8)
        assert (store.read(np.arange(7)) == fields[:, list(store.meta.positions)]).all()
        store.close()
    assert (restored(world) == OLD.all_NCHW).all()
    assert verify(world.places, world.signed).ok


def test_images_are_appended_with_the_margin_that_is_there(world: World) -> None:
    with pytest.raises(ConfigError, match="margin: 1 is given, but the dataset to append to was sealed with margin=2"):
        world.seal(NEW, world.plan((3, 4), margin=1), append=True)
    done = world.seal(NEW, append=True)
    assert (done.added, done.known) == (7, 0)
    assert (world.seal(OLD, append=True).added, world.seal(OLD, append=True).known) == (0, 7)
    assert (restored(world) == BOTH).all()
    train = np.concatenate([OLD.images["train"], NEW.images["train"]])
    pixels = world.signed.manifest.pixels
    assert pixels.count == train[..., 0].size
    assert pixels.sums == tuple(train.sum(axis=(0, 1, 2)).tolist())


def test_a_rotation_that_drops_a_node_keeps_the_margin(world: World) -> None:
    signed = rotate(world.out, world.owner, world.places, Changes(drop_nodes=(1,)))
    assert signed.manifest.grid.margin == 2
    found = restore(
        signed, world.places[:1], world.restorers[:2], range(7), why="", log=AuditLog(world.out / "audit.log")
    )
    assert (np.concatenate(list(found)) == OLD.all_NCHW).all()


def test_nodes_answer_a_restoration(world: World, tmp_path: Path) -> None:
    request = authorisation.authorise(world.signed, world.restorers[:2], [6, 0], why="")
    answers = [
        authorisation.answer(
            request, world.signed, world.open(m), world.nodes[m], AuditLog(tmp_path / f"node-{m}" / "audit.log")
        )
        for m in range(2)
    ]
    images = authorisation.open_answers(answers, request, world.signed, world.restorers[0])
    assert (images == OLD.all_NCHW[[6, 0]]).all()


def test_without_margin_a_manifest_is_as_before_there_were_any() -> None:
    plain, wide = (ManifestGrid.of(GRID.with_margin(margin), 3) for margin in (0, 2))
    known = {"image": [6, 8], "patch": [3, 4], "stride": [3, 4], "fit": "exact", "channels": 3}
    assert json.loads(msgspec.json.encode(plain)) == known
    assert json.loads(msgspec.json.encode(wide)) == known | {"margin": 2}
    assert wide.patch_grid == GRID
    names = {fingerprint_of(b"d" * 16, grid, (0, 1, 1, 0), 7) for grid in (plain, wide)}
    assert len(names) == 2


@pytest.mark.parametrize("margin", [-1, 6, 1 << 40])
def test_a_margin_that_cannot_be_is_refused(world: World, margin: int) -> None:
    manifest = world.signed.manifest
    wrong = msgspec.structs.replace(manifest, grid=msgspec.structs.replace(manifest.grid, margin=margin))
    with pytest.raises(ManifestError):
        sign(wrong, world.owner)
