"""Draws docs/figures/idea.png: a photograph, four nodes with a quarter each, and the server; run it as a script."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from sklearn.datasets import load_sample_image

_BLUE, _RED, _INK, _GREY = "#1f6feb", "#c2410c", "#222222", "#7b8794"


def main() -> None:
    """Draw and save the picture."""
    photo = load_sample_image("flower.jpg")[40:400, 130:490]
    figure = plt.figure(figsize=(9, 3.6), dpi=130)
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, 90), ylim=(0, 36), frame_on=False)
    axes.set_axis_off()
    axes.imshow(photo, extent=(2, 20, 9, 27), aspect="auto")
    axes.text(11, 6.5, "the owner's image", ha="center", color=_INK, fontsize=10)
    half = len(photo) // 2
    for node in range(4):
        row, column = divmod(node, 2)
        low = 27 - 8.6 * node
        part = photo[row * half : (row + 1) * half, column * half : (column + 1) * half]
        axes.imshow(part, extent=(36, 43, low + 0.5, low + 7.5), aspect="auto")
        axes.add_patch(_box(35.4, low, 19.2, 8, _BLUE))
        axes.text(44, low + 4, f"node {node + 1}\nfirst layers", va="center", color=_INK, fontsize=9)
        axes.add_patch(_arrow((20.5, 18), (35, low + 4), _GREY))
        axes.add_patch(_arrow((55, low + 4.6), (69, 18.6), _BLUE))
        axes.add_patch(_arrow((69, 17.4), (55, low + 3.4), _RED))
    axes.text(27, 31, "patches,\nencrypted", ha="center", color=_GREY, fontsize=9)
    axes.text(62, 31.5, "features", ha="center", color=_BLUE, fontsize=9)
    axes.text(62, 3.5, "gradients", ha="center", color=_RED, fontsize=9)
    axes.add_patch(_box(69.5, 11, 18, 14, _RED))
    axes.text(78.5, 18, "server\nother layers, loss\nno pixels", ha="center", va="center", color=_INK, fontsize=9)
    axes.set_xlim(0, 90)
    axes.set_ylim(0, 36)
    figure.savefig(Path(__file__).with_suffix(".png"))


def _box(x: float, y: float, width: float, height: float, colour: str) -> FancyBboxPatch:
    return FancyBboxPatch((x, y), width, height, boxstyle="round,pad=0,rounding_size=0.8", fill=False, edgecolor=colour)


def _arrow(begin: tuple[float, float], end: tuple[float, float], colour: str) -> FancyArrowPatch:
    return FancyArrowPatch(begin, end, arrowstyle="-|>", mutation_scale=9, color=colour, linewidth=1)


if __name__ == "__main__":
    main()
