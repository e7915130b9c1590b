"""A node's patch store: can be opened with the node's key, read, and is the one that a run expects."""

from __future__ import annotations

import os
from pathlib import Path

from psl_flower.errors import ConfigError, ForeignSegment, IdentityError, PslError, WrongNodeKey, WrongOwner, WrongStore
from psl_flower.patches.description import StoreSetDescription
from psl_flower.patches.store import PatchStore
from psl_flower.sealed import keyfile
from psl_flower.sealed import manifest as manifests
from psl_flower.sealed.identities import Role
from psl_flower.sealed.keyring import KeyRing
from psl_flower.sealed.url_folder import shown
from psl_flower.seeds import evenly_spaced
from psl_flower.stores.opening import open_store
from psl_flower.system.findings import Finding, failed, ok
from psl_flower.text import counted

_READ = 64


def check_store(
    place: str, key: Path | None, passphrase_file: Path | None, owner: str, manifest: Path | None
) -> list[Finding]:
    """Return findings about one store.

    Parameters
    ----------
    place : str
        Folder or URL.
    key, passphrase_file : Path, optional
        The node's private key (or a folder of keys), for a sealed store, and its passphrase.
    owner : str
        Public key of the owner to trust, or a file with it; may be empty.
    manifest : Path, optional
        What this one should belong to: manifest.psl of a sealed dataset, or manifest.json of a run or of plain stores.
    """
    what = "store"
    try:
        named = keyfile.load_public(owner, Role.OWNER) if owner else None
    except PslError as error:
        return [failed("owner", f"--owner: {error}", "give the owner's public key, or its file, such as owner.key.pub")]
    try:
        keys = KeyRing(key, passphrase_file) if key is not None else None
        store = open_store(place, keys, owner=owner)
    except WrongStore as error:
        return [failed(what, f"{shown(place)}: key or store is another node's ({error})", _advice(error))]
    except WrongOwner as error:
        do = "compare fingerprints with the owner before you trust another key: psl verify shows that of a manifest"
        trusted = f" (--owner is {named.fingerprint})" if named is not None else ""
        return [failed(what, f"{error}{trusted}", do)]
    except PslError as error:
        return [failed(what, str(error), _advice(error))]
    try:
        count = len(store)
        # Some from all over: reading checks every record of a sealed store.
        store.read(evenly_spaced(count, _READ))
        meta = store.meta
        positions = ", ".join(map(str, meta.positions))
        said = f"{shown(place)}: Upper {meta.upper}, positions {positions}, {counted(count, 'image')}"
        return [ok(what, said), *([] if manifest is None else _belongs(store, manifest))]
    except PslError as error:
        return [failed(what, str(error), "get the store from the owner again; `psl verify` names every damaged record")]
    finally:
        store.close()


def _belongs(store: PatchStore, path: Path) -> list[Finding]:
    what = "manifest"
    try:
        sealed = os.path.isdir(path) or path.suffix == Path(manifests.FILE).suffix
        described = manifests.load(path).manifest.description if sealed else StoreSetDescription.load(path)
    except PslError as error:
        do = f"give the {manifests.FILE} of the owner, or the run's: runs/NAME/manifest.json on the server"
        return [failed(what, str(error), do)]
    if problem := described.mismatch(store.meta, store.meta.upper):
        return [failed(what, f"{path}: the store {problem}", "get this set's newest state of the store from the owner")]
    return [ok(what, f"{path}: the store is the one that it describes")]


def _advice(error: PslError) -> str:
    if isinstance(error, WrongNodeKey | ForeignSegment):
        return "give this node's own key, or ask the owner for the store that was sealed to it"
    if isinstance(error, IdentityError | ConfigError):
        return "correct key or passphrase-file"
    return "check the path and that this user may read it; else get the store from the owner again"
