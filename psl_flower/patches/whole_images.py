"""Refuses a division of images that would show one node all of an image."""

from __future__ import annotations

from psl_flower.errors import ConfigError
from psl_flower.patches.description import StoreSetDescription


def refuse_whole_images(description: StoreSetDescription) -> None:
    """Raise ConfigError if one Upper holds all patches, or patches whose margins reach over the whole image."""
    grid, why = description.grid(), ""
    if description.num_uppers == 1:
        why = "the grid has one patch" if grid.num_patches == 1 else f"one Upper holds all {grid.num_patches} patches"
    elif grid.margin:
        whole = (m for m in range(description.num_uppers) if grid.shown(description.positions_of(m)).all())
        why = next((f"the patches of Upper {m} with margin={grid.margin} show all of an image" for m in whole), "")
    if why:
        less = "a smaller patch-size, a smaller margin" if grid.margin else "a smaller patch-size"
        raise ConfigError(
            f"{why}, so one node would hold whole images: choose {less} or more uppers, or allow it with "
            "allow-whole-images=true"
        )
