"""The keys of one epoch: a random root, and a random data key for each store, wrapped twice.

    root  --HKDF-->  key that wraps the data key of store m        (for k restorers together, and the owner)
    data key of store m  --HPKE-->  node m                         (for that node alone)

A commitment to each key, derived from it, lies in the manifest, so that a wrong key is known before it is
used.
"""

from __future__ import annotations

from psl_flower.errors import KeyMismatch, WrongNodeKey
from psl_flower.sealed.identities import Identity, PublicIdentity, Role
from psl_flower.sealed.manifest import Manifest, StoreEntry
from psl_flower.sealed.secret import Secret
from psl_flower.sealed.suite import ID_BYTES, Purpose, context, derive, equal, unwrap, wrap


def root_commitment(root: Secret, dataset: bytes, epoch: int) -> bytes:
    """Value by which a root is recognised."""
    return derive(root, dataset, Purpose.ROOT_COMMITMENT, epoch).reveal()


def root_for_owner(root: Secret, owner: PublicIdentity, dataset: bytes, epoch: int) -> bytes:
    """Seal the root to the owner, who needs it to append images and to rotate."""
    return owner.seal(root.reveal(), context(Purpose.ROOT_FOR_OWNER, dataset, epoch))


def open_root_as_owner(manifest: Manifest, owner: Identity) -> Secret:
    """Open the root as the owner; raises KeyMismatch if this is another owner's manifest."""
    info = context(Purpose.ROOT_FOR_OWNER, manifest.dataset, manifest.epoch)
    plain = owner.expect(Role.OWNER).open(manifest.root_for_owner, info)
    if plain is None:
        raise KeyMismatch(f"owner {owner.name!r} cannot open this dataset's root key: it belongs to another owner")
    root = Secret(plain)
    check_root(root, manifest)
    return root


def check_root(root: Secret, manifest: Manifest) -> None:
    """Check a root against its commitment; raises KeyMismatch if it is another one."""
    if not equal(root_commitment(root, manifest.dataset, manifest.epoch), manifest.root_commitment):
        raise KeyMismatch("the root key is not that of this dataset and epoch")


def new_store(
    root: Secret, dataset: bytes, epoch: int, upper: int, positions: tuple[int, ...], node: PublicIdentity
) -> tuple[StoreEntry, Secret]:
    """Draw a store's name and data key, and wrap the key for its node and under the root."""
    store, data_key = Secret.random(ID_BYTES).reveal(), Secret.random()
    bound = (dataset, epoch, store, upper)
    with derive(root, dataset, Purpose.STORE_KEY_UNDER_ROOT, *bound) as wrapping:
        under_root = wrap(wrapping, data_key.reveal(), context(Purpose.STORE_KEY_UNDER_ROOT, *bound))
    entry = StoreEntry(
        upper=upper,
        store=store,
        positions=positions,
        node=str(node),
        key_for_node=node.seal(data_key.reveal(), context(Purpose.STORE_KEY_FOR_NODE, *bound)),
        key_under_root=under_root,
        key_commitment=_commitment(data_key, store),
    )
    return entry, data_key


def open_as_node(manifest: Manifest, entry: StoreEntry, node: Identity, where: str) -> Secret:
    """Unwrap a store's data key as its node.

    Raises
    ------
    WrongNodeKey
        If the store was made for another node.
    KeyMismatch
        If the key is not the one committed to.
    """
    info = context(Purpose.STORE_KEY_FOR_NODE, manifest.dataset, manifest.epoch, entry.store, entry.upper)
    plain = node.expect(Role.NODE).open(entry.key_for_node, info)
    if plain is None:
        raise WrongNodeKey(f"{where}: node {node.name!r} cannot open this store: it was made for another node")
    return _checked(Secret(plain), entry, where)


def open_under_root(manifest: Manifest, entry: StoreEntry, root: Secret) -> Secret:
    """Unwrap a store's data key by the root; raises KeyMismatch if the root or the wrapped key is not the right one."""
    bound = (manifest.dataset, manifest.epoch, entry.store, entry.upper)
    with derive(root, manifest.dataset, Purpose.STORE_KEY_UNDER_ROOT, *bound) as wrapping:
        plain = unwrap(wrapping, entry.key_under_root, context(Purpose.STORE_KEY_UNDER_ROOT, *bound))
    if plain is None:
        raise KeyMismatch(f"store {entry.upper}: the root key does not open its data key")
    return _checked(Secret(plain), entry, f"store {entry.upper}")


def open_keys(manifest: Manifest, owner: Identity) -> list[Secret]:
    """Unwrap the data keys of all stores as the owner, in order; raises KeyMismatch as `open_root_as_owner`."""
    with open_root_as_owner(manifest, owner) as root:
        return [open_under_root(manifest, entry, root) for entry in manifest.stores]


def _checked(data_key: Secret, entry: StoreEntry, where: str) -> Secret:
    if not equal(_commitment(data_key, entry.store), entry.key_commitment):
        raise KeyMismatch(f"{where}: the data key is not the one that the manifest commits to")
    return data_key


def _commitment(data_key: Secret, store: bytes) -> bytes:
    return derive(data_key, store, Purpose.STORE_KEY_COMMITMENT).reveal()
