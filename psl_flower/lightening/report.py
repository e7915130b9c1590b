"""The report of a lightening: a table and a plot of accuracy against speed and size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from psl_flower.errors import RunError
from psl_flower.lightening.folder import Entry, LighteningFolder
from psl_flower.lightening.method import Lightened
from psl_flower.lightening.search import Attempt, Conditions, Verdict
from psl_flower.lightening.settings import EDGE
from psl_flower.system.files import disk_errors, read_file, write_file

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes

REPORT_FILE, RESULT_FILE = "report.md", "result.json"
PLOT_FILES = ("pareto.png", "pareto.svg")
COLUMNS = ("model", "accuracy", "images/s", "ms", "MB", "M multiply-adds", "verdict")
_NAMES = {
    "first": "first (the run's), float32",
    "first-int8": "first, directly in int8",
    "first-distilled": "first, taught by the second, float32",
    "second": "second, float32",
}
# In the plots: marker and colour.
_KINDS = {
    "reference": ("s", "tab:blue"),
    "light, by degree: conditions met": ("o", "tab:green"),
    "light, by degree: not met": ("o", "tab:orange"),
}


def newest(entries: Sequence[Entry], conditions: Conditions) -> list[Entry]:
    """Return the newest entry of everything that was judged: references first, then degrees ascending.

    Verdicts are those under the conditions given, whatever they were when the entry was made.
    """
    latest = {
        entry.what: entry
        if entry.degree is None
        else msgspec.structs.replace(entry, verdict=str(conditions.verdict(entry.judged)), conditions=conditions.text())
        for entry in entries
    }
    return sorted(latest.values(), key=lambda entry: (entry.degree is not None, entry.degree or 0, entry.at))


def rows(entries: Sequence[Entry], conditions: Conditions) -> list[tuple[str, ...]]:
    """Return the table's rows, without `COLUMNS`."""
    return [
        (
            name_of(entry),
            f"{entry.judged.accuracy:.2%}",
            f"{entry.judged.images_per_s:.0f}",
            f"{entry.judged.latency_ms:.2f}",
            f"{entry.judged.num_bytes / 1e6:.2f}",
            f"{entry.judged.multiply_adds / 1e6:.1f}",
            entry.verdict,
        )
        for entry in newest(entries, conditions)
    ]


def name_of(entry: Entry) -> str:
    """Return a judged model's name."""
    return _NAMES.get(entry.what) or f"third, degree {entry.degree}, int8"


def attempt_line(attempt: Attempt) -> str:
    """Return an attempt's outcome in one line."""
    judged = attempt.judged
    return (
        f"degree {attempt.degree}: accuracy {judged.accuracy:.2%}, {judged.images_per_s:.0f} images/s, "
        f"{judged.latency_ms:.2f} ms, {judged.num_bytes / 1e6:.2f} MB: {attempt.verdict}"
    )


def as_json(result: Lightened) -> dict[str, Any]:
    """Return the result as plain values."""
    outcome = result.outcome
    return {
        "end": str(outcome.end),
        "reason": outcome.reason,
        "conditions": result.conditions.text(),
        "best_degree": outcome.best.degree,
        "third": str(result.third) if result.third else None,
        "folder": str(result.folder.path),
        "judged": [msgspec.to_builtins(entry) for entry in newest(result.folder.entries, result.conditions)],
    }


def write_result(result: Lightened) -> None:
    """Write `as_json` to result.json, which says that the search has ended.

    Raises
    ------
    RunError
        If the disk refuses.
    """
    write_file(result.folder.path / RESULT_FILE, msgspec.json.format(msgspec.json.encode(as_json(result))), RunError)


def read_result(folder: LighteningFolder) -> dict[str, Any]:
    """Read a result of `write_result`; raises RunError if it is missing or damaged."""
    path = folder.path / RESULT_FILE
    try:
        result: dict[str, Any] = msgspec.json.decode(read_file(path, RunError))
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RunError(f"{path}: cannot be read: {error}") from error
    return result


