"""The signed manifest: what a dataset is, which stores hold it, and which bytes these are. It holds no label.

Every change is a new generation that names the digest of the one before. A copy lies in each store; the
owner's stands above all. It is public: keys and shares in it are sealed to those who may have them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from psl_flower.errors import ManifestError, SignatureInvalid, WrongOwner
from psl_flower.sealed import envelope
from psl_flower.sealed.disk import read_file
from psl_flower.sealed.folder import Folder
from psl_flower.sealed.keys import Identity, PublicIdentity, Role
from psl_flower.sealed.suite import SUITE, Purpose, digest

if TYPE_CHECKING:
    from psl_flower.patches import PatchGrid

FILE = "manifest.psl"
DRAFT_FILE = "draft.psl"
LOCK_FILE = ".lock"
KIND = envelope.Kind(b"PSLMANIF", Purpose.SIGN_MANIFEST, "manifest")
NO_PREVIOUS = bytes(32)


class _Part(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class Grid(_Part, frozen=True, kw_only=True):
    """How the images were cut: (height, width) in pixels each, and the number of channels."""

    image: tuple[int, int]
    patch: tuple[int, int]
    stride: tuple[int, int]
    fit: Literal["exact", "pad"]
    channels: int


class SplitRange(_Part, frozen=True, kw_only=True):
    """A run of samples of one split: global indices first to first + count - 1."""

    name: str
    first: int
    count: int


class PixelSums(_Part, frozen=True, kw_only=True):
    """Exact sums over the training images' pixels (0 to 255), per channel: mean and deviation follow."""

    count: int
    sums: tuple[int, ...]
    squares: tuple[int, ...]

    @property
    def mean(self) -> tuple[float, ...]:
        """Mean per channel, in 0..1; 0 where there are no pixels."""
        return tuple(s / (255 * max(1, self.count)) for s in self.sums)

    @property
    def std(self) -> tuple[float, ...]:
        """Standard deviation per channel, in 0..1."""
        n = max(1, self.count)
        return tuple(math.sqrt((n * q - s * s) / (n * n)) / 255 for s, q in zip(self.sums, self.squares, strict=True))


class SegmentEntry(_Part, frozen=True, kw_only=True):
    """One segment: SHA-256 of its header and Merkle root of its records, and which samples they are."""

    segment: int
    generation: int
    first: int
    count: int
    header: bytes
    records: bytes


class StoreEntry(_Part, frozen=True, kw_only=True):
    """One store, its node, its data key twice wrapped (for the node, under the root), and its segments."""

    upper: int
    store: bytes
    positions: tuple[int, ...]
    node: str
    key_for_node: bytes
    key_under_root: bytes
    key_commitment: bytes
    segments: tuple[SegmentEntry, ...] = ()


class Member(_Part, frozen=True, kw_only=True):
    """One restorer: a share of the root sealed to this restorer, and a commitment to the share."""

    name: str
    public: str
    index: int
    share: bytes
    commitment: bytes


class Dropped(_Part, frozen=True, kw_only=True):
    """Someone whose access ended with a rotation; epoch and generation are the first without them."""

    name: str
    public: str
    epoch: int
    generation: int


class Remains(_Part, frozen=True, kw_only=True):
    """Files of an epoch that was rotated away: whoever kept its keys can still open copies of them."""

    epoch: int
    upper: int
    files: tuple[str, ...]


