"""The report of a lightening: a table and a plot of accuracy against speed and size."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import msgspec

from psl_flower.errors import RunError
from psl_flower.lightening.choosing import standing
from psl_flower.lightening.folder import LighteningFolder, LogEntry
from psl_flower.lightening.method import Lightened
from psl_flower.lightening.names import title_of
from psl_flower.lightening.search import Conditions, Verdict
from psl_flower.lightening.settings import EDGE
from psl_flower.system.files import disk_errors, read_file, write_file
from psl_flower.text import counted

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes

REPORT_FILE, RESULT_FILE = "report.md", "result.json"
PLOT_FILES = ("pareto.png", "pareto.svg")
COLUMNS = ("model", "accuracy", "test accuracy", "images/s", "ms", "MB", "M multiply-adds", "verdict")
# In the plots: marker and colour.
_KINDS = {
    "chosen": ("*", "tab:red"),
    "conditions met": ("o", "tab:green"),
    "not met": ("o", "tab:orange"),
}


def newest(entries: Sequence[LogEntry], conditions: Conditions) -> list[LogEntry]:
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


def rows(
    entries: Sequence[LogEntry], conditions: Conditions, choice: Mapping[str, Any] | None
) -> list[tuple[str, ...]]:
    """Return the table's rows, without `COLUMNS`; `choice` is that of `as_json`, None if no model was chosen."""
    return [
        (
            title_of(entry.what),
            f"{entry.judged.accuracy:.2%}",
            "" if entry.judged.test_accuracy is None else f"{entry.judged.test_accuracy:.2%}",
            _with_spread(entry.judged.images_per_s, entry.judged.images_per_s_spread, ",.0f"),
            _with_spread(entry.judged.latency_ms, entry.judged.latency_spread, ".2f"),
            f"{entry.judged.num_bytes / 1e6:.2f}",
            f"{entry.judged.multiply_adds / 1e6:.1f}",
            _verdict(entry, conditions, choice),
        )
        for entry in newest(entries, conditions)
    ]


def _with_spread(value: float, spread: float, form: str) -> str:
    return f"{value:{form}}" + (f" ±{spread:.0%}" if spread >= 0.005 else "")


def _verdict(entry: LogEntry, conditions: Conditions, choice: Mapping[str, Any] | None) -> str:
    said = standing(entry.judged, conditions)
    if choice is not None and entry.what == choice["what"]:
        return f"{said}, chosen"
    by = (choice or {}).get("beaten_by", {}).get(entry.what)
    return f"{said}, beaten by: {title_of(by)}" if by else said


def as_json(result: Lightened) -> dict[str, Any]:
    """Return the result as plain values."""
    choice = result.choice
    return {
        "method": str(result.method),
        "end": str(result.end),
        "reason": result.reason,
        "conditions": result.conditions.text(),
        "images": result.images.about,
        "choice": None if choice is None else {**asdict(choice), "title": title_of(choice.what)},
        "closest": result.closest,
        "third": str(result.third) if result.third else None,
        "folder": str(result.folder.path),
        "judged": [msgspec.to_builtins(entry) for entry in newest(result.folder.entries, result.conditions)],
    }


def chosen_line(told: Mapping[str, Any]) -> str:
    """Return the choice of `as_json` and its reason, or what came closest, in words."""
    choice = told["choice"]
    if choice is None:
        return f"Closest: {title_of(told['closest'])}"
    return f"Chosen: {choice['title']}: {choice['why']}"


def write_result(result: Lightened) -> None:
    """Write `as_json` to result.json, which says that the search has ended; raises RunError if the disk refuses."""
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
    """Write report.md and the plots; return the report's path. Raises RunError if the disk refuses."""
    folder, told = result.folder, as_json(result)
    table = [COLUMNS, ("---",) * len(COLUMNS), *rows(folder.entries, result.conditions, told["choice"])]
    first = folder.entries[0]
    where = "the file" if folder.target == EDGE else f"the Uppers' files on node {folder.target}"
    lines = [
        "# Lightening",
        "",
        f"Goals: {result.conditions.text()}.",
        "",
        f"Result: **{result.end}** ({result.reason}). {chosen_line(told)}.",
        "",
        *(f"| {' | '.join(row)} |" for row in table),
        "",
        f"Accuracy is that of the file itself in onnxruntime, on {result.images.about}. Speed is measured on {where}: "
        f"{counted(first.threads, 'thread')}, medians after warm-up, images/s in batches of {first.batch}, ms for one "
        f"image alone; ± is the spread within which speeds count as equal. {_when(folder)} MB is the file on disk.",
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


def _when(folder: LighteningFolder) -> str:
    """Return the report's sentence on how speeds were measured, and on other load."""
    if folder.are_compared():
        return "The models were measured in turns, so other load slows all of them equally."
    return (
        "Each model was measured when it was made, so a machine that became slower meanwhile shows in a later model, "
        "and in no spread."
    )


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
    kinds = {entry.what: _kind(entry, result) for entry in entries}
    figure = Figure(figsize=(11, 5), layout="constrained")
    FigureCanvasAgg(figure)
    by_speed, by_size = figure.subplots(1, 2, sharey=True)
    if conditions.min_speed is not None:
        _scatter(by_speed, entries, kinds, [e.judged.images_per_s for e in entries], more_is_better=True)
        by_speed.set_xlabel("images/s")
        by_speed.axvline(conditions.min_speed, color="grey", linestyle=":")
    else:
        assert conditions.max_latency_ms is not None
        _scatter(by_speed, entries, kinds, [e.judged.latency_ms for e in entries], more_is_better=False)
        by_speed.set_xlabel("ms for one image")
        by_speed.axvline(conditions.max_latency_ms, color="grey", linestyle=":")
    _scatter(by_size, entries, kinds, [e.judged.num_bytes / 1e6 for e in entries], more_is_better=False)
    by_size.set_xlabel("MB on disk")
    if conditions.max_bytes is not None:
        by_size.axvline(conditions.max_bytes / 1e6, color="grey", linestyle=":")
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


def _scatter(
    axes: Axes, entries: Sequence[LogEntry], kinds: Mapping[str, str], values: Sequence[float], *, more_is_better: bool
) -> None:
    for kind, (marker, colour) in _KINDS.items():
        own = [(v, e.judged.accuracy) for e, v in zip(entries, values, strict=True) if kinds[e.what] == kind]
        if own:
            axes.plot(*zip(*own, strict=True), marker, color=colour, label=kind, markersize=12 if marker == "*" else 6)
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


def _kind(entry: LogEntry, result: Lightened) -> str:
    if result.choice is not None and entry.what == result.choice.what:
        return "chosen"
    return "conditions met" if result.conditions.verdict(entry.judged) is Verdict.SATISFIED else "not met"


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
