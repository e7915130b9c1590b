"""The report as tables on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable

from rich.console import Console
from rich.table import Table

from simulations.throughput.results import PARTS, Report, Spread, Summary

# A pipe has no width of its own.
WIDTH = 120
Row = tuple[str, ...]


def show(report: Report) -> None:
    """Print the report on standard output."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH)
    console.print(title(report))
    for head, rows in (rates(report), step_times(report), memory(report), startup(report)):
        if rows:
            table = Table(*head[:1])
            for name in head[1:]:
                table.add_column(name, justify="right")
            for row in rows:
                table.add_row(*row)
            console.print(table)
    console.print(notes(report))


def title(report: Report) -> str:
    """Return one line: what was trained, and where."""
    config, machine = report.settings.config, report.machine
    gigabytes = float(machine["memory_bytes"]) / 2**30
    return (
        f"{config['dataset']}, {config['backbone']}, batch {config['batch-size']}, "
        f"wire {_wire(report)}{', bfloat16 autocast' if config['autocast'] else ''}; "
        f"{machine['cpu']}, {machine['cores']} cores, {gigabytes:.0f} GiB"
    )


def notes(report: Report) -> str:
    """Return how to read the tables."""
    settings = report.settings
    rounding = "rounding at the cut as the wire does" if settings.round_at_cut else "without rounding at the cut"
    return (
        f"Median (lowest to highest) of {settings.repetitions} repetition{'s' * (settings.repetitions > 1)} of "
        f"{settings.steps} timed steps after "
        f"{settings.warmup} of warm-up; ratio within a repetition. Threads: one process {settings.threads}, "
        f"Lower {settings.threads}, each of {settings.nodes} nodes {settings.upper_threads}. The one process works "
        f"{rounding}. Parts are means over all steps: the slowest Upper, the Lower, the rest (moving bytes, waiting). "
        f"Load of the machine before: {report.machine['load_before']}."
    )


def rates(report: Report) -> tuple[Row, list[Row]]:
    """Return names and cells of the table of throughput."""
    head = ("mode", "images/s", "ratio to one process", "up, kB/image", "down, kB/image")
    return head, [
        (
            summary.mode,
            spread(summary.images_per_s, _one_decimal),
            spread(summary.ratio, _three_decimals),
            _kilobytes(summary.bytes_up_per_image),
            _kilobytes(summary.bytes_down_per_image),
        )
        for summary in report.summaries
    ]


def step_times(report: Report) -> tuple[Row, list[Row]]:
    """Return names and cells of the table of a step's time."""
    head = ("mode", "step, s", *(f"{part}, s" for part in PARTS))
    return head, [
        (
            summary.mode,
            spread(summary.step_s, _three_decimals),
            *(spread(summary.parts_s.get(part), _three_decimals) for part in PARTS),
        )
        for summary in report.summaries
    ]


def memory(report: Report) -> tuple[Row, list[Row]]:
    """Return names and cells of the table of memory."""
    head = ("mode", "process", "peak, MB", "own share, MB")
    return head, [
        (
            summary.mode,
            _process(summary, role),
            f"{peak / 1e6:.0f}",
            f"{summary.pss_bytes[role] / 1e6:.0f}" if role in summary.pss_bytes else "-",
        )
        for summary in report.summaries
        for role, peak in summary.peak_bytes.items()
    ]


def startup(report: Report) -> tuple[Row, list[Row]]:
    """Return names and cells of the table of start-up: the phases as means over the repetitions."""
    rows: list[Row] = []
    for summary in report.summaries:
        trials = [trial for trial in report.measurements if trial.mode == summary.mode]
        phases = [
            f"{name} {sum(trial.startup_s[name] for trial in trials) / len(trials):.1f}" for name in trials[0].startup_s
        ]
        rows.append((summary.mode, spread(summary.startup_s, _one_decimal), ", ".join(phases)))
    return ("mode", "command to first step, s", "phases, s"), rows


def spread(values: Spread | None, text: Callable[[float], str]) -> str:
    """Return "median (low to high)", or the one value there is; a dash where there is nothing."""
    if values is None:
        return "-"
    if values.low == values.high:
        return text(values.median)
    return f"{text(values.median)} ({text(values.low)} to {text(values.high)})"


def _process(summary: Summary, role: str) -> str:
    return {"Upper": "largest Upper process", "Flower": "Flower and Ray, all others together"}.get(role, role)


def _wire(report: Report) -> str:
    codecs = dict.fromkeys((report.settings.config["wire-activations"], report.settings.config["wire-gradients"]))
    return " up, ".join(str(codec) for codec in codecs) + (" down" if len(codecs) > 1 else "")


def _kilobytes(num_bytes: float | None) -> str:
    return "-" if num_bytes is None else f"{num_bytes / 1000:.1f}"


def _one_decimal(value: float) -> str:
    return f"{value:.1f}"


def _three_decimals(value: float) -> str:
    return f"{value:.3f}"
