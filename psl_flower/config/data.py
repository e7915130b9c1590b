"""Settings: which images, and how they are stored."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from psl_flower.config.fields import Settings, Size, setting
from psl_flower.errors import ConfigError

# The dataset that needs neither network nor files.
EMBEDDED = "digits"
# What images hold on their own is mapped by their format; this leaves it to the deepest and lightest pixel of all.
BY_DATASET = "dataset"
_COLOURS = {"white": (255, 255, 255), "black": (0, 0, 0), "grey": (128, 128, 128)}
_NUMBER = r"[+-]?\d{1,17}(?:\.\d{1,17})?(?:e[+-]?\d{1,3})?"


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSettings(Settings):
    """Which images to train on, and how they are stored."""

    dataset: str = setting(
        EMBEDDED, "digits (embedded), a hub name, or a folder: images by class, tables, or arrays", path=True
    )
    image_column: str = setting("", "column of the images; empty: found by type")
    label_column: str = setting("", "column of the labels; empty: found by type")
    read_as: Literal["", "folders", "tables"] = setting(
        "", "folders: images by class; tables: rows of csv, json or parquet; empty: by what the folder holds"
    )
    train_split: str = setting("", "splits to train on, such as train or train+validation; empty: found by name")
    test_split: str = setting("", "splits to test on; none: hold back test-fraction; empty: found by name")
    split_column: str = setting(
        "", "column that names each row's split; none: ignore such columns; empty: found by its name and values"
    )
    class_folder: Literal["", "top", "leaf"] = setting(
        "", "where classes have folders in folders: top: the outermost is the class; leaf: the path to the image is"
    )
    leave_out: str = setting("", "names or paths in the folder to skip, such as *.nef,notes/*")
    pixel_range: str = setting(
        "",
        "values of pixels deeper than 8 bits that become black and white: 0..4095, say; dataset: its lowest, highest",
    )
    background: str = setting("white", "colour behind transparent images: white, black, grey or #rrggbb")
    test_fraction: float = setting(0.2, "share held back as test split if the dataset has none", above=0, below=1)
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
        parse_pixel_range(self.pixel_range)
        parse_background(self.background)
        if not self.dataset:
            raise ConfigError('dataset: expected "digits", a hub name or a folder, got an empty text')
        if self.stores == "plain" and (self.keys or self.owner):
            key = "keys" if self.keys else "owner"
            raise ConfigError(f"{key} and stores=plain contradict each other: plain stores need no key; leave one out")


def parse_pixel_range(text: str) -> tuple[float, float] | None:
    """Return the (lowest, highest) value of a pixel range; None if it is empty or the dataset's own.

    Raises
    ------
    ConfigError
        If it has another form.
    """
    if text in ("", BY_DATASET):
        return None
    match = re.fullmatch(rf"({_NUMBER})\.\.({_NUMBER})", text.strip())
    if match is None or not float(match[1]) < float(match[2]):
        raise ConfigError(
            f"pixel-range: expected {BY_DATASET}, or the values that become black and white, such as 0..4095, "
            f"got {text!r}"
        )
    return float(match[1]), float(match[2])


def pixel_range_text(values: tuple[float, float] | None) -> str:
    """Return the setting that states a pixel range; empty for None."""
    return "" if values is None else f"{values[0]!r}..{values[1]!r}"


def parse_background(text: str) -> tuple[int, int, int]:
    """Return the RGB colour that transparent images are put on; raises ConfigError if there is no such colour."""
    if text in _COLOURS:
        return _COLOURS[text]
    if not re.fullmatch(r"#[0-9a-fA-F]{6}", text):
        raise ConfigError(f"background: expected {', '.join(_COLOURS)} or #rrggbb, got {text!r}")
    red, green, blue = bytes.fromhex(text[1:])
    return red, green, blue
