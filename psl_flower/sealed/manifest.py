"""The signed manifest: describes a dataset, its stores and their bytes. It holds no label.

Every change is a new generation that names the digest of the one before. A copy lies in each store; the
owner's stands above all. It is public: keys and shares in it are sealed to those who may have them.
"""

from __future__ import annotations

import functools
import itertools
import operator
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import msgspec

from psl_flower.errors import GridError, ManifestError, SignatureInvalid, WrongOwner
from psl_flower.patches.cutting import SPLITS, PixelSums
from psl_flower.patches.description import StoreSetDescription
from psl_flower.patches.grid import PatchGrid
from psl_flower.sealed import envelope
from psl_flower.sealed.folder import Folder
from psl_flower.sealed.identities import Identity, PublicIdentity, Role
from psl_flower.sealed.suite import SUITE, Purpose, digest
from psl_flower.system.files import read_file

FILE = "manifest.psl"
DRAFT_FILE = "draft.psl"
LOCK_FILE = ".lock"
KIND = envelope.DocumentKind(b"PSLMANIF", Purpose.SIGN_MANIFEST, "manifest")
NO_PREVIOUS = bytes(32)
# Bounds on what a manifest may make its readers allocate: pixels a side, values of a patch, samples.
_MAX_SIDE = 1 << 20
_MAX_PATCH_VALUES = 1 << 30
_MAX_SAMPLES = 1 << 40


