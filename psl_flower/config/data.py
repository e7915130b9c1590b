"""Settings: which images, and how they are stored."""

from __future__ import annotations

from dataclasses import dataclass

from psl_flower.config.fields import Settings, Size, setting
from psl_flower.errors import ConfigError

# The dataset that needs neither network nor files.
EMBEDDED = "digits"


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSettings(Settings):
    """Which images to train on, and how they are stored."""

    dataset: str = setting(
        EMBEDDED, "digits (embedded), a hub name, or a folder: parquet files, or images by class", path=True
    )
    image_column: str = setting("", "column of the images; empty: found by type")
    label_column: str = setting("", "column of the labels; empty: found by type")
    test_fraction: float = setting(
        0.2, "share held back as test split if the dataset has none", least=0, most=1, open_ends=True
    )
    max_train: int = setting(0, "use this many training images, drawn by the seed; 0: all", least=0)
    max_test: int = setting(0, "use this many test images, drawn by the seed; 0: all", least=0)
    stores: str = setting(
        "sealed", "sealed: one encrypted store per node; plain: not encrypted", choices=("sealed", "plain")
    )
    keys: str = setting(
        "", "this machine's private keys: a folder of them, or one file; empty: keys/ in the workspace", path=True
    )
    owner: str = setting(
        "", "public key of the owner to trust, or its file, if dataset is a folder of psl ingest", path=True
    )
    keys_in_open_simulation: bool = setting(
        False, "true: use an owner's keys even where others can reach the simulation, as under plain flwr run"
    )
    image_size: Size = setting(
        (0, 0), "resize and centre-crop images to HEIGHTxWIDTH pixels; empty: keep them, all must have one size"
    )

    def _check(self) -> None:
        if not self.dataset:
            raise ConfigError('dataset: expected "digits", a hub name or a folder, got an empty text')
        if self.stores == "plain" and (self.keys or self.owner):
            key = "keys" if self.keys else "owner"
            raise ConfigError(f"{key} and stores=plain contradict each other: plain stores need no key; leave one out")
