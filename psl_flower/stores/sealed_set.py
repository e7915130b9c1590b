"""Sealed stores for a run: made from a dataset under the machine's demonstration keys, or an owner's own.

<root>/<slug>-<12 hex>/          as `psl ingest` writes it: manifest.psl, labels/, store-000/, ...
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import msgspec

from psl_flower.config import EMBEDDED
from psl_flower.data.account import FILE as ACCOUNT_FILE
from psl_flower.data.account import Account
from psl_flower.data.sources import ImageSource
from psl_flower.errors import ConfigError, DataError, KeyMismatch, LabelError, SourceChanged, StoreError, WrongOwner
from psl_flower.patches import PatchGrid
from psl_flower.patches.assignment import assign
from psl_flower.sealed import keyfile
from psl_flower.sealed import manifest as manifests
from psl_flower.sealed.identities import PublicIdentity, Role
from psl_flower.sealed.ingest import IngestPlan, ingest
from psl_flower.sealed.keyring import DEMO_RESTORERS, DemoKeys, KeyRing, demo_keys
from psl_flower.sealed.labels import Change, LabelBook, Labels
from psl_flower.sealed.manifest import SignedManifest
from psl_flower.sealed.newest_dataset import read_newest_dataset
from psl_flower.sealed.sealing import drop_committed, is_complete
from psl_flower.sealed.seen import SeenBook
from psl_flower.stores.grid_choice import grid_reason, request_grid
from psl_flower.stores.ingest import lock_set
from psl_flower.stores.store_set import StoreRequest, StoreSet
from psl_flower.system.files import disk_errors
from psl_flower.system.folders import make_ignored_folder
from psl_flower.text import OnProgress, counted, expanded


def is_sealed_dataset(dataset: str) -> bool:
    """Check if a dataset's name is a folder that `psl ingest` filled; the embedded dataset is not."""
    return dataset != EMBEDDED and os.path.isfile(expanded(dataset, "dataset") / manifests.FILE)


def ensure_sealed(
    root: Path,
    request: StoreRequest,
    keys: Path,
    progress: OnProgress | None = None,
    *,
    labels_version: int | None = None,
) -> StoreSet:
    """Return the sealed stores for a request, made first, or completed, under the demonstration keys in `keys`.

    The folder of all sets is made if missing, and so are keys. `progress` is as in
    `psl_flower.stores.ingest.ensure_stores`; the version of the labels is by default the newest.

    Raises
    ------
    PslError
        As `psl_flower.stores.ingest.ensure_stores` and `psl_flower.sealed.ingest.ingest`; StoreError if there are
        stores that were sealed under other keys.
    """
    folder, fingerprint, source = request.locate(root)
    with disk_errors(folder, "made", StoreError):
        make_ignored_folder(root)
        with lock_set(folder):
            # With a manifest it is whole, whatever was interrupted since, and may hold corrections of labels.
            created = not (folder / manifests.FILE).exists()
            if created:
                _fill(folder, request, source or request.open_source(), keys, progress)
    try:
        ring = KeyRing(keys)
        owners = [public for public, file in ring.public(Role.OWNER) if file.stem == "owner"]
        signed = read_newest_dataset(folder, SeenBook(), owners[0] if owners else None).signed
        if owners and not is_complete(folder):
            drop_committed(folder, owners[0])
        labels = _read_labels(folder, signed, ring)
    except (ConfigError, WrongOwner, LabelError) as error:
        raise StoreError(
            f"{error}; if the keys in {keys} were replaced, delete {folder} to have the stores made again"
        ) from error
    if labels_version is not None:
        labels = _read_labels(folder, signed, ring, labels_version)
    stores = _as_set(folder, signed, ring, labels, request.dataset, fingerprint, created=created)
    return dataclasses.replace(stores, grid_reason=grid_reason(folder, request))


