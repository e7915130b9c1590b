"""psl doctor: what it says of a plain and a sealed store, and of each that is wrong; all are real."""

import pytest

from psl_flower.cli.main import main
from psl_flower.config import RunConfig
from psl_flower.doctor import stores
from psl_flower.sealed import keyfile
from psl_flower.sealed.identities import Role
from psl_flower.stores.ingest import ensure_stores
from psl_flower.stores.store_set import store_request
from tests.unit.doctor_support import levels, only_failed
from tests.vectors.sealed_support import ArraySource, World


def test_good_store(plain):
    found = stores.check_store(str(plain.store_path(1)), None, None, "", plain.folder / "manifest.json")
    assert levels(found) == ["ok", "ok"]
    assert "Upper 1" in found[0].found


def test_damaged_or_missing_store(plain, tmp_path):
    assert "no such patch store" in only_failed(stores.check_store(str(tmp_path / "none"), None, None, "", None))
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in plain.store_path(0).iterdir():
        (copy / file.name).write_bytes(file.read_bytes()[:-1])
    assert "damaged" in only_failed(stores.check_store(str(copy), None, None, "", None))


def test_a_store_that_may_not_be_looked_at(closed_folder):
    found = stores.check_store(str(closed_folder / "store-000"), None, None, "", None)
    assert "no such patch store" in only_failed(found)


def test_store_of_another_set(plain, tmp_path):
    other = ensure_stores(tmp_path, store_request(RunConfig.of(max_train=9, max_test=4, uppers=2)))
    found = stores.check_store(str(plain.store_path(0)), None, None, "", other.folder / "manifest.json")
    assert "the store holds dataset" in only_failed(found)
    found = stores.check_store(str(plain.store_path(0)), None, None, "", tmp_path / "none.json")
    assert "none.json" in only_failed(found)


@pytest.fixture(scope="module")
def sealed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sealed")
    for role, name in (("owner", "owner"), ("node", "node0"), ("node", "node1"), ("owner", "other")):
        assert main(["keygen", role, "--out", str(folder / f"{name}.key")]) == 0
    ingested = main([
        "ingest", "digits", "--out", str(folder / "out"), "--owner-key", str(folder / "owner.key"), "--max-train", "8",
        "--max-test", "4", "--node-key", str(folder / "node0.key.pub"), "--node-key", str(folder / "node1.key.pub"),
        "--json",
    ])  # fmt: skip
    assert ingested == 0
    return folder


def test_sealed_store(sealed):
    store, key, owner = str(sealed / "out" / "store-000"), sealed / "node0.key", str(sealed / "owner.key.pub")
    assert levels(stores.check_store(store, key, None, owner, None)) == ["ok"]
    for manifest in (sealed / "out", sealed / "out" / "manifest.psl"):
        assert levels(stores.check_store(store, key, None, owner, manifest)) == ["ok", "ok"]
    assert "key=" in only_failed(stores.check_store(store, None, None, owner, None))
    assert "key or store is another node's" in only_failed(
        stores.check_store(store, sealed / "node1.key", None, owner, None)
    )
    assert "no private key of" in only_failed(stores.check_store(store, sealed / "other.key", None, owner, None))
    said = only_failed(stores.check_store(store, key, None, str(sealed / "other.key.pub"), None))
    other = keyfile.load_public(str(sealed / "other.key.pub"), Role.OWNER).fingerprint
    assert "signed by owner" in said and f"(--owner is {other})" in said
    for wrong, words in (
        (sealed / "node0.key.pub", "got that of a node"),
        (sealed / "none.pub", "neither a public key"),
    ):
        said = only_failed(stores.check_store(store, key, None, str(wrong), None))
        assert said.startswith("--owner: ") and words in said
    only_failed(stores.check_store(store, sealed / "missing.key", None, owner, None))


def test_a_sealed_store_of_another_dataset(sealed, tmp_path):
    world = World(tmp_path / "other")
    world.seal(ArraySource())
    found = stores.check_store(str(sealed / "out" / "store-000"), sealed / "node0.key", None, "", world.out)
    assert "the store holds dataset" in only_failed(found)


def test_sealed_record_that_was_changed(sealed, tmp_path):
    source = sealed / "out" / "store-001"
    copy = tmp_path / "store-001"
    copy.mkdir()
    for file in source.iterdir():
        content = bytearray(file.read_bytes())
        if "-segment-" in file.name:
            content[len(content) // 2] ^= 1
        (copy / file.name).write_bytes(content)
    only_failed(stores.check_store(str(copy), sealed / "node1.key", None, "", None))


def test_what_only_a_store_is_checked_with_is_not_passed_over(tmp_path, capsys):
    assert main(["doctor", "--key", str(tmp_path / "nokey"), "--owner", str(tmp_path / "noowner")]) == 2
    assert "--key and --owner: checked with a store alone; name it with --store" in " ".join(
        capsys.readouterr().err.split()
    )
