"""Figures in README and docs: tables between two marks, made of the result files in docs/results.

    <!-- figures: compare-cifar10 table 1 columns 1,2 -->
    ...
    <!-- end of figures -->

`python -m simulations.quoting README.md docs/accuracy.md` writes them anew; a test checks that nothing changes.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from psl_flower.errors import RunError
from simulations.command_line import exit_status
from simulations.page import AnyReport, load_all, markdown, present
from simulations.reports import write

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
            try:
                text = path.read_text("utf-8")
            except OSError as error:
                raise RunError(f"{path}: cannot be read: {error.strerror or error}") from error
            write(path, fill(text, load_result).encode())

    return exit_status(work)


def load_result(name: str) -> AnyReport:
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


def fill(text: str, load: Callable[[str], AnyReport]) -> str:
    """Return a page with every table between marks made anew.

    Raises
    ------
    RunError
        As `load`, or if there is no such table or column.
    """

    def block(found: re.Match[str]) -> str:
        said = present(load(found["name"]))
        try:
            head, rows = said.tables[int(found["table"]) - 1]
            columns = [int(number) - 1 for number in (found["columns"] or "").split(",") if number] or range(len(head))
            table = markdown([head[i] for i in columns], [[row[i] for i in columns] for row in rows])
        except IndexError:
            raise RunError(f"{found['begin'].strip()}: there is no such table or column") from None
        return f"{found['begin']}{table}\n\n{found['name']}: {said.title}.\n{found['end']}"

    return _BLOCK.sub(block, text)


if __name__ == "__main__":
    sys.exit(main())
