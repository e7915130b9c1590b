"""A set of patch stores on disk: the request for it, its parts, and how it is opened.

    <root>/<slug>-<12 hex>/
        manifest.json        written last: a folder without it is unfinished
        lower/labels.npy     int64 (N,), for the Lower only
        store-000/ ...       one patch store per Upper

Shape suffixes: N samples of all splits.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from psl_flower.data.account import FILE as ACCOUNT_FILE
from psl_flower.data.account import Account
from psl_flower.data.images import AccountedSource, Resized
from psl_flower.data.options import SourceOptions
from psl_flower.data.sources import ImageSource, local_fingerprint, open_dataset
from psl_flower.errors import ConfigError, StoreError
from psl_flower.patches import PatchGrid, complexity
from psl_flower.patches.assignment import assign
from psl_flower.patches.cutting import explain_sizes, first_image, half_of
from psl_flower.patches.description import StoreSetDescription
from psl_flower.patches.store import PatchStore, store_folder
from psl_flower.sealed import manifest as manifests
from psl_flower.sealed.identities import PublicIdentity, Role
from psl_flower.sealed.keyring import KeyRing
from psl_flower.sealed.matching import place_of
from psl_flower.stores.opening import open_store
from psl_flower.system.files import disk_errors
from psl_flower.text import slug

if TYPE_CHECKING:
    # It brings in the networks, which the owner's commands do without.
    from psl_flower.config import RunConfig

MANIFEST_FILE = "manifest.json"
LABELS_FILE = "lower/labels.npy"
# Change it with anything that changes the stores made from the same request.
_LAYOUT_VERSION = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreRequest(SourceOptions):
    """What to cut, and how; and of which images, as `SourceOptions` says.

    Raises
    ------
    ConfigError
        If only one of the image's sizes is stated, or one is negative.
    """

    dataset: str  #: Name or path, as `open_dataset` takes it.
    #: (height, width) that every image is brought to, antialiased and cropped; (0, 0): their own, the same for all.
    image_size: tuple[int, int] = (0, 0)
    #: (height, width) in pixels; (0, 0): half the image, rounded up, so that four patches cover it.
    patch_size: tuple[int, int] = (0, 0)
    #: (height, width) in pixels; (0, 0): the patch size, so that patches do not overlap.
    stride: tuple[int, int] = (0, 0)
    #: "auto": patch size and stride are chosen from the images (`psl_flower.stores.grid_choice`) and (0, 0) here.
    pattern: Literal["", "auto"] = ""
    fit: Literal["exact", "pad"] = "exact"  #: See `PatchGrid`.
    margin: int = 0  #: Pixels around each patch that the stores keep; see `PatchGrid`.
    num_uppers: int = 0  #: M; 0: one for each grid position.
    assignment: Literal["scatter", "round-robin"] = "scatter"  #: See `assign`.

    def __post_init__(self) -> None:
        """Check the image size; what fits the images is for `grid` to say."""
        SourceOptions.__post_init__(self)
        if self.image_size != (0, 0) and min(self.image_size) < 1:
            raise ConfigError(
                f"image-size: expected two sizes of 1 or more, or 0 for the images' own, got {self.image_size}"
            )

    def source_options(self) -> SourceOptions:
        """Return the part that concerns the source."""
        return SourceOptions(**self.values())

    def open_source(self) -> ImageSource:
        """Open the dataset; raises as `open_dataset` does."""
        return open_dataset(self.dataset, self.source_options())

    def sized(self, source: ImageSource) -> AccountedSource:
        """Return the source with every image brought to the image size, if one is stated."""
        return source if self.image_size == (0, 0) else Resized(source, self.image_size)

    def locate(self, root: Path) -> tuple[Path, str, ImageSource | None]:
        """Return the folder of this request's set, which need not exist yet, below the folder of all sets.

        `root` is the folder of all sets. With it come the set's fingerprint, and the source if it had to be opened for
        that, as from the hub.

        Raises
        ------
        ConfigError, DatasetNotFound, DataError
            As `open_dataset`.
        """
        source, found = None, local_fingerprint(self.dataset, self.source_options())
        if found is None:
            source = self.open_source()
            found = source.fingerprint
        fingerprint = self.fingerprint(found)
        return root / self.folder_name(fingerprint), fingerprint, source

    def grid(self, image_size: tuple[int, int]) -> PatchGrid:
        """Return the grid on images of (height, width); raises GridError if it does not fit them."""
        patch_size = half_of(image_size) if self.patch_size == (0, 0) else self.patch_size
        stride = patch_size if self.stride == (0, 0) else self.stride
        return PatchGrid(image_size=image_size, patch_size=patch_size, stride=stride, fit=self.fit, margin=self.margin)

    def grid_of(self, source: ImageSource) -> PatchGrid:
        """Return the grid on a source's images, by the first of them where no size is stated.

        Raises
        ------
        GridError
            If it does not fit them; DataError if that is because their sizes differ.
        """
        if self.image_size != (0, 0):
            return self.grid(self.image_size)
        height, width, _ = first_image(source).shape
        with explain_sizes(source):
            return self.grid((height, width))

    def fingerprint(self, source_fingerprint: str) -> str:
        """Return the hex digits that stand for the stores made by this request from that source."""
        stride = self.patch_size if self.stride == (0, 0) else self.stride
        cut: tuple[object, ...] = (
            self.image_size, self.patch_size, stride, self.fit, self.num_uppers, self.assignment
        )  # fmt: skip
        if self.pattern:
            cut = (*cut, self.pattern, complexity.VERSION)
        if self.margin:
            cut = (*cut, "margin", self.margin)
        text = json.dumps((_LAYOUT_VERSION, source_fingerprint, cut))
        return hashlib.sha256(text.encode()).hexdigest()

    def describe(self, source: ImageSource, grid: PatchGrid, channels: int, fingerprint: str) -> StoreSetDescription:
        """Return the description of the set made from a source, but for the pixels' mean and standard deviation."""
        train, test = source.num_samples("train"), source.num_samples("test")
        return StoreSetDescription(
            dataset=self.dataset,
            fingerprint=fingerprint,
            source=fingerprint,
            image_size=grid.image_size,
            channels=channels,
            patch_size=grid.patch_size,
            stride=grid.stride,
            fit=grid.fit,
            margin=grid.margin,
            assignment=assign(grid, self.num_uppers or grid.num_patches, self.assignment),
            class_names=source.class_names,
            splits={"train": ((0, train),), "test": ((train, train + test),)},
            mean=(),
            std=(),
        )

    def folder_name(self, fingerprint: str) -> str:
        """Return the name of the set's folder: a readable part and a unique one."""
        return f"{_slug(self.dataset)}-{fingerprint[:12]}"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreSet:
    """A complete set of patch stores."""

    folder: Path  #: Folder of the stores.
    description: StoreSetDescription
    labels: NDArray[np.int64]  #: (N,) index into the class names, of all samples in global order.
    created: bool  #: False if the set was there already.
    keys: Path | None = None  #: This machine's private keys, if the stores are sealed.
    owner: str = ""  #: Public key of who signed sealed stores.
    note: str = ""  #: One line for people on corrected labels; may be empty.
    grid_reason: str = ""  #: One line for people on why the grid was chosen; empty if it was not chosen here.
    epoch: int = 0  #: Generation of the keys of sealed stores; 0 if they are plain.
    #: Account of reading the dataset when they were made; None if that is not known here.
    account: Account | None = None

    @property
    def keys_note(self) -> str:
        """One line for people on the keys of stores that were sealed just now; else empty."""
        if not self.created or not self.sealed:
            return ""
        return (
            f"sealed with demonstration keys of all parties, in {self.keys}: "
            "they protect nothing from anyone who can read that folder"
        )

    def check_node_keys(self) -> None:
        """Check that the keys of all sealed stores are on this machine, as a simulation needs them.

        Raises
        ------
        ConfigError
            If one is not.
        """
        if not self.sealed:
            return
        here = {public for public, _ in KeyRing(self.keys).public(Role.NODE)} if self.keys else set()
        for entry in manifests.load(self.folder).manifest.stores:
            public = PublicIdentity.parse(entry.node)
            if public not in here:
                raise ConfigError(
                    f"{self.folder}: the store of Upper {entry.upper} is sealed to node {public.fingerprint}, whose "
                    f"private key is not in {self.keys}; a simulation needs those of all nodes: name the folder that "
                    "holds them with the setting keys"
                )

    @property
    def account_lines(self) -> tuple[str, ...]:
        """Lines for people on what was read, if the stores were made just now; else none."""
        return tuple(self.account.lines()) if self.created and self.account is not None else ()

    @property
    def sealed(self) -> bool:
        """Whether the stores are encrypted; their owner is known then."""
        return bool(self.owner)

    def store_path(self, upper: int) -> Path:
        """Return the folder of an Upper's store.

        Raises
        ------
        ConfigError
            If there is no such Upper.
        StoreNotFound
            If a sealed store is not in this folder.
        """
        if not 0 <= upper < self.description.num_uppers:
            raise ConfigError(f"no Upper {upper}: the stores are for Uppers 0 to {self.description.num_uppers - 1}")
        if self.sealed:
            return place_of(self.folder, manifests.load(self.folder).manifest, upper)
        return store_folder(self.folder, upper)

    def open(self, upper: int) -> PatchStore:
        """Open an Upper's store, on a machine that holds its key.

        Raises
        ------
        StoreError
            If it is missing, damaged, or sealed to a key that is not here.
        """
        return open_store(self.store_path(upper), KeyRing(self.keys) if self.keys else None, upper, owner=self.owner)

    @contextmanager
    def opened(self) -> Iterator[list[PatchStore]]:
        """Open all stores, in the order of the Uppers, and close them at the end; raises what `open` does."""
        with ExitStack() as stack:
            yield [stack.enter_context(closing(self.open(m))) for m in range(self.description.num_uppers)]


