"""Rotation: a new epoch with new keys for everything, re-encrypted; the way to end somebody's access.

Re-wrapping the old keys would end nothing: who had them could still open the old records. After a rotation
the new files open only with new keys; copies of the old files stay readable with the old keys,
which is why the manifest lists them as remains.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np

from psl_flower.errors import ConfigError, SourceChanged, UnknownRestorer
from psl_flower.patches.assignment import assign
from psl_flower.patches.store import read_all_positions
from psl_flower.sealed import data_keys, envelope
from psl_flower.sealed.audit import FILE as AUDIT_FILE
from psl_flower.sealed.audit import AuditLog
from psl_flower.sealed.folder import Folder
from psl_flower.sealed.folders import open_folder
from psl_flower.sealed.identities import Identity, PublicIdentity, Role
from psl_flower.sealed.ingest import check_nodes
from psl_flower.sealed.labels import LabelBook
from psl_flower.sealed.manifest import (
    DRAFT_FILE,
    LOCK_FILE,
    Dropped,
    Manifest,
    Remains,
    SignedManifest,
    segment_file,
)
from psl_flower.sealed.matching import match_all
from psl_flower.sealed.newest_dataset import read_newest_dataset
from psl_flower.sealed.restore import close_all, open_all
from psl_flower.sealed.sealing import Draft, Sealing, drop_draft, is_committed, load_draft, new_epoch
from psl_flower.sealed.secret import Secret
from psl_flower.sealed.seen import SeenBook
from psl_flower.sealed.store import SealedStore
from psl_flower.system.files import DISK, Disk, locked
from psl_flower.text import OnProgress

_BATCH = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """Changes made by a rotation, in addition to new keys."""

    drop_restorers: tuple[str, ...] = ()
    add_restorers: Mapping[str, PublicIdentity] = field(default_factory=dict)  #: New restorers by name.
    threshold: int = 0  #: New threshold; 0 keeps the old one.
    nodes: Mapping[int, PublicIdentity] = field(default_factory=dict)  #: Upper -> new node key.
    drop_nodes: tuple[int, ...] = ()  #: Uppers whose positions the others take over.
    lower: PublicIdentity | None = None


def rotate(
    out: Path,
    owner: Identity,
    places: Sequence[str | Path],
    changes: Changes,
    *,
    delete_old: bool = False,
    progress: OnProgress | None = None,
    disk: Disk = DISK,
    seen: SeenBook | None = None,
) -> SignedManifest:
    """Re-encrypt all stores under a new epoch; an interrupted rotation is continued.

    New files go beside the old ones, in all places where stores are; with `delete_old` the old epoch's files are
    removed afterwards. `seen` refuses an older folder than one seen before, and remembers the new generation.

    Raises
    ------
    StaleManifest, ForkedManifest, LabelError, AuditError
        If the folder differs from what was seen; nothing is written then.
    ConfigError, UnknownRestorer
        If the changes do not fit.
    SourceChanged
        If an ingest was interrupted, or a rotation with other changes.
    StoreError
        If a store is missing or damaged.
    """
    with locked(out / LOCK_FILE):
        current = read_newest_dataset(out, seen, owner.expect(Role.OWNER).public).signed
        draft = load_draft(out, owner.public)
        if draft is not None and is_committed(draft, current):
            # Only what follows the commit was interrupted.
            same = draft.source == _source(current.manifest.previous, changes)
            if same and delete_old:
                _delete(current.manifest, _old_folders(out, places, changes, disk))
            drop_draft(out, disk)
            if same:
                return current
            draft = None
        if draft is not None and draft.source != _source(current.digest, changes):
            raise SourceChanged(f"{out}: finish the interrupted ingest or rotation first, or remove {out / DRAFT_FILE}")
        # The old folders by their old Upper; who stays keeps the folder.
        old = match_all(places, current.manifest, disk)
        staying = [folder for folder, entry in old if entry.upper not in changes.drop_nodes]
        with data_keys.open_root_as_owner(current.manifest, owner) as old_root:
            stores = open_all(current, old, old_root, check_copies=False)
        try:
            draft, keys = _begin(out, owner, changes, draft, current, seen, disk)
            labels = None
            if current.manifest.labels_version >= 0:
                labels = LabelBook(out, disk).read(current.manifest, owner).labels_N
            with closing(Sealing(out, draft, owner, keys, staying, snapshot=labels, disk=disk)) as sealing:
                signed = _reencrypt(sealing, stores, current.manifest.num_samples, progress)
        finally:
            close_all(stores)
        read_newest_dataset(out, seen, owner.public)  # remember it before older generations are removed
        if delete_old:
            _delete(signed.manifest, [folder for folder, _ in old])
        drop_draft(out, disk)
        return signed


def _begin(
    out: Path,
    owner: Identity,
    changes: Changes,
    draft: Draft | None,
    current: SignedManifest,
    seen: SeenBook | None,
    disk: Disk,
) -> tuple[Draft, list[Secret]]:
    """Return the draft to re-encrypt into, interrupted or new and logged, and the keys of its stores."""
    if draft is not None:
        return draft, data_keys.open_keys(draft.manifest, owner)
    manifest, keys = _next_epoch(current, changes, owner)
    AuditLog(out / AUDIT_FILE, disk).append(current, [owner], "rotate", (), _describe(changes), seen=seen)
    return Draft(manifest=manifest, source=_source(current.digest, changes)), keys


def _reencrypt(
    sealing: Sealing, stores: Sequence[SealedStore], total: int, progress: OnProgress | None
) -> SignedManifest:
    sealing.save()
    while (done := sealing.done) < total:
        samples_B = np.arange(done, min(total, done + min(_BATCH, sealing.room)), dtype=np.int64)
        sealing.add(read_all_positions(stores, samples_B))
        if progress is not None:
            progress("rotate", sealing.done, total)
    return sealing.commit()


def _next_epoch(current: SignedManifest, changes: Changes, owner: Identity) -> tuple[Manifest, list[Secret]]:
    old = current.manifest
    epoch, generation = old.epoch + 1, old.generation + 1
    nodes, gone = _nodes(old, changes)
    assignment = old.assignment if len(nodes) == len(old.stores) else assign(old.grid.patch_grid, len(nodes))
    restorers, left = _restorers(old, changes)
    threshold = changes.threshold or min(old.threshold, max(1, len(restorers)))
    if restorers and threshold < old.threshold and not changes.threshold:
        raise ConfigError(
            f"restorers left: {len(restorers)}, fewer than the threshold {old.threshold}; add others with --restorer, "
            "or set --threshold"
        )
    dropped = [Dropped(name=n, public=p, epoch=epoch, generation=generation) for n, p in (*left, *gone)]
    remains = [
        Remains(
            epoch=old.epoch,
            upper=s.upper,
            files=tuple(segment_file(old.epoch, part.segment) for part in s.segments),
        )
        for s in old.stores
    ]
    fields, keys = new_epoch(old.dataset, epoch, owner.public, assignment, nodes, threshold, restorers)
    manifest = msgspec.structs.replace(
        old,
        generation=generation,
        previous=current.digest,
        created=envelope.now(),
        lower=str(changes.lower) if changes.lower else old.lower,
        dropped=(*old.dropped, *dropped),
        remains=(*old.remains, *remains),
        **fields,
    )
    return manifest, keys


def _nodes(old: Manifest, changes: Changes) -> tuple[list[PublicIdentity], list[tuple[str, str]]]:
    uppers = [store.upper for store in old.stores]
    unknown = [m for m in (*changes.drop_nodes, *changes.nodes) if m not in uppers]
    if unknown or set(changes.drop_nodes) & set(changes.nodes) or len(set(changes.drop_nodes)) == len(uppers):
        raise ConfigError(
            f"nodes to drop or replace: expected different ones of Upper 0 to {len(uppers) - 1}, one to stay"
        )
    nodes = {s.upper: changes.nodes.get(s.upper) or PublicIdentity.parse(s.node, Role.NODE) for s in old.stores}
    gone = [
        (f"node-{s.upper}", s.node) for s in old.stores if s.upper in changes.drop_nodes or s.upper in changes.nodes
    ]
    check_nodes({m: node for m, node in nodes.items() if m not in changes.drop_nodes})
    staying = [nodes[m] for m in uppers if m not in changes.drop_nodes]
    return staying, [(name, public) for name, public in gone if public not in {str(node) for node in staying}]


def _restorers(old: Manifest, changes: Changes) -> tuple[dict[str, PublicIdentity], list[tuple[str, str]]]:
    names = {member.name: member.public for member in old.restorers}
    unknown = [name for name in changes.drop_restorers if name not in names]
    if unknown:
        raise UnknownRestorer(f"no restorer is called {unknown[0]!r}; there are: {', '.join(names)}")
    stay = {n: PublicIdentity.parse(p, Role.RESTORER) for n, p in names.items() if n not in changes.drop_restorers}
    again = {dropped.public for dropped in old.dropped} | {names[name] for name in changes.drop_restorers}
    for name, public in changes.add_restorers.items():
        if name in stay or str(public) in again:
            raise ConfigError(f"restorer {name!r}: the name is taken, or the key was dropped before; make a new key")
        stay[name] = public
    return stay, [(name, names[name]) for name in changes.drop_restorers]


def _source(previous: bytes, changes: Changes) -> str:
    return f"rotation of {previous.hex()}: {_describe(changes)}"


def _describe(changes: Changes) -> str:
    parts = [f"drop restorer {name}" for name in changes.drop_restorers]
    parts += [f"add restorer {name} {public.fingerprint}" for name, public in changes.add_restorers.items()]
    parts += [f"new key for node {m} {public.fingerprint}" for m, public in sorted(changes.nodes.items())]
    parts += [f"drop node {m}" for m in changes.drop_nodes]
    parts += [f"threshold {changes.threshold}"] if changes.threshold else []
    parts += [f"new lower {changes.lower.fingerprint}"] if changes.lower else []
    return "; ".join(parts) or "new keys"


def _old_folders(out: Path, places: Sequence[str | Path], changes: Changes, disk: Disk) -> list[Folder]:
    """Return where old files are after the commit: a dropped node's folder is no place of the new manifest."""
    dropped = sorted(path for path in out.glob("store-[0-9]*") if path.is_dir()) if changes.drop_nodes else []
    return [open_folder(place, disk) for place in (*places, *dropped)]


def _delete(manifest: Manifest, folders: Sequence[Folder]) -> None:
    old = {file for remains in manifest.remains for file in remains.files}
    for folder in folders:
        for name in folder.list():
            if name in old:
                folder.remove(name)