def open_sealed_dataset(
    folder: Path, keys: Path, owner: str, seen: SeenBook, *, labels_version: int | None = None
) -> StoreSet:
    """Return the set in a folder that `psl ingest` filled; the stores themselves may be elsewhere.

    `keys` is the folder, or file, with the Lower's private key, if the labels are sealed. `owner` is the public key to
    trust, or a file with it; empty trusts the first one seen. `seen` refuses an older manifest than one seen before,
    and another owner. The version of the labels is by default the newest.

    Raises
    ------
    StoreError
        If manifest or labels are damaged, not the owner's, older than what was seen, or images were added since
        the version of the labels asked for.
    ConfigError
        If the Lower's key is needed and is not in `keys`.
    """
    signed = read_newest_dataset(folder, seen, keyfile.load_public(owner, Role.OWNER) if owner else None).signed
    manifest = signed.manifest
    ring = KeyRing(keys) if keys.exists() else None
    if manifest.lower and (ring is None or ring.find(PublicIdentity.parse(manifest.lower)) is None):
        raise ConfigError(
            f"{folder}: the labels are sealed to Lower {PublicIdentity.parse(manifest.lower).fingerprint}, whose "
            f"private key is not in {keys}; name the folder that holds it with the setting keys"
        )
    labels = _read_labels(folder, signed, ring)
    if labels_version is not None:
        labels = _read_labels(folder, signed, ring, labels_version)
    return _as_set(folder, signed, ring, labels, str(folder), manifest.description.fingerprint, created=False)


def _fill(folder: Path, request: StoreRequest, source: ImageSource, keys: Path, progress: OnProgress | None) -> None:
    grid = request_grid(folder, request, source)
    num_uppers = request.num_uppers or grid.num_patches
    assign(grid, num_uppers, request.assignment)  # refuses what cannot be before a key is made
    demo = demo_keys(keys, num_uppers)
    plan, images = demo_plan(request, grid, demo), request.sized(source)

    def account(*_: object) -> None:
        source.account().save(folder / ACCOUNT_FILE)

    try:
        try:
            ingest(images, folder, demo.owner, plan, progress=progress, on_read=account, seen=SeenBook())
        except (SourceChanged, KeyMismatch):
            # What an interrupted ingest under other keys left; the images are all still there.
            shutil.rmtree(folder)
            ingest(images, folder, demo.owner, plan, progress=progress, on_read=account, seen=SeenBook())
    except (ConfigError, DataError):
        # No later attempt could use it, unlike what a full disk or a kill leaves.
        shutil.rmtree(folder, ignore_errors=True)
        raise


def demo_plan(request: StoreRequest, grid: PatchGrid, keys: DemoKeys) -> IngestPlan:
    """Return how a request's images are cut by a grid, and sealed under demonstration keys."""
    return IngestPlan(
        patch_size=grid.patch_size, stride=grid.stride, nodes=keys.nodes, restorers=keys.restorers, fit=grid.fit,
        margin=grid.margin, threshold=len(DEMO_RESTORERS), assignment=request.assignment, lower=keys.lower.public,
    )  # fmt: skip


def _read_labels(folder: Path, signed: SignedManifest, ring: KeyRing | None, upto: int | None = None) -> Labels:
    sealed = signed.manifest
    lower = ring.find(PublicIdentity.parse(sealed.lower)) if ring is not None and sealed.lower else None
    return LabelBook(folder).read(sealed, lower, upto=upto)


def _as_set(
    folder: Path,
    signed: SignedManifest,
    ring: KeyRing | None,
    labels: Labels,
    dataset: str,
    source: str,
    *,
    created: bool,
) -> StoreSet:
    description = msgspec.structs.replace(
        signed.manifest.description, dataset=dataset, source=source, labels_version=labels.version
    )
    return StoreSet(
        folder=folder,
        description=description,
        labels=labels.labels_N,
        created=created,
        keys=ring.place if ring is not None else None,
        owner=str(signed.owner),
        note=_corrections(labels.history),
        epoch=signed.manifest.epoch,
        account=Account.load(folder / ACCOUNT_FILE),
    )


def _corrections(history: Sequence[Change]) -> str:
    """Return one line on what was relabelled; empty if nothing was."""
    made = [change for change in history if change.kind == "relabel"]
    if not made:
        return ""
    count = len({image for change in made for image, _, _ in change.changes})
    last = made[-1]
    return (
        f"labels: version {history[-1].version}, {counted(count, 'image')} relabelled in all, "
        f"last by {last.who} on {last.when[:10]}"
    )
