"""The page docs/benchmarks.md, made of result files."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence

from simulations.sealed_cost import results as costs
from simulations.sealed_cost import table as cost_table
from simulations.throughput import table
from simulations.throughput.defaults import differing
from simulations.throughput.results import Report

_HEAD = """\
# Benchmarks

Made from the result files in `docs/results` by

    python -m simulations.throughput --page docs/results/*.json --out docs/benchmarks.md

Do not edit: a test makes it again and compares. In the throughput tables "one process" is the same network on the same
batches, trained by one process alone on the machine: the price of patch split learning is what the ratio lacks to 1.
"""
_NONE = """
There is no result file yet. Measure, with nothing else running:

    python -m simulations.throughput --dataset ../shared/data/cifar10 --out docs/results/throughput-cifar10.json
    python -m simulations.sealed_cost --dataset ../shared/data/cifar10 --out docs/results/sealed-cost.json
"""
AnyReport = Report | costs.Report


def render(reports: Mapping[str, AnyReport]) -> str:
    """Return the page of reports, of any benchmark, by file name."""
    if not reports:
        return _HEAD + _NONE
    return "\n".join([_HEAD, *(_section(name, report) for name, report in sorted(reports.items()))])


def _section(name: str, report: AnyReport) -> str:
    if isinstance(report, Report):
        title, notes, again = table.title(report), table.notes(report), command(report)
        tables = (table.rates(report), table.step_times(report), table.memory(report), table.startup(report))
    else:
        title, notes, again = cost_table.title(report), cost_table.notes(report), cost_table.command(report)
        tables = cost_table.tables(report)
    versions = ", ".join(f"{package} {version}" for package, version in report.versions.items())
    return "\n".join(
        [
            f"## {name.removesuffix('.json')}",
            "",
            f"{title}. {report.date}, {report.machine['system']}; {versions}.",
            "",
            *(f"{_markdown(*cells)}\n" for cells in tables),
            notes,
            "",
            "Again:",
            "",
            f"    {again}",
            "",
        ]
    )


def command(report: Report) -> str:
    """Return the command line that measures the same again."""
    settings = report.settings
    words = [
        "python", "-m", "simulations.throughput", "--steps", str(settings.steps), "--warmup", str(settings.warmup),
        "--repetitions", str(settings.repetitions), "--transports", ",".join(settings.transports),
        "--threads", str(settings.threads), *["--round-at-cut"] * settings.round_at_cut,
    ]  # fmt: skip
    return shlex.join([*words, *(f"{key}={_text(value)}" for key, value in differing(settings.config).items())])


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    line = "|" + " --- |" + " ---: |" * (len(head) - 1)
    return "\n".join(["| " + " | ".join(head) + " |", line, *("| " + " | ".join(row) + " |" for row in rows)])