class Manifest(_Part, frozen=True, kw_only=True):
    """See the module.

    `lower` is the public key that labels are sealed to; empty where they are not sealed. `labels_version` and
    `labels_digest` name the label version that this generation was made with (-1 and empty where there is
    none): later ones may follow it, an earlier one may not be the last.
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
    grid: Grid
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

    @property
    def patch_grid(self) -> PatchGrid:
        """The grid as the rest of the program knows it."""
        # Imported here because it brings torch, which `psl keygen` and the like need not wait for.
        from psl_flower.patches import PatchGrid

        g = self.grid
        return PatchGrid(image_size=g.image, patch_size=g.patch, stride=g.stride, fit=g.fit)

    @property
    def patch_shape(self) -> tuple[int, int, int]:
        """(C, h, w)."""
        return (self.grid.channels, *self.grid.patch)

    @property
    def fingerprint(self) -> str:
        """Hex name of dataset, grid, assignment and number of samples; the same for all parties."""
        return fingerprint_of(self.dataset, self.grid, self.assignment, self.num_samples)

    def split_of(self, sample: int) -> tuple[str, int]:
        """Return a sample's split and its number within it."""
        seen: dict[str, int] = {}
        for part in self.splits:
            if part.first <= sample < part.first + part.count:
                return part.name, seen.get(part.name, 0) + sample - part.first
            seen[part.name] = seen.get(part.name, 0) + part.count
        raise ManifestError(f"image {sample} is not in this dataset of {self.num_samples}")

    def sample_of(self, split: str, number: int) -> int:
        """Return the global index of the `number`-th sample of a split."""
        left = number
        for part in self.splits:
            if part.name == split:
                if 0 <= left < part.count:
                    return part.first + left
                left -= part.count
        raise ManifestError(f"image {split}:{number} is not in this dataset")

    def samples_of(self, split: str) -> NDArray[np.int64]:
        """Return the global indices of a split's samples, in order; none if there is no such split."""
        parts = [np.arange(p.first, p.first + p.count, dtype=np.int64) for p in self.splits if p.name == split]
        return np.concatenate([np.empty(0, np.int64), *parts])

    def check(self, where: str) -> None:
        """Check that the parts agree, so that readers may rely on them.

        Raises
        ------
        ManifestError
            If they do not: the owner signed a manifest that makes no sense.
        """
        positions = sorted(itertools.chain.from_iterable(store.positions for store in self.stores))
        holds = {p: store.upper for store in self.stores for p in store.positions}
        sound = (
            self.suite == SUITE
            and min(self.epoch, self.generation, self.segment_samples, self.block, self.grid.channels) >= 1
            and positions == list(range(self.patch_grid.num_patches))
            and self.assignment == tuple(holds[p] for p in positions)
            and [store.upper for store in self.stores] == list(range(len(self.stores)))
            and _tiles((part.first, part.count) for part in self.splits) == self.num_samples
            and all(_tiles((s.first, s.count) for s in store.segments) == self.num_samples for store in self.stores)
            and all([s.segment for s in store.segments] == list(range(len(store.segments))) for store in self.stores)
            and len(self.pixels.sums) == len(self.pixels.squares) == self.grid.channels
            and 1 <= self.threshold <= max(1, len(self.restorers)) <= 255
        )
        if not sound:
            raise ManifestError(f"{where}: the manifest contradicts itself")


@dataclass(frozen=True, slots=True)
class SignedManifest:
    """A manifest whose signature was checked.

    Attributes
    ----------
    manifest : Manifest
        Its content.
    data : bytes
        The file.
    digest : bytes
        SHA-256 of the file.
    owner : PublicIdentity
        Who signed it.
    where : str
        Where it was read, for messages.
    """

    manifest: Manifest = field(repr=False)
    data: bytes = field(repr=False)
    digest: bytes
    owner: PublicIdentity
    where: str


def sign(manifest: Manifest, owner: Identity) -> SignedManifest:
    """Sign a manifest as its owner."""
    data = envelope.sign(KIND, envelope.encode(manifest), [owner.expect(Role.OWNER)])
    return parse(data, "the new manifest", owner.public)


def parse(data: bytes, where: str, owner: PublicIdentity | None = None) -> SignedManifest:
    """Check a manifest's form and signature.

    Parameters
    ----------
    data : bytes
        The file.
    where : str
        Where it came from, for messages.
    owner : PublicIdentity, optional
        The owner trusted. Without, the manifest is only shown to be whole and signed by the key that it
        names: the caller must get trust in that key elsewhere (`seen.SeenBook` remembers it).

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
    return parse(read_file(file, envelope.MAX_BYTES), str(file), owner)


def load_copy(folder: Folder, owner: PublicIdentity | None = None) -> SignedManifest:
    """Read the copy of the manifest in a store; see `parse`."""
    return parse(folder.read(FILE, envelope.MAX_BYTES), f"{folder.name}/{FILE}", owner)


def fingerprint_of(dataset: bytes, grid: Grid, assignment: tuple[int, ...], num_samples: int) -> str:
    """Return the hex name of one state of a dataset; see `Manifest.fingerprint`."""
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
