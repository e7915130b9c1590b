"""The page: one HTML file with tables and plots in it, readable without a network, on a desk and on a telephone."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby

from psl_flower.runs.html import document
from simulations.compare.differences import conclusion
from simulations.compare.report import SEEN, Report
from simulations.reports import Cells

_STYLE = """
body { max-width: 74rem; }
p { max-width: 48rem; margin: .5rem 0; }
.soft { color: #555; font-size: .9rem; }
.scroll { margin: .75rem 0; }
th, td { text-align: right; }
th:first-child, td:first-child, .words th, .words td { text-align: left; }
td:first-child { min-width: 11rem; }
.words td { min-width: 13rem; }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 28rem), 1fr)); gap: 1.25rem; }
figure { margin: 0; }
figure svg { display: block; width: 100%; height: auto; max-width: 38rem; }
figcaption { color: #555; font-size: .9rem; margin-top: .25rem; }
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plot:
    """One plot: neighbours with the same heading share it; `svg` is an svg element."""

    heading: str
    text: str
    svg: str


def render(report: Report, plots: Sequence[Plot]) -> str:
    """Return the page."""
    accuracy, *others = [
        f"<h2>{heading}</h2>\n{_table(cells, words=heading == SEEN)}" for heading, cells in report.headed_tables
    ]
    versions = ", ".join(f"{package} {version}" for package, version in report.versions.items())
    parts = [
        "<h1>Patch-split learning, the whole image, and federated averaging</h1>",
        f"<p>{escape(report.title)}.</p>",
        *[f"<p>{escape(said)}</p>" for said in [conclusion(report)] if said],
        f'<p class="soft">{escape(report.date)}, {escape(str(report.machine["system"]))}; {escape(versions)}.</p>',
        accuracy,
        *_figures(plots),
        *others,
        f"<h2>How to read this</h2>\n<p>{_with_code(report.notes)}</p>",
        f"<h2>Again</h2>\n<pre>{escape(report.command)}</pre>",
    ]
    return document("Patch-split learning compared", "\n".join(parts), _STYLE)


def _with_code(text: str) -> str:
    """Return a text as HTML, with backticks as code."""
    return re.sub(r"`([^`]*)`", r"<code>\1</code>", escape(text))


def _figures(plots: Sequence[Plot]) -> list[str]:
    found = []
    for heading, group in groupby(enumerate(plots), key=lambda numbered: numbered[1].heading):
        figures = "\n".join(
            f"<figure>{_inline(plot, number)}<figcaption>{escape(plot.text)}</figcaption></figure>"
            for number, plot in group
        )
        found.append(f'<h2>{escape(heading)}</h2>\n<div class="plots">\n{figures}\n</div>')
    return found


def _inline(plot: Plot, number: int) -> str:
    """Return the svg element with ids that no other on the page has, a name, and the size that the page gives."""
    used = set(re.findall(r'href="#([^"]*)"|url\(#([^)]*)\)', plot.svg))
    names = {name for pair in used for name in pair}
    svg = re.sub(r'\sid="([^"]*)"', lambda found: found[0] if found[1] in names else "", plot.svg)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>p{number}-", svg)
    name = escape(f"{plot.heading}. {plot.text}", quote=True)
    head, rest = svg.split(">", 1)
    head = re.sub(r'\s(width|height)="[^"]*"', "", head)
    return f'{head} role="img" aria-label="{name}">{rest}'


def _table(cells: Cells, *, words: bool) -> str:
    head, rows = cells
    names = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    lines = "\n".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    kind = ' class="words"' if words else ""
    return f'<div class="scroll"><table{kind}>\n<tr>{names}</tr>\n{lines}\n</table></div>'
