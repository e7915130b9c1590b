"""Settings: how images are cut, and which node holds which patch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from psl_flower.config.fields import Settings, Size, setting
from psl_flower.errors import ConfigError
from psl_flower.patches.assignment import Method
from psl_flower.patches.grid import Fit


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchSettings(Settings):
    """How images are cut into patches, and which Upper holds which positions."""

    grid: Literal["", "auto"] = setting("", "auto: chosen from image detail; empty: by patch-size and stride")
    patch_size: Size = setting((0, 0), "HEIGHTxWIDTH in pixels; empty: half the image each way, so 2x2 patches")
    stride: Size = setting(
        (0, 0), "HEIGHTxWIDTH in pixels between patches; empty: the patch size; smaller: patches overlap"
    )
    fit: Fit = setting("exact", "exact: refuse a grid that does not tile the image; pad: pad the image")
    margin: int = setting(
        0, "pixels around each patch that its node also holds, so that shifts are those of the whole image", least=0
    )
    uppers: int = setting(0, "number of Upper nodes; 0: one per patch; fewer: each takes several positions", least=0)
    assignment: Method = setting(
        "scatter", "scatter: positions of one Upper lie apart; round-robin: position p goes to Upper p mod M"
    )
    allow_whole_images: bool = setting(
        False, "true: train although one node holds all patches of every image, so nothing is split"
    )

    def _check(self) -> None:
        if self.grid == "auto" and (self.patch_size, self.stride) != ((0, 0), (0, 0)):
            raise ConfigError("grid: auto chooses patch-size and stride from the images; leave these two out")
        if self.stride != (0, 0) and self.patch_size == (0, 0):
            raise ConfigError("stride: is set, but patch-size is not; set patch-size too")
