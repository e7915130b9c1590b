"""Pictures of what the nodes hold: an image, its grid, and every node's part of it.

Shape suffixes: B images, C channels, H and W pixels.
"""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from psl_flower.patches import PatchGrid
from psl_flower.seeds import evenly_spaced
from simulations.axes import WIDTH
from simulations.compare.study import Holding

# Nodes shown; of more than that some, spread over all.
_SHOWN = 4
_LINE = "#d55e00"
_EMPTY = 0.92


def picture(holding: Holding) -> Figure:
    """Return an image and what nodes hold of it; for whole images, what clients hold."""
    figure = Figure(figsize=(WIDTH, 1.2), layout="constrained")
    panels: list[Axes] = list(figure.subplots(1, _SHOWN + 1))
    for axes in panels:
        axes.set_axis_off()
    images_BCHW = holding.images_BCHW
    if holding.grid is None:
        for number, (axes, image_CHW) in enumerate(zip(panels, images_BCHW, strict=False)):
            _show(axes, _pixels(image_CHW), f"client {number}")
        return figure
    image_HWC = _pixels(images_BCHW[0])
    _show(panels[0], image_HWC, "image")
    _lines(panels[0], holding.grid)
    nodes = max(holding.assignment) + 1
    shown = evenly_spaced(nodes, _SHOWN).tolist()
    for axes, m in zip(panels[1:], shown, strict=False):
        _show(axes, _part(image_HWC, holding.grid, holding.assignment, m), f"node {m}")
    return figure


def caption(holding: Holding) -> str:
    """Describe the picture in a sentence or two."""
    if holding.grid is None:
        return f"{holding.name}: every client holds whole images of its own, with labels; one of each client's." + (
            f" {len(holding.images_BCHW)} of {holding.clients} clients are shown."
            if holding.clients > len(holding.images_BCHW)
            else ""
        )
    grid, nodes = holding.grid, max(holding.assignment) + 1
    shown = f" {_SHOWN} of {nodes} nodes are shown." if nodes > _SHOWN else ""
    share = 100 * max(grid.shown([p]).mean() for p in range(grid.num_patches))
    several = f"some of {grid.num_patches} patches of every image"
    one = f"one of {grid.num_patches} patches of every image, {share:.0f} % of its pixels"
    each = one if nodes == grid.num_patches else several
    return f"{holding.name}: each node holds {each}, at its own positions, and no labels.{shown}"


def _part(
    image_HWC: NDArray[np.float64], grid: PatchGrid, assignment: tuple[int, ...], node: int
) -> NDArray[np.float64]:
    """Return the image with everything blank but a node's patches."""
    held = grid.shown(p for p, m in enumerate(assignment) if m == node)
    return np.where(held[:, :, None], image_HWC, _EMPTY)


def _lines(axes: Axes, grid: PatchGrid) -> None:
    for p in range(grid.num_patches):
        top, left = _corner(grid, p)
        height, width = grid.patch_size
        axes.add_patch(Rectangle((left - 0.5, top - 0.5), width, height, fill=False, edgecolor=_LINE, linewidth=0.9))


def _corner(grid: PatchGrid, position: int) -> tuple[int, int]:
    """Return top and left of a patch on the image; below zero where padding was added."""
    row, column = divmod(position, grid.cols)
    margins = [(grid.padded_size[axis] - grid.image_size[axis]) // 2 for axis in range(2)]
    return row * grid.stride[0] - margins[0], column * grid.stride[1] - margins[1]


def _pixels(image_CHW: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return an image as matplotlib takes it: (H, W, 3), 0..1."""
    image_HWC = image_CHW.transpose(1, 2, 0) / 255.0
    return np.repeat(image_HWC, 3, axis=2) if image_HWC.shape[2] == 1 else image_HWC[:, :, :3]


def _show(axes: Axes, image_HWC: NDArray[np.float64], title: str) -> None:
    axes.imshow(image_HWC, interpolation="nearest")
    axes.set_title(title, fontsize=9)
