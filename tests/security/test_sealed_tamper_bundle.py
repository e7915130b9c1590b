"""A bundle is received whole, by its node alone, or leaves nothing behind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from psl_flower import errors
from psl_flower.sealed.bundle import pack, receive
from psl_flower.sealed.identities import Identity, Role
from psl_flower.sealed.store import SealedStore
from tests.vectors.sealed_support import World


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
