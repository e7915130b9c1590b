"""Figures in README and docs: tables between two marks and plots, made of the result files in docs/results.

    <!-- figures: compare-cifar10 table 1 columns 1,2 -->
    ...
    <!-- end of figures -->

    ![Accuracy by epoch](figures/compare-cifar10-accuracy-by-epoch.png)

`python -m simulations.quoting README.md docs/accuracy*.md` rewrites them; a test checks that no table changes,
and that every plot was made from its current result file.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from psl_flower.cli.output import exit_status
from psl_flower.errors import RunError
from psl_flower.system.files import read_file
from simulations.page import draw, load_all
from simulations.reports import Report, write
from simulations.tables import markdown

_PLOT = re.compile(r"\((figures/([\w-]+)\.png)\)")
RESULTS = Path(__file__).parents[1] / "docs" / "results"
_BLOCK = re.compile(
    r"(?P<begin><!-- figures: (?P<name>[\w-]+) table (?P<table>\d+)(?: columns (?P<columns>[\d,]+))? -->\n)"
    r".*?(?P<end><!-- end of figures -->)",
    re.DOTALL,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status, see `exit_status`."""
    parser = argparse.ArgumentParser(prog="python -m simulations.quoting", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="Markdown files; written in place")

    def work() -> None:
        for path in parser.parse_args(arguments).files:
            text = read_file(path, RunError).decode()
            write(path, fill(text, load_result).encode())
            for plot, name, drawing in plots(text):
                write(path.parent / plot, draw(load_result(name), drawing, source_of(name)))

    return exit_status(work)


def plots(text: str) -> list[tuple[str, str, str]]:
    """Return the plots that a page shows: path from the page, name of the result file, name of the plot."""
    names = sorted((path.stem for path in RESULTS.glob("*.json")), key=len, reverse=True)
    found = []
    for path, stem in _PLOT.findall(text):
        name = next((name for name in names if stem.startswith(f"{name}-")), None)
        if name is None:
            raise RunError(f"{path}: is no plot of a result file in {RESULTS}")
        found.append((path, name, stem.removeprefix(f"{name}-")))
    return found


def source_of(name: str) -> str:
    """Return the source that a plot names: a result file, and its SHA-256."""
    return f"{name}.json {hashlib.sha256((RESULTS / f'{name}.json').read_bytes()).hexdigest()}"


def load_result(name: str) -> Report:
    """Return the report of a file in docs/results by its name without ".json".

    Raises
    ------
    RunError
        If there is none, or it is damaged.
    """
    (report,) = load_all([str(RESULTS / f"{name}.json")]).values() or [None]
    if report is None:
        raise RunError(f"{RESULTS / name}.json: is no result file of a benchmark with tables")
    return report


def fill(text: str, load: Callable[[str], Report]) -> str:
    """Return a page with every table between marks rewritten.

    Raises RunError as `load`, or if there is no such table or column.
    """

    def block(found: re.Match[str]) -> str:
        report = load(found["name"])
        try:
            head, rows = report.tables[int(found["table"]) - 1]
            columns = [int(number) - 1 for number in (found["columns"] or "").split(",") if number] or range(len(head))
            table = markdown([head[i] for i in columns], [[row[i] for i in columns] for row in rows])
        except IndexError:
            raise RunError(f"{found['begin'].strip()}: there is no such table or column") from None
        return f"{found['begin']}{table}\n\n{found['name']}: {report.title}.\n{found['end']}"

    return _BLOCK.sub(block, text)


if __name__ == "__main__":
    sys.exit(main())
