"""Writes all that is made of a report: JSON, CSV, plots as PNG, and one HTML page that needs nothing but itself."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from psl_flower.errors import RunError
from simulations import reports
from simulations.compare import pictures, plots
from simulations.compare.page import Plot, render
from simulations.compare.report import Report, absent_csv, curves_csv, to_csv
from simulations.compare.results import JUDGED
from simulations.compare.study import Holding

_DPI = 160
# The same ids in every run, and text as shapes: the page looks the same on every machine.
_STYLE: dict[Any, Any] = {"svg.hashsalt": "psl-flower", "svg.fonttype": "path", "font.size": 10}


@dataclass(frozen=True, slots=True)
class _Drawing:
    name: str
    heading: str
    text: str
    figure: Figure


def write_files(folder: Path, report: Report, holdings: Sequence[Holding]) -> Path:
    """Write everything to an existing folder; return the page's path. Raises RunError if the disk refuses."""
    reports.save(folder / "report.json", report)
    reports.write(folder / "methods.csv", to_csv(report).encode())
    reports.write(folder / "curves.csv", curves_csv(report).encode())
    if any(trial.absent for trial in report.measurements):
        reports.write(folder / "absent.csv", absent_csv(report).encode())
    shown = []
    with mpl.rc_context(_STYLE):
        for drawing in _drawings(report, holdings):
            reports.write(folder / f"{drawing.name}.png", png(drawing.figure))
            shown.append(Plot(heading=drawing.heading, text=drawing.text, svg=_svg(drawing.figure)))
    page = folder / "index.html"
    reports.write(page, render(report, shown).encode())
    return page


def _drawings(report: Report, holdings: Sequence[Holding]) -> Iterator[_Drawing]:
    for number, holding in enumerate(holdings):
        caption, figure = pictures.caption(holding), pictures.picture(holding)
        yield _Drawing(f"holdings-{number}", "What each node holds", caption, figure)
    heading = "Accuracy by epoch, time and bytes"
    text = f"By passes over the training images, the same for all methods.{_bands(report)}"
    yield _Drawing("accuracy-by-epoch", heading, text, plots.accuracy_by_epoch(report))
    text = "By seconds of training on this machine, whose cores all parties share; evaluations are left out."
    yield _Drawing("accuracy-by-time", heading, text, plots.accuracy_by_time(report))
    if (by_bytes := plots.accuracy_by_bytes(report)) is not None:
        text = "By what all nodes sent and received, the evaluations of patch-split learning included."
        yield _Drawing("accuracy-by-bytes", heading, text, by_bytes)
    for number, (group, figure) in enumerate(plots.adaptation(report)):
        text = f"{group}: the same steps with the Adaptation Net (solid) and without it (dashed).{_bands(report)}"
        yield _Drawing(f"adaptation-{number}", "The Adaptation Net and the speed of learning", text, figure)
    if (absent := plots.absent(report)) is not None:
        text = "Mean over choices of absent Uppers and seeds (line), and the range (band)."
        yield _Drawing("absent", "Accuracy without some Uppers", text, absent)
    for number, (name, figure) in enumerate(plots.confusion(report)):
        judged = JUDGED[report.settings.judge]
        text = f"{name}: of the {judged}, by class (row) the share, in %, that was taken for each (column)."
        yield _Drawing(f"confusion-{number}", "Confusion matrix", text, figure)


def _bands(report: Report) -> str:
    several = len({trial.seed for trial in report.measurements}) > 1
    return " Lines are means over the seeds, bands go from the lowest to the highest." if several else ""


def plot(report: Report, name: str, source: str) -> bytes:
    """Return one of a report's plots as PNG, by its name without ".png"; it says in itself what it was made of.

    Raises
    ------
    RunError
        If the report has no such plot.
    """
    with mpl.rc_context(_STYLE):
        for drawing in _drawings(report, []):
            if drawing.name == name:
                return png(drawing.figure, source)
    raise RunError(f"{source}: has no plot {name}")


def png(figure: Figure, source: str | None = None) -> bytes:
    """Return a figure as PNG, which says in itself what it was made of."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=_DPI, metadata={"Software": None, "Source": source})
    return file.getvalue()


def _svg(figure: Figure) -> str:
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    return text[text.index("<svg") :]