def store_request(config: RunConfig) -> StoreRequest:
    """Return the request for stores that a run's settings make."""
    return StoreRequest(
        dataset=config.data.dataset,
        image_size=config.data.image_size,
        patch_size=config.patches.patch_size,
        stride=config.patches.stride,
        pattern=config.patches.grid,
        fit=config.patches.fit,
        margin=config.patches.margin,
        num_uppers=config.patches.uppers,
        assignment=config.patches.assignment,
        **{field.name: config.value(field.name) for field in fields(SourceOptions)},
    )


def stores_root(workspace: Path) -> Path:
    """Return the folder of all sets of a workspace."""
    return workspace / "stores"


def load_set(folder: Path, fingerprint: str, *, created: bool) -> StoreSet:
    """Open a finished set and check, without reading patches, that its parts belong together.

    Raises
    ------
    StoreError
        If a part is missing, damaged or of another set.
    """
    try:
        description = StoreSetDescription.load(folder / MANIFEST_FILE)
        if description.fingerprint != fingerprint:
            raise StoreError(f"{folder}: its description is of other stores")
        labels_N = _load_labels(folder / LABELS_FILE, description)
        for upper in range(description.num_uppers):
            _check_store(store_folder(folder, upper), description, upper)
    except StoreError as error:
        raise StoreError(f"{error}; delete {folder} to have it made again") from error
    account = Account.load(folder / ACCOUNT_FILE)
    return StoreSet(folder=folder, description=description, labels=labels_N, created=created, account=account)


def _load_labels(path: Path, description: StoreSetDescription) -> NDArray[np.int64]:
    try:
        with disk_errors(path, "read", StoreError):
            labels_N: NDArray[np.int64] = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise StoreError(f"{path}: the labels are damaged") from error
    if labels_N.dtype != np.int64 or labels_N.shape != (description.num_samples,):
        raise StoreError(
            f"{path}: expected int64 ({description.num_samples},), found {labels_N.dtype} {labels_N.shape}"
        )
    if not 0 <= labels_N.min(initial=0) <= labels_N.max(initial=0) < description.num_classes:
        raise StoreError(f"{path}: a label is outside the {description.num_classes} classes")
    return labels_N


def _check_store(path: Path, description: StoreSetDescription, upper: int) -> None:
    store = open_store(path)
    store.close()
    if problem := description.mismatch(store.meta, upper):
        raise StoreError(f"{path}: {problem}")


def _slug(dataset: str) -> str:
    """Return a short name that a person recognises: of the hub name, or of the folder."""
    path = Path(dataset)
    name = path.resolve().name if path.is_dir() else dataset
    return slug(name.lower(), 40) or "dataset"
