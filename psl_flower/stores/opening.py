"""Opens a patch store of any kind."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from psl_flower.errors import ConfigError, StoreError, WrongNodeKey
from psl_flower.patches.store import PatchStore, store_folder
from psl_flower.sealed import keyfile
from psl_flower.sealed import manifest as manifests
from psl_flower.sealed.folders import open_folder
from psl_flower.sealed.identities import Identity, PublicIdentity, Role
from psl_flower.sealed.keyring import KeyRing
from psl_flower.sealed.manifest import SignedManifest
from psl_flower.sealed.matching import place_of
from psl_flower.sealed.seen import SeenBook
from psl_flower.sealed.store import SealedStore
from psl_flower.sealed.url_folder import shown
from psl_flower.stores.plain import PATCHES_FILE, PlainStore


def open_store(
    place: str | Path,
    keys: KeyRing | None = None,
    upper: int | None = None,
    *,
    owner: str = "",
    seen: SeenBook | None = None,
) -> PatchStore:
    """Open the patch store at a place.

    Parameters
    ----------
    place : str or Path
        Folder; for a sealed store also any URL that fsspec opens.
    keys : KeyRing, optional
        Where the node's private key is; needed for a sealed store.
    upper : int, optional
        Whose store it should be; by default that of any key in `keys`.
    owner : str
        Public key of the owner to trust, or a file with it; empty leaves it to `seen`.
    seen : SeenBook, optional
        Refuses an older state of a sealed store than one seen before, and another owner.

    Raises
    ------
    StoreError
        If there is no such store, it is damaged, or sealed to another node.
    ConfigError
        If it is sealed and no key is given.
    """
    remote = "://" in str(place)
    if not remote and not os.path.isdir(place):
        raise StoreError(f"{place}: no such patch store")
    if remote or os.path.exists(Path(place) / manifests.FILE):
        return open_sealed(place, keys, upper, owner=owner, seen=seen).store
    if os.path.exists(Path(place) / PATCHES_FILE):
        return PlainStore(Path(place))
    raise StoreError(f"{place}: the folder holds no patch store (none of {PATCHES_FILE}, {manifests.FILE})")


def open_of_set(folder: Path, upper: int, keys: KeyRing | None, *, owner: str = "") -> PatchStore:
    """Open an Upper's store of a whole set in one folder; parameters and errors are those of `open_store`."""
    if os.path.exists(folder / manifests.FILE):
        return open_sealed_of_set(folder, upper, keys, owner=owner).store
    return open_store(store_folder(folder, upper))


@dataclass(frozen=True, slots=True)
class Opened:
    """A sealed store that its node has opened, the manifest that it was held to, the node's key, and its memory."""

    store: SealedStore
    signed: SignedManifest
    node: Identity
    seen: SeenBook | None


def open_sealed(
    place: str | Path,
    keys: KeyRing | None,
    upper: int | None = None,
    *,
    owner: str = "",
    seen: SeenBook | None = None,
) -> Opened:
    """Open a sealed store as its node; parameters and errors are those of `open_store`."""
    if keys is None:
        raise ConfigError(f"{shown(str(place))}: is sealed; name the node's private key (key= in --node-config)")
    trusted = keyfile.load_public(owner, Role.OWNER) if owner else None
    folder = open_folder(place)
    signed = manifests.load_copy(folder, trusted)
    stores = signed.manifest.stores
    if upper is not None and not 0 <= upper < len(stores):
        raise StoreError(f"{folder.name}: holds no store of Upper {upper}; there are {len(stores)}")
    wanted = [PublicIdentity.parse(s.node, Role.NODE) for s in stores if upper in (None, s.upper)]
    for public, _ in keys.public(Role.NODE):
        if public in wanted:
            node = keys.find(public)
            assert node is not None
            store = SealedStore.open(place, node, owner=trusted, seen=seen, manifest=signed)
            return Opened(store, signed, node, seen)
    whose = f"Upper {upper}" if upper is not None else "any of its nodes"
    raise WrongNodeKey(
        f"{folder.name}: {keys.place} holds no private key of {whose}; get the right key, or the right store"
    )


def open_sealed_of_set(folder: Path, upper: int, keys: KeyRing | None, *, owner: str = "") -> Opened:
    """Open an Upper's sealed store of a whole set in one folder; parameters and errors are those of `open_store`."""
    manifest = manifests.load(folder, keyfile.load_public(owner, Role.OWNER) if owner else None).manifest
    return open_sealed(place_of(folder, manifest, upper), keys, upper, owner=owner)
