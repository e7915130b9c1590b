"""Describes the patch stores that a run would have, without making them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec

from psl_flower.config import RunConfig
from psl_flower.data.account import Account
from psl_flower.data.sources import ImageSource
from psl_flower.patches.cutting import first_image, other_size
from psl_flower.patches.description import StoreSetDescription
from psl_flower.sealed import manifest as manifests
from psl_flower.stores.grid_choice import grid_for
from psl_flower.stores.prepare import check_settings
from psl_flower.stores.sealed_set import is_sealed_dataset
from psl_flower.stores.store_set import store_request, stores_root
from psl_flower.text import counted, dims, expanded

# Images of which the size is compared. It is in a header, but files are read whole.
_SIZES_READ = {"train": 250, "test": 50}
# Overhead of a record: id, nonce, tag, and the digest at the segment's end (docs/store-format.md).
_RECORD_BYTES = 16 + 12 + 16 + 32


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedStores:
    """The stores that a run's settings ask for."""

    #: Description of the stores. Stores still to be written have placeholders for fingerprints and pixel statistics.
    description: StoreSetDescription
    folder: Path  #: Folder of the stores, existing or to be made.
    exist: bool  #: Whether the folder exists.
    grid_reason: str = ""  #: One line for people on why the grid was chosen; empty if it is given.
    #: One line for people on the images' sizes that were read; empty if image-size brings all to one.
    sizes_note: str = ""
    account: Account | None = None  #: Account of reading the dataset; None for stores that an owner has filled.

    @property
    def num_bytes(self) -> int:
        """Bytes of all stores."""
        description = self.description
        channels, height, width = description.stored_shape
        patches = len(description.assignment) * channels * height * width
        return description.num_samples * (patches + description.num_uppers * _RECORD_BYTES)


def plan_stores(config: RunConfig) -> PlannedStores:
    """Open the dataset and return what its stores would be; nothing is written.

    Of images without a stated size, those of a sample are compared. Raises PslError as
    `psl_flower.stores.prepare.prepare_stores`, but for what reading every image would show.
    """
    if is_sealed_dataset(config.data.dataset):
        folder = expanded(config.data.dataset, "dataset").absolute()
        description = manifests.load(folder).manifest.description
        check_settings(config, description)
        return PlannedStores(description=description, folder=folder, exist=True)
    request = store_request(config)
    root = stores_root(config.workspace_path())
    folder, fingerprint, opened = request.locate(root / "plain" if config.data.stores == "plain" else root)
    source = opened or request.open_source()
    grid, reason = grid_for(request, source)
    channels = first_image(source).shape[2]
    described = request.describe(source, grid, channels, fingerprint)
    description = msgspec.structs.replace(described, mean=(0.5,) * channels, std=(0.25,) * channels)
    note = _compare_sizes(source, grid.image_size) if config.data.image_size == (0, 0) else ""
    return PlannedStores(
        description=description, folder=folder, exist=folder.is_dir(), grid_reason=reason, sizes_note=note,
        account=source.account(),
    )  # fmt: skip


def _compare_sizes(source: ImageSource, size: tuple[int, int]) -> str:
    """Return the number of images whose size was compared with the first one's, if not all were.

    Raises
    ------
    DataError
        If one has another size: training would end there.
    """
    looked_at, count = 0, 0
    for split, most in _SIZES_READ.items():
        count += source.num_samples(split)
        for number, found in source.sizes(split, most):
            looked_at += 1
            if found != size:
                raise other_size(source, (split, number), found, size, "height x width")
    if looked_at == count:
        return ""
    return (
        f"note: the sizes of {looked_at} of {counted(count, 'image')} were read, and all are {dims(size)}; training "
        "ends at one of another size, unless image-size is set"
    )
