"""Reports for people: on a terminal, as Markdown, and their numbers as text."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from psl_flower.models.architectures import WIDTH
from simulations.options import text_of
from simulations.reports import Report, Spread, Values
from simulations.settings import DEFAULTS, differing

# A pipe has no width.
_WIDTH = 120


def show(report: Report) -> None:
    """Print a report on standard output."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else _WIDTH)
    console.print(report.title)
    for head, rows in report.tables:
        if rows:
            table = Table(*head[:1])
            for name in head[1:]:
                table.add_column(name, justify="right")
            for row in rows:
                table.add_row(*row)
            console.print(table)
    console.print(report.notes)


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table as Markdown, its first column to the left."""
    line = "|" + " --- |" + " ---: |" * (len(head) - 1)
    return "\n".join(["| " + " | ".join(head) + " |", line, *("| " + " | ".join(row) + " |" for row in rows)])


def dataset_name(name: str) -> str:
    """Return a dataset's name; for a folder, the last part of its path."""
    return Path(name).name if name.startswith((".", "/")) else name


def network_name(config: Values) -> str:
    """Return a run's backbone in words; result files of before there were widths have torchvision's."""
    width = config.get("backbone-width", WIDTH)
    return str(config["backbone"]) + (f" of width {width}" if width != WIDTH else "")


def trained(config: Values) -> str:
    """Describe a benchmark's network and wire format."""
    up, down = config["wire-activations"], config["wire-gradients"]
    wire = up if up == down else f"{up} up, {down} down"
    return f"{config['dataset']}, {network_name(config)}, batch {config['batch-size']}, wire {wire}"


def spread(values: Spread | None, form: str | Callable[[float], str]) -> str:
    """Return "median (low to high)", or the one value there is; a dash if there is nothing.

    `form` is a format such as ".1f", or returns the text of a number.
    """
    if values is None:
        return "-"
    text = form if callable(form) else f"{{:{form}}}".format
    if values.low == values.high:
        return text(values.median)
    return f"{text(values.median)} ({text(values.low)} to {text(values.high)})"


def again(
    name: str, options: Iterable[tuple[str, str]], config: Values, defaults: Mapping[str, object] = DEFAULTS
) -> str:
    """Return the command line that repeats a benchmark.

    `options` are names and texts of its options, the text of a flag empty; of `config`, only settings other than
    `defaults` are shown.
    """
    words = [word for option, text in options for word in (f"--{option}", *[text] * bool(text))]
    asked = [f"{key}={text_of(value)}" for key, value in differing(config, defaults).items()]
    return shlex.join(["python", "-m", f"simulations.{name}", *words, *asked])
