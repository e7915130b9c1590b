"""From images to sealed stores: a new dataset, more images, or what an interrupted ingest left.

Shape suffixes: B batch, P positions, H and W pixels of the image, C channels.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from psl_flower.errors import ConfigError, DataError, SourceChanged, StoreExists, StoreNotFound
from psl_flower.patches import PatchGrid
from psl_flower.patches.assignment import assign
from psl_flower.patches.cutting import Source, explain_sizes
from psl_flower.patches.grid import Fit
from psl_flower.patches.store import store_folder
from psl_flower.sealed import epoch as epochs
from psl_flower.sealed import manifest as manifests
from psl_flower.sealed import shares
from psl_flower.sealed.disk import DISK, Disk, locked
from psl_flower.sealed.folder import Folder
from psl_flower.sealed.folders import open_folder
from psl_flower.sealed.keys import Identity, PublicIdentity, Role
from psl_flower.sealed.manifest import (
    DRAFT_FILE,
    LOCK_FILE,
    Grid,
    Manifest,
    PixelSums,
    SignedManifest,
    StoreEntry,
)
from psl_flower.sealed.matching import place_of
from psl_flower.sealed.sealing import Draft, Sealing, drop_draft, is_committed, load_draft, sizes
from psl_flower.sealed.secret import Secret
from psl_flower.sealed.suite import ID_BYTES

Progress = Callable[[str, int, int], None]

_SPLITS = ("train", "test")
_CHUNK_IMAGES = 256
_CHUNK_BYTES = 32 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How to cut and for whom to seal.

    Attributes
    ----------
    patch_size, stride : tuple[int, int]
        (height, width) in pixels.
    nodes : tuple[PublicIdentity, ...]
        One per Upper.
    restorers : Mapping[str, PublicIdentity]
        By name; may be empty, then only the owner can ever restore.
    threshold : int
        How many restorers are needed.
    fit, assignment : str
        See `PatchGrid` and `assign`.
    lower : PublicIdentity, optional
        Seal the labels to this Lower server.
    """

    patch_size: tuple[int, int]
    stride: tuple[int, int]
    nodes: tuple[PublicIdentity, ...]
    restorers: Mapping[str, PublicIdentity] = field(default_factory=dict)
    threshold: int = 1
    fit: Fit = "exact"
    assignment: str = "scatter"
    lower: PublicIdentity | None = None


@dataclass(frozen=True, slots=True)
class Ingested:
    """What an ingest did: the new manifest; images there before, added now, and kept from a draft."""

    signed: SignedManifest
    before: int
    added: int
    resumed: int


def ingest(
    source: Source,
    out: Path,
    owner: Identity,
    plan: Plan,
    *,
    places: Mapping[int, str] | None = None,
    append: bool = False,
    progress: Progress | None = None,
    disk: Disk = DISK,
) -> Ingested:
    """Seal a dataset into one store per node, or go on with an interrupted ingest of the same.

    Parameters
    ----------
    source : Source
        The images.
    out : Path
        The owner's folder, for manifest, labels and those stores that `places` does not put elsewhere.
    owner : Identity
        Signs, and can open everything.
    plan : Plan
        How; where images are appended, all of it is taken from the manifest.
    places : Mapping[int, str], optional
        Upper -> folder or fsspec URL of its store.
    append : bool, optional
        Add to what is there: a new generation.
    progress : callable, optional
        Called with (split, done, total) now and then.

    Raises
    ------
    StoreExists
        If the folder holds a dataset and `append` is not given.
    SourceChanged
        If an interrupted ingest was of other images or another plan.
    ConfigError, DataError, StoreError
        See the subclasses.
    """
    owner.expect(Role.OWNER)
    disk.make_folder(out)
    with locked(out / LOCK_FILE):
        draft = load_draft(out, owner.public)
        current = manifests.load(out, owner.public) if (out / manifests.FILE).exists() else None
        if draft is not None and current is not None and is_committed(draft, current):
            # Only the draft's removal was interrupted.
            drop_draft(out, disk)
            if draft.source == source.fingerprint:
                return Ingested(current, current.manifest.num_samples, 0, 0)
            draft = None
        if draft is None and current is not None and not append:
            raise StoreExists(f"{out} holds a dataset already; --append adds images to it")
        if draft is None and current is None and append:
            raise ConfigError(f"{out} holds no dataset to append to")
        first_HWC, _ = next(source.samples("train"), (None, 0))
        keys: list[Secret] = []
        if draft is not None:
            _check_same(draft, source, plan, out, append)
            keys = _open_keys(draft.manifest, owner)
        elif current is not None:
            draft = _next_generation(current, source)
            keys = _open_keys(draft.manifest, owner)
        else:
            draft, keys = _first_generation(source, first_HWC, owner, plan)
        before = current.manifest.num_samples if current is not None else 0
        folders = _folders(out, draft.manifest, places or {}, disk)
        _check_places(folders, draft.manifest)
        with closing(Sealing(out, draft, owner, keys, folders, disk=disk)) as sealing:
            sealing.save()
            resumed = sealing.done - before
            _fill(sealing, source, draft.manifest, resumed, progress)
            signed = sealing.commit()
        drop_draft(out, disk)
        return Ingested(signed, before, signed.manifest.num_samples - before - resumed, resumed)


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


