"""The frame of the benchmarks' plots."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure

WIDTH, _HEIGHT = 4.7, 3.2


def new_axes(x: str, y: str) -> tuple[Figure, Axes]:
    """Return an empty plot with these names of its axes, as wide as a telephone shows it."""
    figure = Figure(figsize=(WIDTH, _HEIGHT), layout="constrained")
    axes = figure.subplots()
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def with_legend(figure: Figure, axes: Axes) -> Figure:
    """Put the legend below the plot, one line for a series, so that long names fit a narrow page; return the plot."""
    handles, labels = axes.get_legend_handles_labels()
    figure.set_figheight(_HEIGHT + 0.2 * len(labels))
    figure.legend(handles, labels, loc="outside lower left", ncols=1, frameon=False, fontsize=9.5, handlelength=2.6)
    return figure