class Part(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A part of a signed document: it has these fields and no other."""


class ManifestGrid(Part, frozen=True, kw_only=True, omit_defaults=True):
    """How the images were cut: (height, width) in pixels each, the number of channels, and the margin in pixels.

    A margin of 0 is left out, as manifests did that knew none: names of datasets follow from this.
    """

    image: tuple[int, int]
    patch: tuple[int, int]
    stride: tuple[int, int]
    fit: Literal["exact", "pad"]
    channels: int
    margin: int = 0

    @classmethod
    def of(cls, grid: PatchGrid, channels: int) -> ManifestGrid:
        """Return a grid as the manifest holds it."""
        return cls(
            image=grid.image_size,
            patch=grid.patch_size,
            stride=grid.stride,
            fit=grid.fit,
            channels=channels,
            margin=grid.margin,
        )

    @property
    def patch_grid(self) -> PatchGrid:
        """The grid as the rest of the program sees it."""
        return PatchGrid(
            image_size=self.image, patch_size=self.patch, stride=self.stride, fit=self.fit, margin=self.margin
        )


class SplitRange(Part, frozen=True, kw_only=True):
    """A run of samples of one split: global indices first to first + count - 1."""

    name: str
    first: int
    count: int


class SegmentEntry(Part, frozen=True, kw_only=True):
    """One segment: SHA-256 of its header and Merkle root of its records, and which samples they are."""

    segment: int
    generation: int
    first: int
    count: int
    header: bytes
    records: bytes


class StoreEntry(Part, frozen=True, kw_only=True):
    """One store, its node, its data key twice wrapped (for the node, under the root), and its segments."""

    upper: int
    store: bytes
    positions: tuple[int, ...]
    node: str
    key_for_node: bytes
    key_under_root: bytes
    key_commitment: bytes
    segments: tuple[SegmentEntry, ...] = ()


class Member(Part, frozen=True, kw_only=True):
    """One restorer: a share of the root sealed to this restorer, and a commitment to the share."""

    name: str
    public: str
    index: int
    share: bytes
    commitment: bytes


class Dropped(Part, frozen=True, kw_only=True):
    """Someone whose access ended with a rotation; epoch and generation are the first without them."""

    name: str
    public: str
    epoch: int
    generation: int


class Remains(Part, frozen=True, kw_only=True):
    """Files of an epoch that was rotated away: its keys still open copies of them."""

    epoch: int
    upper: int
    files: tuple[str, ...]


class Manifest(Part, frozen=True, kw_only=True, dict=True):
    """See the module.

    `lower` is the public key that labels are sealed to; empty if they are not sealed. `labels_version` and
    `labels_digest` name the label version that this generation was made with (-1 and empty if there is
    none): later ones may follow it, but an earlier one must not be the last.
    """

    format: Literal[1] = 1
    suite: int = SUITE
    dataset: bytes
    name: str
    epoch: int
    generation: int
    previous: bytes
    created: str
    owner: str
    lower: str
    grid: ManifestGrid
    assignment: tuple[int, ...]
    classes: tuple[str, ...]
    splits: tuple[SplitRange, ...]
    num_samples: int
    pixels: PixelSums
    labels_version: int
    labels_digest: bytes
    segment_samples: int
    block: int
    stores: tuple[StoreEntry, ...]
    threshold: int
    restorers: tuple[Member, ...]
    dropped: tuple[Dropped, ...] = ()
    remains: tuple[Remains, ...] = ()
    root_commitment: bytes
    root_for_owner: bytes

    @functools.cached_property
    def description(self) -> StoreSetDescription:
        """The stores as the rest of the program sees them.

        A run on them has its own words for `dataset` and `source`, and may use other labels than `labels_version`.
        """
        grid = self.grid
        fingerprint = fingerprint_of(self.dataset, grid, self.assignment, self.num_samples)
        return StoreSetDescription(
            dataset=self.name,
            fingerprint=fingerprint,
            source=fingerprint,
            image_size=grid.image,
            channels=grid.channels,
            patch_size=grid.patch,
            stride=grid.stride,
            fit=grid.fit,
            margin=grid.margin,
            assignment=self.assignment,
            class_names=self.classes,
            splits={
                name: tuple((part.first, part.first + part.count) for part in self.splits if part.name == name)
                for name in SPLITS
            },
            mean=self.pixels.mean,
            std=self.pixels.std,
            labels_version=max(0, self.labels_version),
        )

    def is_dataset_of(self, description: StoreSetDescription) -> bool:
        """Whether a description is of this dataset, in this or another of its generations."""
        grid = ManifestGrid.of(description.grid(), description.channels)
        found = fingerprint_of(self.dataset, grid, description.assignment, description.num_samples)
        return found == description.fingerprint

    def check(self, where: str) -> None:
        """Check that the parts agree, so that readers may rely on them.

        Raises
        ------
        ManifestError
            If they do not: the owner signed a manifest that makes no sense.
        """
        self._check_bounds(where)
        positions = sorted(itertools.chain.from_iterable(store.positions for store in self.stores))
        holds = {p: store.upper for store in self.stores for p in store.positions}
        sound = (
            self.suite == SUITE
            and min(self.epoch, self.generation, self.segment_samples, self.block, self.grid.channels) >= 1
            and len(positions) == self._num_patches(where)
            and all(map(operator.eq, positions, itertools.count()))
            and self.assignment == tuple(holds[p] for p in positions)
            and [store.upper for store in self.stores] == list(range(len(self.stores)))
            and _tiles((part.first, part.count) for part in self.splits) == self.num_samples
            and all(_tiles((s.first, s.count) for s in store.segments) == self.num_samples for store in self.stores)
            and all([s.segment for s in store.segments] == list(range(len(store.segments))) for store in self.stores)
            and self.pixels.is_sound(self.grid.channels)
            and 1 <= self.threshold <= max(1, len(self.restorers)) <= 255
        )
        if not sound:
            raise ManifestError(f"{where}: the manifest contradicts itself")

    def _check_bounds(self, where: str) -> None:
        grid = self.grid
        if max(*grid.image, *grid.patch, *grid.stride) > _MAX_SIDE:
            raise ManifestError(f"{where}: images of more than {_MAX_SIDE} pixels a side are not supported")
        height, width = (size + 2 * grid.margin for size in grid.patch)
        if height * width * grid.channels > _MAX_PATCH_VALUES:
            raise ManifestError(f"{where}: patches of more than {_MAX_PATCH_VALUES} values are not supported")
        if self.num_samples > _MAX_SAMPLES:
            raise ManifestError(f"{where}: more than {_MAX_SAMPLES} samples are not supported")

    def _num_patches(self, where: str) -> int:
        try:
            return self.grid.patch_grid.num_patches
        except GridError as error:
            raise ManifestError(f"{where}: the manifest contradicts itself: {error}") from None


@dataclass(frozen=True, slots=True)
class SignedManifest:
    """A manifest whose signature was checked."""

    manifest: Manifest = field(repr=False)
    data: bytes = field(repr=False)  #: The file.
    digest: bytes  #: SHA-256 of the file.
    owner: PublicIdentity  #: Identity that signed it.
    where: str  #: Path or URL it was read from, for messages.


def sign(manifest: Manifest, owner: Identity) -> SignedManifest:
    """Sign a manifest as its owner."""
    data = envelope.sign(KIND, envelope.encode(manifest), [owner.expect(Role.OWNER)])
    return parse(data, "the new manifest", owner.public)


def parse(data: bytes, where: str, owner: PublicIdentity | None = None) -> SignedManifest:
    """Check a manifest's form and signature.

    `where` it came from is for messages. Without an owner to trust, the manifest is only shown to be whole and signed
    by the key that it names: the caller must get trust in that key elsewhere (`seen.SeenBook` remembers it).

    Raises
    ------
    UnknownFormat, UnknownVersion, TruncatedFile, TrailingBytes
        If the form is not that of a manifest.
    SignatureInvalid, WrongOwner
        If it is not signed, or not by the owner.
    ManifestError
        If it contradicts itself.
    """
    signed = envelope.parse(KIND, data, where)
    manifest = envelope.decode(signed.payload, Manifest, where)
    named = PublicIdentity.parse(manifest.owner, Role.OWNER)
    if len(signed.signers) != 1 or not signed.signed_by(named):
        raise SignatureInvalid(f"{where}: the manifest is not signed by the owner that it names")
    if owner is not None and named != owner:
        raise WrongOwner(f"{where}: signed by owner {named.fingerprint}, expected {owner.fingerprint}")
    manifest.check(where)
    return SignedManifest(manifest, data, signed.digest, named, where)


def load(path: Path, owner: PublicIdentity | None = None) -> SignedManifest:
    """Read a manifest file (or the one in a folder); see `parse`."""
    file = path / FILE if path.is_dir() else path
    return parse(read_file(file, limit=envelope.MAX_BYTES), str(file), owner)


def load_copy(folder: Folder, owner: PublicIdentity | None = None) -> SignedManifest:
    """Read the copy of the manifest in a store; see `parse`."""
    return parse(folder.read(FILE, envelope.MAX_BYTES), f"{folder.name}/{FILE}", owner)


def fingerprint_of(dataset: bytes, grid: ManifestGrid, assignment: tuple[int, ...], num_samples: int) -> str:
    """Return the hex name of dataset, grid, assignment and number of samples; the same for all parties."""
    return digest(msgspec.json.encode((dataset, grid, assignment, num_samples))).hex()[:32]


def segment_file(epoch: int, segment: int) -> str:
    """Name of a segment's file in its store."""
    return f"epoch-{epoch:04d}-segment-{segment:06d}.psl"


def _tiles(ranges: Iterable[tuple[int, int]]) -> int | None:
    """Return where ranges end that follow each other from 0 on; None if they do not."""
    end = 0
    for first, count in ranges:
        if first != end or count < 0:
            return None
        end += count
    return end