def _fill(sealing: Sealing, source: Source, manifest: Manifest, skip: int, progress: Progress | None) -> None:
    grid, channels = manifest.patch_grid, manifest.grid.channels
    for split in _SPLITS:
        total = source.num_samples(split)
        start = min(skip, total)
        skip -= start
        samples = _sized(source, split, start, grid.image_size, channels)
        done = start
        while chunk := list(islice(samples, min(sealing.room, _chunk_images(grid.image_size, channels)))):
            images_BCHW = np.stack([image for image, _ in chunk]).transpose(0, 3, 1, 2)
            pixels = _sums(images_BCHW) if split == "train" else None
            sealing.describe(split, np.array([label for _, label in chunk], np.int64), pixels)
            sealing.add(grid.split(images_BCHW).astype(np.uint8, copy=False))
            done += len(chunk)
            if progress is not None:
                progress(split, done, total)


def _sized(
    source: Source, split: str, start: int, size: tuple[int, int], channels: int
) -> Iterator[tuple[NDArray[np.uint8], int]]:
    for number, (image_HWC, label) in enumerate(source.samples(split, start), start):
        if image_HWC.shape != (*size, channels):
            raise DataError(
                f"{source.name}: image {split}:{number} is {'x'.join(map(str, image_HWC.shape))}, expected "
                f"{size[0]}x{size[1]}x{channels}; set image-size to bring all of them to one size"
            )
        yield image_HWC, label


def _chunk_images(size: tuple[int, int], channels: int) -> int:
    return max(1, min(_CHUNK_IMAGES, _CHUNK_BYTES // (size[0] * size[1] * channels)))


def _sums(images_BCHW: NDArray[np.uint8]) -> PixelSums:
    B, _, H, W = images_BCHW.shape
    # A squared pixel fits 16 bits, so int64 holds the sum over 2**47 pixels exactly.
    squares_C = np.square(images_BCHW, dtype=np.uint16).sum(axis=(0, 2, 3), dtype=np.int64)
    sums_C = images_BCHW.sum(axis=(0, 2, 3), dtype=np.int64)
    return PixelSums(count=B * H * W, sums=tuple(sums_C.tolist()), squares=tuple(squares_C.tolist()))


def _first_generation(
    source: Source, first_HWC: NDArray[np.uint8] | None, owner: Identity, plan: Plan
) -> tuple[Draft, list[Secret]]:
    if first_HWC is None:
        raise DataError(f"{source.name}: there is no training image")
    height, width, channels = first_HWC.shape
    with explain_sizes(source):
        cut = PatchGrid(image_size=(height, width), patch_size=plan.patch_size, stride=plan.stride, fit=plan.fit)
    assignment = assign(cut, len(plan.nodes), plan.assignment)
    grid = Grid(image=cut.image_size, patch=cut.patch_size, stride=cut.stride, fit=cut.fit, channels=channels)
    dataset, root = secrets.token_bytes(ID_BYTES), Secret.random()
    segment_samples, block = sizes(cut.num_patches * channels * cut.patch_size[0] * cut.patch_size[1], len(plan.nodes))
    made = [
        epochs.new_store(root, dataset, 1, m, tuple(p for p, n in enumerate(assignment) if n == m), node)
        for m, node in enumerate(plan.nodes)
    ]
    manifest = Manifest(
        dataset=dataset,
        name=source.name,
        epoch=1,
        generation=1,
        previous=manifests.NO_PREVIOUS,
        created=now(),
        owner=str(owner.public),
        lower=str(plan.lower) if plan.lower else "",
        grid=grid,
        assignment=assignment,
        classes=source.class_names,
        splits=(),
        num_samples=0,
        pixels=PixelSums(count=0, sums=(0,) * channels, squares=(0,) * channels),
        labels_version=-1,
        labels_digest=b"",
        segment_samples=segment_samples,
        block=block,
        stores=tuple(entry for entry, _ in made),
        threshold=plan.threshold,
        restorers=shares.deal(root, dataset, 1, plan.threshold, plan.restorers),
        root_commitment=epochs.root_commitment(root, dataset, 1),
        root_for_owner=epochs.root_for_owner(root, owner.public, dataset, 1),
    )
    root.wipe()
    return Draft(manifest=manifest, source=source.fingerprint), [key for _, key in made]


def _next_generation(current: SignedManifest, source: Source) -> Draft:
    if source.class_names != current.manifest.classes:
        raise ConfigError(f"{source.name}: its classes are not those of the dataset that it should be appended to")
    manifest = msgspec.structs.replace(
        current.manifest, generation=current.manifest.generation + 1, previous=current.digest, created=now()
    )
    return Draft(manifest=manifest, source=source.fingerprint)


def _open_keys(manifest: Manifest, owner: Identity) -> list[Secret]:
    with epochs.open_root(manifest, owner) as root:
        return [epochs.open_under_root(manifest, entry, root) for entry in manifest.stores]


def _check_same(draft: Draft, source: Source, plan: Plan, out: Path, append: bool) -> None:
    manifest, remedy = draft.manifest, f"go on with that, or remove {out / DRAFT_FILE} to drop it"
    if draft.source != source.fingerprint:
        raise SourceChanged(f"{out}: an interrupted ingest was of other images; {remedy}")
    if append:
        return
    settings = (
        manifest.grid.patch,
        manifest.grid.stride,
        manifest.grid.fit,
        manifest.assignment,
        manifest.threshold,
        manifest.lower,
    )
    asked = (
        plan.patch_size,
        plan.stride,
        plan.fit,
        assign(manifest.patch_grid, len(manifest.stores), plan.assignment),
        plan.threshold,
        str(plan.lower) if plan.lower else "",
    )
    people = [(member.name, member.public) for member in manifest.restorers]
    same_people = people == [(name, str(public)) for name, public in plan.restorers.items()]
    same_nodes = [store.node for store in manifest.stores] == [str(node) for node in plan.nodes]
    if manifest.epoch != 1 or settings != asked or not same_people or not same_nodes:
        raise SourceChanged(f"{out}: an interrupted ingest had other settings; {remedy}")


def now() -> str:
    """Return the time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
