"""Who can open what: a node's key one store, enough restorers the root, and no weak or substituted key anything."""

from __future__ import annotations

import msgspec
import pytest

from psl_flower import errors
from psl_flower.sealed import manifest as manifests
from psl_flower.sealed.identities import Identity, PublicIdentity, Role
from psl_flower.sealed.labels import LabelBook
from psl_flower.sealed.rotate import Changes, rotate
from psl_flower.sealed.shares import open_root_as_restorers
from psl_flower.sealed.store import SealedStore
from psl_flower.sealed.suite import digest
from tests.security.sealed_bytes import HEADER, SEGMENT
from tests.vectors.sealed_support import World


def test_a_node_key_opens_exactly_one_store(world: World) -> None:
    for node in [*world.nodes, Identity.generate(Role.NODE, "stranger")]:
        opened = []
        for upper in range(2):
            try:
                SealedStore.open(world.place(upper), node, owner=world.owner.public).close()
                opened.append(upper)
            except (errors.WrongNodeKey, errors.WrongStore):
                continue
        assert opened == ([world.nodes.index(node)] if node in world.nodes else [])


def test_a_foreign_node_key_cannot_unwrap(world: World) -> None:
    """Naming another node in the manifest, even signed by the owner, opens nothing."""
    stranger = Identity.generate(Role.NODE, "stranger")
    manifest = world.signed.manifest
    entry = msgspec.structs.replace(manifest.stores[0], node=str(stranger.public))
    forged = manifests.sign(msgspec.structs.replace(manifest, stores=(entry, manifest.stores[1])), world.owner)
    with pytest.raises(errors.WrongNodeKey):
        SealedStore.open(world.place(0), stranger, manifest=forged)


def test_a_wrong_data_key_is_known_before_it_is_used(world: World) -> None:
    manifest = world.signed.manifest
    entry = msgspec.structs.replace(manifest.stores[0], key_commitment=bytes(32))
    forged = manifests.sign(msgspec.structs.replace(manifest, stores=(entry, manifest.stores[1])), world.owner)
    with pytest.raises(errors.KeyMismatch):
        SealedStore.open(world.place(0), world.nodes[0], manifest=forged)


def test_a_header_that_the_key_did_not_make(world: World) -> None:
    """Even an owner's signature over a header does not replace its MAC: it commits the header to the key."""
    path, manifest = world.place(0) / SEGMENT, world.signed.manifest
    data = bytearray(path.read_bytes())
    data[HEADER - 1] ^= 1
    path.write_bytes(data)
    part = msgspec.structs.replace(manifest.stores[0].segments[0], header=digest(bytes(data[:HEADER])))
    entry = msgspec.structs.replace(manifest.stores[0], segments=(part,))
    forged = manifests.sign(msgspec.structs.replace(manifest, stores=(entry, manifest.stores[1])), world.owner)
    with pytest.raises(errors.KeyMismatch, match="header"):
        SealedStore.open(world.place(0), world.nodes[0], manifest=forged)


def test_shares(world: World) -> None:
    manifest, (alice, bob, carol) = world.signed.manifest, world.restorers
    root = open_root_as_restorers(manifest, [alice, bob])
    for chosen in ([bob, carol], [carol, alice], [alice, bob, carol], [alice, bob, alice]):
        assert open_root_as_restorers(manifest, chosen).reveal() == root.reveal()
    for few in ([alice], [alice, alice], []):
        with pytest.raises(errors.TooFewShares):
            open_root_as_restorers(manifest, few)
    with pytest.raises(errors.UnknownRestorer):
        open_root_as_restorers(manifest, [alice, Identity.generate(Role.RESTORER, "eve")])
    with pytest.raises(errors.WrongRole, match="expected the key of a restorer, "):
        open_root_as_restorers(manifest, [alice, world.owner])
    with pytest.raises(errors.WrongRole, match="the public key of a node, got that of an owner"):
        PublicIdentity.parse(str(world.owner.public), Role.NODE)


def test_wrong_shares_are_named(world: World) -> None:
    manifest, (alice, bob, _) = world.signed.manifest, world.restorers
    members = manifest.restorers
    box = members[0].share
    for share, error in (
        (box[:40] + bytes([box[40] ^ 1]) + box[41:], errors.WrongShare),
        (members[1].share, errors.WrongShare),
        (alice.public.seal(bytes(32), b""), errors.WrongShare),
    ):
        changed = (msgspec.structs.replace(members[0], share=share), *members[1:])
        with pytest.raises(error, match="alice"):
            open_root_as_restorers(msgspec.structs.replace(manifest, restorers=changed), [alice, bob])
    moved = (msgspec.structs.replace(members[0], commitment=bytes(32)), *members[1:])
    with pytest.raises(errors.WrongShare, match="alice"):
        open_root_as_restorers(msgspec.structs.replace(manifest, restorers=moved), [alice, bob])


def test_a_dropped_restorer_is_refused(world: World) -> None:
    rotate(world.out, world.owner, world.places, Changes(drop_restorers=("bob",)))
    with pytest.raises(errors.RevokedRestorer, match="bob"):
        open_root_as_restorers(world.signed.manifest, world.restorers[:2])
    with pytest.raises(errors.RevokedRestorer, match="bob"):
        LabelBook(world.out).relabel(world.signed.manifest, world.restorers[1], [(0, 1)], "")
    open_root_as_restorers(world.signed.manifest, [world.restorers[0], world.restorers[2]])


@pytest.mark.parametrize(
    "point",
    [
        bytes(32),
        b"\1" + bytes(31),
        bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
        bytes.fromhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
        bytes.fromhex("ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
        bytes.fromhex("edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
        bytes.fromhex("eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
    ],
)
def test_low_order_x25519_points(world: World, point: bytes) -> None:
    good = world.nodes[0].public
    with pytest.raises(errors.WeakKey):
        PublicIdentity(Role.NODE, good.sign_key, point)
    # As the encapsulated key of a box it opens nothing either.
    entry = world.signed.manifest.stores[0]
    forged = msgspec.structs.replace(entry, key_for_node=point + entry.key_for_node[32:])
    manifest = msgspec.structs.replace(world.signed.manifest, stores=(forged, world.signed.manifest.stores[1]))
    with pytest.raises(errors.WrongNodeKey):
        SealedStore.open(world.place(0), world.nodes[0], manifest=manifests.sign(manifest, world.owner))


@pytest.mark.parametrize(
    "point",
    [
        "0100000000000000000000000000000000000000000000000000000000000000",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "0000000000000000000000000000000000000000000000000000000000000080",
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
    ],
)
def test_low_order_ed25519_points(world: World, point: str) -> None:
    with pytest.raises(errors.WeakKey):
        PublicIdentity(Role.OWNER, bytes.fromhex(point), world.owner.public.seal_key)
