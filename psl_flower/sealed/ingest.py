"""From images to sealed stores: a new dataset, more images, or what an interrupted ingest left."""

from __future__ import annotations

import math
import secrets
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from psl_flower.errors import ConfigError, DataError, SourceChanged, StoreExists, StoreNotFound
from psl_flower.patches import PatchGrid
from psl_flower.patches.assignment import assign
from psl_flower.patches.cutting import SPLITS, PixelSums, Source, cut, explain_sizes, first_image
from psl_flower.patches.grid import Fit
from psl_flower.patches.store import store_folder
from psl_flower.sealed import data_keys, envelope
from psl_flower.sealed import manifest as manifests
from psl_flower.sealed.contents import OnlyNew, read_contents, write_contents
from psl_flower.sealed.folder import Folder
from psl_flower.sealed.folders import open_folder
from psl_flower.sealed.identities import Identity, PublicIdentity, Role
from psl_flower.sealed.manifest import DRAFT_FILE, LOCK_FILE, Manifest, ManifestGrid, SignedManifest, StoreEntry
from psl_flower.sealed.matching import place_of
from psl_flower.sealed.newest_dataset import read_newest_dataset
from psl_flower.sealed.numbering import secret_orders
from psl_flower.sealed.sealing import Draft, Sealing, drop_draft, is_committed, load_draft, new_epoch, sizes
from psl_flower.sealed.secret import Secret
from psl_flower.sealed.seen import SeenBook, opened
from psl_flower.sealed.suite import ID_BYTES
from psl_flower.system.files import DISK, Disk, locked
from psl_flower.system.folders import make_folder
from psl_flower.text import OnProgress

