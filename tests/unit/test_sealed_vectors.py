"""Frozen files of version 1 stay readable, by this program and by a second reader written from the page."""

from __future__ import annotations

import base64
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from psl_flower.sealed import keyfile
from psl_flower.sealed import manifest as manifests
from psl_flower.sealed.audit import AuditLog
from psl_flower.sealed.bundle import receive
from psl_flower.sealed.identities import Identity
from psl_flower.sealed.labels import LabelBook
from psl_flower.sealed.restore import restore
from psl_flower.sealed.store import SealedStore
from psl_flower.sealed.verify import verify
from tests.vectors import second_reader as second
from tests.vectors.make_sealed_vectors import PASSPHRASE, values

VECTORS = Path(__file__).parents[1] / "vectors" / "sealed-v1"
EXPECTED = json.loads((VECTORS / "expected.json").read_text())
IMAGES = np.stack([np.frombuffer(base64.b64decode(text), np.uint8) for text in EXPECTED["images"]]).reshape(-1, 3, 4, 6)


@pytest.fixture
def frozen(tmp_path: Path) -> Path:
    """A copy; version control does not keep the mode of key files."""
    shutil.copytree(VECTORS, tmp_path / "frozen")
    for file in (tmp_path / "frozen" / "keys").glob("*.key"):
        file.chmod(0o600)
    return tmp_path / "frozen"


def identity(frozen: Path, name: str) -> Identity:
    return keyfile.load(frozen / "keys" / f"{name}.key", lambda _: PASSPHRASE)


def test_values() -> None:
    assert values() == json.loads((VECTORS / "values.json").read_text())


def test_this_program_reads_the_frozen_files(frozen: Path) -> None:
    signed = manifests.load(frozen, identity(frozen, "owner").public)
    places = [frozen / "store-000", frozen / "store-001"]
    assert verify(places, signed).ok
    log = AuditLog(frozen / "audit.log")
    assert [(e.action, e.images) for e in log.read(signed.manifest)] == [("restore", (5, 24))]
    people = [identity(frozen, name) for name in ("alice-protected", "carol")]
    found = np.concatenate(list(restore(signed, places, people, range(27), why="", log=log)))
    assert (found == IMAGES).all()
    for name in ("lower", "bob", "owner"):
        assert LabelBook(frozen).read(signed.manifest, identity(frozen, name)).labels_N.tolist() == EXPECTED["labels"]
    receive(frozen / "node-000.pslbundle", identity(frozen, "node0"), frozen / "new", owner=signed.owner)
    store = SealedStore.open(frozen / "new", identity(frozen, "node0"))
    positions = list(store.meta.positions)
    assert (store.read(np.arange(27)) == signed.manifest.description.grid().split(IMAGES)[:, positions]).all()


def test_a_second_reader_opens_the_frozen_stores() -> None:
    manifest = second.manifest_of(VECTORS)
    assert second.manifest_of(VECTORS / "store-001") == manifest
    rows, cols = (size // patch for size, patch in zip((4, 6), manifest["grid"]["patch"], strict=True))
    for entry in manifest["stores"]:
        folder = VECTORS / f"store-{entry['upper']:03d}"
        private = second.secret_of(VECTORS / "keys" / f"node{entry['upper']}.key")[1]
        patches = second.patches_of(folder, manifest, entry, second.key_as_node(manifest, entry, private))
        assert len(patches) == 27
        for image, plain in zip(IMAGES, patches, strict=True):
            held = np.frombuffer(plain, np.uint8).reshape(len(entry["positions"]), 3, 2, 2)
            for position, patch in zip(entry["positions"], held, strict=True):
                row, col = divmod(position, cols)
                assert row < rows
                assert (image[:, 2 * row : 2 * row + 2, 2 * col : 2 * col + 2] == patch).all()


def test_a_second_reader_restores_and_reads_labels_bundle_and_log() -> None:
    manifest, keys = second.manifest_of(VECTORS), VECTORS / "keys"
    root = second.root_as_owner(manifest, second.secret_of(keys / "owner.key")[1])
    protected = second.secret_of(keys / "alice-protected.key", PASSPHRASE)
    assert protected == second.secret_of(keys / "alice.key")
    shares = {"alice": protected[1], "carol": second.secret_of(keys / "carol.key")[1]}
    assert second.root_as_restorers(manifest, shares) == root
    for entry in manifest["stores"]:
        private = second.secret_of(keys / f"node{entry['upper']}.key")[1]
        assert second.key_under_root(manifest, entry, root) == second.key_as_node(manifest, entry, private)
    lower = second.secret_of(keys / "lower.key")[1]
    assert second.labels_of(VECTORS, manifest, manifest["lower"], lower) == EXPECTED["labels"]
    files = second.bundle_of((VECTORS / "node-000.pslbundle").read_bytes(), second.secret_of(keys / "node0.key")[1])
    assert files == {path.name: path.read_bytes() for path in (VECTORS / "store-000").iterdir()}
    assert [entry["images"] for entry in second.audit_of(VECTORS, manifest)] == [[5, 24]]


@pytest.mark.parametrize("margin", [0, 1])
def test_a_second_reader_opens_a_new_store(tmp_path: Path, margin: int) -> None:
    from tests.vectors.sealed_support import ArraySource, World

    world, source = World(tmp_path / "out"), ArraySource(6, 1)
    world.seal(source, world.plan(margin=margin))
    manifest = second.manifest_of(world.out)
    data_key = second.key_as_node(manifest, manifest["stores"][1], world.nodes[1].secret.reveal()[32:])
    found = second.patches_of(world.place(1), manifest, manifest["stores"][1], data_key)
    assert found == [part.tobytes() for part in world.open(1).read(np.arange(7))]
    # The inner parts are the patches; nothing but a margin that is there is said of it.
    assert manifest["grid"].get("margin") == (margin or None)
    side, (first, *_) = 2 + 2 * margin, manifest["stores"][1]["positions"]
    fields = np.stack([np.frombuffer(part, np.uint8).reshape(-1, 1, side, side) for part in found])
    inner = fields[:, 0, :, margin : margin + 2, margin : margin + 2]
    y, x = divmod(first, 2)
    assert (inner == source.all_NCHW[:, :, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2]).all()
