"""The keys of a demonstration's sealed set: one for each store; lost and replaced ones; permissions."""

import os
import shutil
import stat

import numpy as np
import pytest

from psl_flower.errors import StoreError, StoreExists, WrongNodeKey
from psl_flower.sealed.keyring import KeyRing
from psl_flower.stores.opening import open_store
from tests.unit.tiny_pictures import files_of, images_of, request_for
from tests.unit.tiny_sealed import make_sealed


def test_a_key_opens_its_own_store_alone(tmp_path, pictures):
    made = make_sealed(tmp_path, request_for(pictures))
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
    made = make_sealed(tmp_path, request_for(pictures))
    lost(tmp_path / "keys")
    make_sealed(tmp_path, request_for(pictures, seed=1))
    with pytest.raises(StoreError, match="delete .* to have the stores made again") as caught:
        make_sealed(tmp_path, request_for(pictures))
    assert f"delete {made.folder} " in str(caught.value)
    shutil.rmtree(made.folder)
    again = make_sealed(tmp_path, request_for(pictures))
    assert again.created
    np.testing.assert_array_equal(images_of(again), files_of(pictures).transpose(0, 3, 1, 2))


@pytest.mark.parametrize(
    "lost", [REPLACED["all"], REPLACED["folder"], REPLACED["lower"]], ids=["all", "folder", "lower"]
)
def test_keys_that_were_lost(tmp_path, pictures, lost):
    made = make_sealed(tmp_path, request_for(pictures))
    lost(tmp_path / "keys")
    with pytest.raises(StoreError, match="delete .* to have the stores made again") as caught:
        make_sealed(tmp_path, request_for(pictures))
    assert f"delete {made.folder} " in str(caught.value)


def test_a_public_key_without_its_private_key_is_not_replaced(tmp_path, pictures):
    make_sealed(tmp_path, request_for(pictures))
    (tmp_path / "keys" / "owner.key").unlink()
    assert not make_sealed(tmp_path, request_for(pictures)).created  # nobody need sign where nothing is made
    with pytest.raises(StoreExists, match=r"owner\.key\.pub exists already"):
        make_sealed(tmp_path, request_for(pictures, seed=1))


def test_the_permissions_of_a_folder_named_for_keys_stay(tmp_path, pictures):
    (tmp_path / "keys").mkdir(mode=0o755)
    make_sealed(tmp_path, request_for(pictures))
    assert stat.S_IMODE((tmp_path / "keys").stat().st_mode) == 0o755
    assert {stat.S_IMODE(file.stat().st_mode) for file in (tmp_path / "keys").glob("*.key")} == {0o600}


def test_no_file_descriptor_is_left(tmp_path, pictures):
    """A simulated node opens its store anew every round, in a process that lives on."""
    made = make_sealed(tmp_path, request_for(pictures))

    def opened():
        made.open(0).close()
        return len(os.listdir("/proc/self/fd"))

    opened()
    assert opened() == opened()