def write_report(result: Lightened) -> Path:
    """Write report.md and the plots; return the report's path.

    Raises
    ------
    RunError
        If the disk refuses.
    """
    folder, outcome = result.folder, result.outcome
    table = [COLUMNS, ("---",) * len(COLUMNS), *rows(folder.entries, result.conditions)]
    first = folder.entries[0]
    where = "the file" if folder.target == EDGE else f"the Uppers' files on node {folder.target}"
    lines = [
        "# Lightening",
        "",
        f"Asked for: {result.conditions.text()}.",
        "",
        f"Result: **{outcome.end}** ({outcome.reason}). Best: degree {outcome.best.degree}.",
        "",
        *(f"| {' | '.join(row)} |" for row in table),
        "",
        "Accuracy is that of the file itself in onnxruntime on the run's test images, by which the loop chooses. Speed "
        f"is measured on {where}: {first.threads} threads, medians after warm-up, images/s in batches of "
        f"{first.batch}, ms for one image alone. MB is the file on disk.",
        "",
        f"![Accuracy against speed and size]({PLOT_FILES[0]})",
        "",
    ]
    path = folder.path / REPORT_FILE
    with disk_errors(folder.path, "written", RunError):
        write_file(path, "\n".join(lines).encode(), RunError)
        for name in PLOT_FILES:
            _plot(result, folder.path / name)
    return path


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return the Pareto front of points (benefit, accuracy), by ascending benefit."""
    front: list[int] = []
    best = float("-inf")
    for index in sorted(range(len(points)), key=lambda i: (-points[i][0], -points[i][1])):
        if points[index][1] > best:
            best = points[index][1]
            front.append(index)
    return front[::-1]


def _plot(result: Lightened, path: Path) -> None:
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    conditions = result.conditions
    entries = newest(result.folder.entries, conditions)
    figure = Figure(figsize=(11, 5), layout="constrained")
    FigureCanvasAgg(figure)
    by_speed, by_size = figure.subplots(1, 2, sharey=True)
    if conditions.min_speed is not None:
        _scatter(by_speed, entries, [e.judged.images_per_s for e in entries], more_is_better=True)
        by_speed.set_xlabel("images/s")
        by_speed.axvline(conditions.min_speed, color="grey", linestyle=":")
    else:
        assert conditions.max_latency_ms is not None
        _scatter(by_speed, entries, [e.judged.latency_ms for e in entries], more_is_better=False)
        by_speed.set_xlabel("ms for one image")
        by_speed.axvline(conditions.max_latency_ms, color="grey", linestyle=":")
    _scatter(by_size, entries, [e.judged.num_bytes / 1e6 for e in entries], more_is_better=False)
    by_size.set_xlabel("MB on disk")
    by_speed.set_ylabel("accuracy")
    for axes in (by_speed, by_size):
        axes.axhline(conditions.min_accuracy, color="grey", linestyle=":", label="thresholds")
        _plain_numbers(axes)
        axes.grid(alpha=0.3)
    handles, names = by_speed.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=len(names), frameon=False, fontsize=9)
    # Without a date and random ids the same result gives the same file.
    with rc_context({"svg.hashsalt": "psl-flower"}):
        figure.savefig(path, dpi=130, metadata={"Date": None} if path.suffix == ".svg" else None)


def _scatter(axes: Axes, entries: Sequence[Entry], values: Sequence[float], *, more_is_better: bool) -> None:
    for kind, (marker, colour) in _KINDS.items():
        chosen = [(v, e.judged.accuracy) for e, v in zip(entries, values, strict=True) if _kind(e) == kind]
        if chosen:
            axes.plot(*zip(*chosen, strict=True), marker, color=colour, label=kind)
    for index, (entry, value) in enumerate(zip(entries, values, strict=True)):
        label = entry.what if entry.degree is None else str(entry.degree)
        # Of neighbours along the axis the higher is named above its point, the lower below, which keeps names apart.
        others = [i for i in range(len(entries)) if i != index]
        nearest = min(others, key=lambda i: abs(math.log(values[i] / value)), default=index)
        above = (entry.judged.accuracy, index) >= (entries[nearest].judged.accuracy, nearest)
        place, offset = (value, entry.judged.accuracy), (5, 5 if above else -11)
        axes.annotate(label, place, textcoords="offset points", xytext=offset, fontsize=8)
    sign = 1 if more_is_better else -1
    accuracy = [entry.judged.accuracy for entry in entries]
    front = pareto([(sign * value, a) for value, a in zip(values, accuracy, strict=True)])
    line = [values[i] for i in front], [accuracy[i] for i in front]
    axes.plot(*line, color="grey", linewidth=1, zorder=0, label="Pareto front")


def _kind(entry: Entry) -> str:
    if entry.degree is None:
        return "reference"
    return "light, by degree: conditions met" if entry.verdict == Verdict.SATISFIED else "light, by degree: not met"


def _plain_numbers(axes: Axes) -> None:
    """Give logarithmic axes few and plain numbers, and room for the names beside the points."""
    from matplotlib.ticker import LogLocator, NullFormatter, NullLocator, PercentFormatter, StrMethodFormatter

    axes.set_xscale("log")
    axes.margins(x=0.15, y=0.08)
    low, high = axes.get_xlim()
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < 300 * low else (1.0,)))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=1))