OnRead = Callable[[Manifest, Mapping[tuple[str, int], int]], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class IngestPlan:
    """How to cut and for whom to seal; raises ConfigError if one node is to hold the stores of two Uppers."""

    #: (height, width) in pixels.
    patch_size: tuple[int, int]
    stride: tuple[int, int]
    nodes: tuple[PublicIdentity, ...]  #: One per Upper.
    #: Restorers by name; if empty, only the owner can ever restore.
    restorers: Mapping[str, PublicIdentity] = field(default_factory=dict)
    threshold: int = 1  #: Number of restorers needed.
    #: See `PatchGrid` and `assign`.
    fit: Fit = "exact"
    margin: int = 0
    assignment: str = "scatter"
    lower: PublicIdentity | None = None  #: Seal the labels to this Lower server.
    #: Number the images of each split in an order that needs the owner's key, so that numbers do not tell labels.
    secret_order: bool = False

    def __post_init__(self) -> None:
        check_nodes(dict(enumerate(self.nodes)))


def check_nodes(nodes: Mapping[int, PublicIdentity]) -> None:
    """Check that no node is to hold the stores of two Uppers; raises ConfigError if one is."""
    first: dict[bytes, int] = {}
    for upper, public in nodes.items():
        other = first.setdefault(public.seal_key, upper)
        if other != upper:
            raise ConfigError(
                f"--node-key: Upper {other} and Upper {upper} have the same key, so one node would hold patches of "
                "both, in the end whole images; give each node its own key, or make fewer Uppers"
            )


@dataclass(frozen=True, slots=True)
class Ingested:
    """What an ingest did."""

    signed: SignedManifest  #: The new manifest; if no image was new, the one that was there.
    #: Images there before, added now, and kept from a draft.
    before: int
    added: int
    resumed: int
    known: int = 0  #: Images of the source that were sealed before.
    #: The numbers of those of them that have another label there, with the label that they have in the source.
    relabelled: Mapping[int, int] = field(default_factory=dict)


def ingest(
    source: Source,
    out: Path,
    owner: Identity,
    plan: IngestPlan,
    *,
    places: Mapping[int, str] | None = None,
    append: bool = False,
    progress: OnProgress | None = None,
    disk: Disk = DISK,
    on_read: OnRead | None = None,
    seen: SeenBook | None = None,
) -> Ingested:
    """Seal a dataset into one store per node, or continue an interrupted ingest of it.

    Parameters
    ----------
    source : Source
        The images.
    out : Path
        The owner's folder, for manifest, labels and those stores that `places` does not put elsewhere.
    owner : Identity
        Signs, and can open everything.
    plan : IngestPlan
        How; if images are appended, all of it is taken from the manifest.
    places : Mapping[int, str], optional
        Upper -> folder or fsspec URL of its store.
    append : bool, optional
        Add the images not sealed yet: a new generation.
    progress : callable, optional
        Called with (split, done, total) now and then.
    on_read : callable, optional
        Called when all images have been read, before any of them count as sealed: with the draft's manifest, and how
        many images of each split and label were passed over, being there already.
    seen : SeenBook, optional
        Refuses an older folder than one seen before, and remembers the new generation.

    Raises
    ------
    StaleManifest, ForkedManifest, LabelError, AuditError
        If the folder differs from what was seen; nothing is written then.
    StoreExists
        If the folder holds a dataset and `append` is not given.
    SourceChanged
        If an interrupted ingest had other images or another plan.
    ConfigError, DataError, StoreError
        See the subclasses.
    """
    owner.expect(Role.OWNER)
    make_folder(out, disk=disk)
    with locked(out / LOCK_FILE):
        draft = load_draft(out, owner.public)
        current = read_newest_dataset(out, seen, owner.public).signed if (out / manifests.FILE).exists() else None
        if draft is not None and current is None:
            with opened(seen) as memory:
                memory.check_unknown(draft.manifest.dataset, str(out))
        if draft is not None and current is not None and is_committed(draft, current):
            # Only the draft's removal was interrupted.
            drop_draft(out, disk)
            if draft.source == source.fingerprint:
                return Ingested(current, current.manifest.num_samples, 0, 0)
            draft = None
        begun = draft is None
        draft, keys = _begin(out, source, owner, plan, append, draft, current)
        folders = _folders(out, draft.manifest, places or {}, disk)
        _check_places(folders, draft.manifest)
        with closing(Sealing(out, draft, owner, keys, folders, disk=disk)) as sealing:
            sealing.save()
            try:
                done = _seal(out, source, owner, draft, sealing, folders, current, progress, disk, on_read)
            except (ConfigError, DataError):
                # If images are refused before one is sealed, nothing is left to continue: a corrected command is new.
                if begun and sealing.done == (current.manifest.num_samples if current is not None else 0):
                    drop_draft(out, disk)
                raise
        read_newest_dataset(out, seen, owner.public)  # to remember it
        drop_draft(out, disk)
        return done


def _begin(
    out: Path,
    source: Source,
    owner: Identity,
    plan: IngestPlan,
    append: bool,
    draft: Draft | None,
    current: SignedManifest | None,
) -> tuple[Draft, list[Secret]]:
    """Return the draft to seal into, an interrupted one or a new one, and the keys of its stores."""
    if draft is not None:
        _check_same(draft, source, plan, out, append)
        return draft, data_keys.open_keys(draft.manifest, owner)
    if current is None:
        if append:
            raise ConfigError(f"{out} holds no dataset to append to")
        return _first_generation(source, owner, plan)
    if not append:
        raise StoreExists(f"{out} holds a dataset already; --append adds images to it")
    draft = _next_generation(current, source, plan)
    return draft, data_keys.open_keys(draft.manifest, owner)


def _seal(
    out: Path,
    source: Source,
    owner: Identity,
    draft: Draft,
    sealing: Sealing,
    folders: list[Folder],
    current: SignedManifest | None,
    progress: OnProgress | None,
    disk: Disk,
    on_read: OnRead | None,
) -> Ingested:
    """Seal the images that are not sealed yet, and commit."""
    manifest = draft.manifest
    before = current.manifest.num_samples if current is not None else 0
    resumed = sealing.done - before
    held = read_contents(out, current, owner, folders) if current is not None else []
    new = OnlyNew(out, current, owner, held, resumed) if current is not None else None
    start = 0 if new is not None else resumed
    grid, channels = manifest.grid.patch_grid, manifest.grid.channels
    counts = {split: source.num_samples(split) for split in SPLITS}
    orders = secret_orders(manifest, owner, counts) if draft.secret_order else None
    for chunk in cut(source, grid, channels, start=start, orders=orders, room=lambda: sealing.room, progress=progress):
        fresh = new(chunk) if new is not None else chunk
        if len(fresh.labels_B):
            sealing.add_chunk(fresh)
    known = new.passed if new is not None else Counter[tuple[str, int]]()
    if on_read is not None:
        on_read(manifest, known)
    if current is not None and sealing.done == before:
        return Ingested(current, before, 0, 0, known=known.total(), relabelled=new.relabelled if new else {})
    contents = held + sealing.new_contents
    if len(contents) == sealing.done:  # unlike after a draft of an earlier version
        write_contents(out, manifest, owner, contents, disk)
    signed = sealing.commit()
    return Ingested(
        signed,
        before,
        signed.manifest.num_samples - before - resumed,
        resumed,
        known=known.total(),
        relabelled=new.relabelled if new is not None else {},
    )


def _folders(out: Path, manifest: Manifest, places: Mapping[int, str], disk: Disk) -> list[Folder]:
    uppers = [store.upper for store in manifest.stores]
    unknown = [upper for upper in places if upper not in uppers]
    if unknown:
        raise ConfigError(
            f"--out {unknown[0]}=PLACE: there is no Upper {unknown[0]}; there are {len(uppers)}, from 0 on"
        )
    return [open_folder(places.get(s.upper) or _place_beside(out, manifest, s), disk) for s in manifest.stores]


def _place_beside(out: Path, manifest: Manifest, store: StoreEntry) -> Path:
    """Return a store's folder beside the manifest: of its number, or where its segments are already."""
    if not store.segments:
        return store_folder(out, store.upper)
    try:
        return place_of(out, manifest, store.upper)
    except StoreNotFound:
        raise _elsewhere(str(out), store) from None


def _elsewhere(where: str, store: StoreEntry) -> StoreNotFound:
    return StoreNotFound(
        f"{where} does not hold what was sealed for Upper {store.upper} before; "
        f"if that lies elsewhere, name the place with --out {store.upper}=PLACE"
    )


def _check_places(folders: list[Folder], manifest: Manifest) -> None:
    """Check that the stores are where earlier segments are, so that none is continued in another place."""
    for folder, store in zip(folders, manifest.stores, strict=True):
        for part in store.segments[-1:]:
            try:
                folder.size(manifests.segment_file(manifest.epoch, part.segment))
            except StoreNotFound:
                raise _elsewhere(folder.name, store) from None


def _first_generation(source: Source, owner: Identity, plan: IngestPlan) -> tuple[Draft, list[Secret]]:
    height, width, channels = first_image(source).shape
    with explain_sizes(source):
        grid = PatchGrid(
            image_size=(height, width),
            patch_size=plan.patch_size,
            stride=plan.stride,
            fit=plan.fit,
            margin=plan.margin,
        )
    assignment = assign(grid, len(plan.nodes), plan.assignment)
    dataset = secrets.token_bytes(ID_BYTES)
    segment_samples, block = sizes(grid.num_patches * channels * math.prod(grid.field_size), len(plan.nodes))
    fields, keys = new_epoch(dataset, 1, owner.public, assignment, plan.nodes, plan.threshold, plan.restorers)
    manifest = Manifest(
        dataset=dataset,
        name=source.name,
        generation=1,
        previous=manifests.NO_PREVIOUS,
        created=envelope.now(),
        owner=str(owner.public),
        lower=str(plan.lower) if plan.lower else "",
        grid=ManifestGrid.of(grid, channels),
        classes=source.class_names,
        splits=(),
        num_samples=0,
        pixels=PixelSums.zero(channels),
        labels_version=-1,
        labels_digest=b"",
        segment_samples=segment_samples,
        block=block,
        **fields,
    )
    return Draft(manifest=manifest, source=source.fingerprint, secret_order=plan.secret_order), keys


def _next_generation(current: SignedManifest, source: Source, plan: IngestPlan) -> Draft:
    if plan.margin not in (0, current.manifest.grid.margin):
        raise ConfigError(
            f"margin: {plan.margin} is given, but the dataset to append to was sealed with "
            f"margin={current.manifest.grid.margin}; leave it out"
        )
    if source.class_names != current.manifest.classes:
        raise ConfigError(f"{source.name}: its classes are not those of the dataset that it should be appended to")
    manifest = msgspec.structs.replace(
        current.manifest, generation=current.manifest.generation + 1, previous=current.digest, created=envelope.now()
    )
    return Draft(manifest=manifest, source=source.fingerprint, secret_order=plan.secret_order)


def _check_same(draft: Draft, source: Source, plan: IngestPlan, out: Path, append: bool) -> None:
    manifest, remedy = draft.manifest, f"continue that, or remove {out / DRAFT_FILE} to discard it"
    if draft.source != source.fingerprint:
        raise SourceChanged(f"{out}: an interrupted ingest had other images; {remedy}")
    if draft.secret_order != plan.secret_order:
        begun = "in a secret order" if draft.secret_order else "as they come, as earlier versions did"
        raise SourceChanged(
            f"{out}: an interrupted ingest numbered the images {begun}, and this one would not; remove "
            f"{out / DRAFT_FILE} to discard it"
        )
    if append:
        return
    settings = (
        manifest.grid.patch,
        manifest.grid.stride,
        manifest.grid.fit,
        manifest.grid.margin,
        manifest.assignment,
        manifest.threshold,
        manifest.lower,
    )
    asked = (
        plan.patch_size,
        plan.stride,
        plan.fit,
        plan.margin,
        assign(manifest.grid.patch_grid, len(manifest.stores), plan.assignment),
        plan.threshold,
        str(plan.lower) if plan.lower else "",
    )
    people = [(member.name, member.public) for member in manifest.restorers]
    same_people = people == [(name, str(public)) for name, public in plan.restorers.items()]
    same_nodes = [store.node for store in manifest.stores] == [str(node) for node in plan.nodes]
    if manifest.epoch != 1 or settings != asked or not same_people or not same_nodes:
        raise SourceChanged(f"{out}: an interrupted ingest had other settings; {remedy}")
