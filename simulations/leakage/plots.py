"""The frontier: accuracy lost against what images give away, and against bytes."""

from __future__ import annotations

from collections.abc import Callable

from matplotlib.figure import Figure

from psl_flower.text import counted
from simulations.axes import new_axes, with_legend
from simulations.leakage.results import Average, Report

# Okabe and Ito's colours, which colour-blind readers tell apart.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
_MARKERS = ("o", "s", "^")


def drawn(report: Report, name: str) -> Figure | None:
    """Return a plot by its name, "accuracy-by-ssim" or "accuracy-by-bytes"; None if there is no such plot."""
    if name == "accuracy-by-ssim":
        return _plot(report, "SSIM: one look (hollow), looks joined (filled)", [
            (lambda one: one.one_look, "none"), (lambda one: one.all_looks, "full"),
        ])  # fmt: skip
    if name == "accuracy-by-bytes":
        figure = _plot(report, "bytes of an image and step, both ways", [(lambda one: one.bytes_both, "full")])
        figure.axes[0].set_xscale("log")
        return figure
    return None


def _plot(report: Report, x: str, series: list[tuple[Callable[[Average], float], str]]) -> Figure:
    figure, axes = new_axes(x, "accuracy lost, points")
    compared = [(average, average.lost) for average in report.averages if average.lost is not None]
    for number, (one, lost) in enumerate(compared):
        colour, marker = _COLOURS[number % len(_COLOURS)], _MARKERS[number // len(_COLOURS) % len(_MARKERS)]
        points = [place(one) for place, _ in series]
        axes.plot(points, [lost] * len(points), color=colour, linewidth=0.8)
        for (_, fill), point in zip(series, points, strict=True):
            label = f"{one.case} ({counted(one.seeds, 'seed')})" if fill == "full" else None
            axes.plot([point], [lost], color=colour, marker=marker, fillstyle=fill, linestyle="none", label=label)
    return with_legend(figure, axes)
