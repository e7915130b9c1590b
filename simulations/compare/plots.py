"""Curves, bars and confusion matrices of a report, as matplotlib figures that stay readable on a telephone."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator

from simulations.axes import WIDTH, new_axes, with_legend
from simulations.compare.report import Report, absence
from simulations.compare.results import AVERAGING, MERGED, PATCHES, WHOLE, Method, Point, Trial

# Okabe and Ito's colours, which colour-blind readers tell apart.
_SPLIT = (
    "#0072b2", "#009e73", "#56b4e9", "#004d40", "#5c6bc0", "#7cb342", "#8d6e63", "#e69f00", "#cc79a7", "#d55e00",
)  # fmt: skip
_AVERAGED = ("#d55e00", "#cc79a7", "#e69f00", "#8c4a00", "#99004d", "#b38f00")
_ALONE = {WHOLE: "#000000", MERGED: "#7f7f7f"}
# Without the Adaptation Net, and with it by the weight of its loss.
_DASHES = ((0, (4, 2)), "-", (0, (1, 1)), (0, (5, 1, 1, 1)))
_INK = "#222222"
_MANY_CLASSES = 20

Style = dict[str, Any]


def styles(methods: Sequence[Method]) -> dict[str, Style]:
    """Return colour and dashes by method; methods that differ in the Adaptation Net alone share a colour."""
    colours: dict[str, str] = {}
    for kind, palette in ((PATCHES, _SPLIT), (AVERAGING, _AVERAGED)):
        groups = dict.fromkeys(method.group for method in methods if method.kind == kind)
        colours |= {group: palette[i % len(palette)] for i, group in enumerate(groups)}
    found: dict[str, Style] = {}
    for method in methods:
        alphas = sorted({float(m.config.get("alpha", 0.0)) for m in methods if m.group == method.group} | {0.0})
        strength = alphas.index(float(method.config.get("alpha", 0.0)))
        found[method.name] = {
            "color": _ALONE.get(method.kind) or colours[method.group],
            "linestyle": _DASHES[strength % len(_DASHES)] if method.kind == PATCHES else "-",
        }
    return found


def _measured(report: Report) -> str:
    return {"test": "test accuracy, %", "valid": "validation accuracy, %"}[report.settings.judge]


def accuracy_by_epoch(report: Report) -> Figure:
    """Return accuracy over passes: means of the seeds, and their range."""
    figure, axes = new_axes("epochs", _measured(report))
    _curves(report, axes, lambda point: point.epoch)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _mark_target(report, axes)
    return _finished(figure, axes)


def accuracy_by_time(report: Report) -> Figure:
    """Return accuracy over seconds of training on this machine."""
    figure, axes = new_axes("training time, s", _measured(report))
    _curves(report, axes, lambda point: point.train_s)
    axes.set_xlim(left=0)
    _mark_target(report, axes)
    return _finished(figure, axes)


def accuracy_by_bytes(report: Report) -> Figure | None:
    """Return accuracy over bytes to and from all nodes; None if no method sent any."""
    if not any(trial.up for trial in report.measurements):
        return None
    figure, axes = new_axes("sent in all, up and down, MB (logarithmic)", _measured(report))
    _curves(report, axes, lambda point: (point.bytes_up + point.bytes_down) / 1e6, only=lambda trial: bool(trial.up))
    axes.set_xscale("log")
    for which in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
        which(lambda value, _: f"{value:g}")
    axes.xaxis.set_minor_locator(LogLocator(subs=(2, 5)))
    _mark_target(report, axes)
    return _finished(figure, axes)


def adaptation(report: Report) -> list[tuple[str, Figure]]:
    """Return, by grid, what the Adaptation Net does to the speed of learning: the same steps with and without it."""
    groups: dict[str, list[Method]] = {}
    for summary in report.summaries:
        if summary.method.kind == PATCHES:
            groups.setdefault(summary.method.group, []).append(summary.method)
    found = []
    for group, methods in groups.items():
        if len(methods) < 2:
            continue
        figure, axes = new_axes("training steps", _measured(report))
        names = {method.name for method in methods}
        _curves(report, axes, lambda point: point.epoch * report.settings.steps_per_epoch, only=_of(names))
        axes.set_xlim(left=0)
        found.append((group, _finished(figure, axes)))
    return found


def absent(report: Report) -> Figure | None:
    """Return accuracy over absent Uppers; None if it was not measured."""
    if not any(trial.absent for trial in report.measurements):
        return None
    style = styles([summary.method for summary in report.summaries])
    figure, axes = new_axes("absent Uppers", _measured(report))
    for summary in report.summaries:
        means = absence(report, summary.method.name)
        if means:
            look = style[summary.method.name]
            name, mean = summary.method.name, [100 * found.mean for found in means.values()]
            axes.plot(list(means), mean, label=name, marker="o", markersize=3, linewidth=1.6, **look)
            low, high = ([100 * getattr(found, end) for found in means.values()] for end in ("low", "high"))
            axes.fill_between(list(means), low, high, color=str(look["color"]), alpha=0.12, linewidth=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return _finished(figure, axes)


def confusion(report: Report) -> list[tuple[str, Figure]]:
    """Return the confusion matrix of the whole image and of the best of every other kind, summed over the seeds."""
    best: dict[str, tuple[float, str]] = {}
    for summary in report.summaries:
        kind = WHOLE if summary.method.kind == MERGED else summary.method.kind
        best[kind] = max(best.get(kind, (-1.0, "")), (summary.accuracy.mean, summary.method.name))
    return [(name, _confusion(report, name)) for _, name in best.values()]


def _confusion(report: Report, name: str) -> Figure:
    counts = np.sum([trial.confusion for trial in report.trials_of(name)], axis=0)
    shares = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    classes = report.settings.classes
    figure = Figure(figsize=(WIDTH, WIDTH), layout="constrained")
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xlabel("answer")
    axes.set_ylabel("class")
    if len(classes) <= _MANY_CLASSES:
        turned: dict[str, Any] = (
            {"rotation": 60, "ha": "right", "rotation_mode": "anchor"} if max(map(len, classes)) > 2 else {}
        )
        axes.set_xticks(range(len(classes)), classes, **turned)
        axes.set_yticks(range(len(classes)), classes)
        for row, column in np.ndindex(shares.shape):
            share = shares[row, column]
            if share >= 0.005:
                colour = "white" if share > 0.5 else _INK
                axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center", color=colour, fontsize=8)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return figure


def _of(names: Collection[str]) -> Callable[[Trial], bool]:
    return lambda trial: trial.method in names


def _curves(
    report: Report,
    axes: Axes,
    at: Callable[[Point], float],
    only: Callable[[Trial], bool] = lambda trial: True,
) -> None:
    """Draw the mean of each method's trials, and their range where there are several."""
    style = styles([summary.method for summary in report.summaries])
    for summary in report.summaries:
        trials = [trial for trial in report.trials_of(summary.method.name) if only(trial)]
        if not trials:
            continue
        points = min(len(trial.points) for trial in trials)
        x = np.mean([[at(point) for point in trial.points[:points]] for trial in trials], axis=0)
        y = 100 * np.array([[point.accuracy for point in trial.points[:points]] for trial in trials])
        look = style[summary.method.name]
        marker = "o" if points <= 12 else ""
        axes.plot(x, y.mean(axis=0), label=summary.method.name, marker=marker, markersize=3, linewidth=1.6, **look)
        if len(trials) > 1:
            axes.fill_between(x, y.min(axis=0), y.max(axis=0), color=str(look["color"]), alpha=0.15, linewidth=0)


def _mark_target(report: Report, axes: Axes) -> None:
    target = 100 * report.settings.target
    axes.axhline(target, color="#999999", linewidth=0.8, linestyle=":")
    axes.annotate(
        f"target {target:.1f} %", (0, target), xycoords=("axes fraction", "data"), ha="left", va="bottom",
        fontsize=8, color="#666666", xytext=(3, 1), textcoords="offset points", zorder=5,
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.5},
    )  # fmt: skip


def _finished(figure: Figure, axes: Axes) -> Figure:
    axes.set_ylim(bottom=0)
    return with_legend(figure, axes)
