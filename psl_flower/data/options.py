"""Options for reading a dataset: which images and labels are taken, and how pixels are mapped."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from typing import Any, Literal

from psl_flower.config import GROUP_OF, GROUPS
from psl_flower.config.data import parse_background, parse_pixel_range
from psl_flower.config.fields import fields_of
from psl_flower.text import printable


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceOptions:
    """The settings of these names; `psl settings` explains them.

    Raises
    ------
    ConfigError
        If a value is out of its range.
    """

    #: Columns to take; empty: found by their names and types.
    image_column: str = ""
    label_column: str = ""
    read_as: Literal["", "folders", "tables"] = ""  #: Way to read a folder that can be read both ways.
    #: Splits to take, joined by "+"; empty: found by their names. A `test_split` of "none" divides one off.
    train_split: str = ""
    test_split: str = ""
    #: Column that names the split of each row; "none": no column does; empty: found by its name and values.
    split_column: str = ""
    class_folder: Literal["", "top", "leaf"] = ""  #: Folder that names the class if folders are nested.
    leave_out: str = ""  #: Patterns of names and paths in a folder, separated by commas, that are ignored.
    #: LOW..HIGH, the values of pixels deeper than 8 bits that become 0 and 255; "dataset": its own; empty: as the
    #: images' format says.
    pixel_range: str = ""
    background: str = "white"  #: Colour that transparent images are put on.
    #: Part of the training images, above 0 and below 1, to test on where the dataset has no test split.
    test_fraction: float = 0.2
    seed: int = 0  #: Seed of that division and of the selection by max_train and max_test, 0 to 2**32 - 1.
    #: Take only that many images, drawn at random; 0 takes all.
    max_train: int = 0
    max_test: int = 0

    def __post_init__(self) -> None:
        """Check the values as the settings of these names are checked."""
        own = {field.name for field in fields(SourceOptions)}
        for group in {GROUPS[GROUP_OF[name]] for name in own}:
            for setting in fields_of(group):
                if setting.name in own:
                    setting.about.check(setting.key, getattr(self, setting.name))
        parse_pixel_range(self.pixel_range)
        parse_background(self.background)

    @property
    def patterns(self) -> tuple[str, ...]:
        """The patterns of `leave_out`."""
        return tuple(pattern.strip() for pattern in self.leave_out.split(",") if pattern.strip())

    def values(self) -> dict[str, Any]:
        """Return these options by name, also of what has more of them."""
        return {field.name: getattr(self, field.name) for field in fields(SourceOptions)}

    def to_json(self) -> dict[str, object]:
        """Return the options for a fingerprint: those that later versions added only where they are not the default."""
        first = ("image_column", "label_column", "test_fraction", "seed", "max_train", "max_test")
        default = SourceOptions().values()
        return {name: value for name, value in self.values().items() if name in first or value != default[name]}


def leave_out_setting(*paths: str) -> str:
    """Return the setting `leave_out` to type for exactly these paths; characters of patterns in them are escaped."""
    # A comma would end the pattern.
    patterns = (re.sub(r"[\[*?]", r"[\g<0>]", printable(path)).replace(",", "?") for path in paths)
    return f"leave-out={','.join(patterns)}"
