"""The page docs/benchmarks.md, made of result files."""

from __future__ import annotations

import glob
from collections.abc import Mapping, Sequence
from pathlib import Path

from psl_flower.errors import RunError
from simulations.chaos import results as chaos
from simulations.chaos import table as chaos_table
from simulations.compare import results as compare
from simulations.compare import table as compare_table
from simulations.grid_choice import results as grid_choice
from simulations.grid_choice import table as grid_choice_table
from simulations.lightening import results as lightening
from simulations.lightening import table as lightening_table
from simulations.reports import load
from simulations.sealed_cost import results as sealed_cost
from simulations.sealed_cost import table as sealed_cost_table
from simulations.separate_hosts import results as separate_hosts
from simulations.separate_hosts import table as separate_hosts_table
from simulations.tables import Presentation
from simulations.throughput import results as throughput
from simulations.throughput import table as throughput_table

AnyReport = (
    throughput.Report
    | sealed_cost.Report
    | separate_hosts.Report
    | chaos.Report
    | compare.Report
    | lightening.Report
    | grid_choice.Report
)
_HEAD = """\
# Benchmarks

Made from the result files in `docs/results` by

    python -m simulations.throughput --page docs/results/*.json --out docs/benchmarks.md

Do not edit: a test makes it again and compares. In the throughput tables "one process" is the same network on the same
batches, trained by one process in turns with the federated run, so that a machine whose speed drifts does not change
their ratio: the price of patch split learning is what the ratio lacks to 1. Times of comparisons that ran as one graph
were taken with other work beside and mean little. The lightenings of before 2026-11-26 06:30 are of Uppers that each
began with its own weights: add `upper-init=own` to repeat them.
"""
_NONE = """
There is no result file yet. Measure, with nothing else running:

    python -m simulations.throughput --dataset ../shared/data/cifar10 --out docs/results/throughput-cifar10.json
    python -m simulations.sealed_cost --dataset ../shared/data/cifar10 --out docs/results/sealed-cost.json
    python -m simulations.separate_hosts --dataset ../shared/data/cifar10 --out docs/results/separate-hosts.json
    python -m simulations.chaos --kills 50 --out docs/results/chaos.json
    python -m simulations.compare --dataset ../shared/data/cifar10 --out comparison   # report.json of that folder
    python -m simulations.lightening --dataset ../shared/data/cifar10 --out docs/results/lightening-cifar10.json
    python -m simulations.grid_choice --dataset digits --out docs/results/grid-choice.json
"""


def draw(report: AnyReport, name: str, source: str) -> bytes:
    """Return one of a comparison's plots as PNG, which says in itself what it was made of.

    Raises
    ------
    RunError
        If the report is none of a comparison, or has no such plot.
    """
    from simulations.compare.files import plot  # loads matplotlib

    if not isinstance(report, compare.Report):
        raise RunError(f"{source}: only comparisons have plots")
    return plot(report, name, source)


def load_all(names: Sequence[str]) -> dict[str, AnyReport]:
    """Return the reports of result files, by file name; those of benchmarks without a section are passed over.

    Raises
    ------
    RunError
        As `load`.
    """
    found: dict[str, AnyReport] = {}
    for name in names:
        # A shell leaves a pattern that fits nothing as it is: no result file yet.
        for path in map(Path, sorted(glob.glob(name)) if glob.has_magic(name) else [name]):
            report = (
                load(path, throughput.Report)
                or load(path, sealed_cost.Report)
                or load(path, separate_hosts.Report)
                or load(path, chaos.Report)
                or load(path, compare.Report)
                or load(path, lightening.Report)
                or load(path, grid_choice.Report)
            )
            if report is not None:
                found[path.name] = report
    return found


def render(reports: Mapping[str, AnyReport]) -> str:
    """Return the page of reports, of any benchmark, by file name."""
    if not reports:
        return _HEAD + _NONE
    return "\n".join([_HEAD, *(_section(name, report) for name, report in sorted(reports.items()))])


def present(report: AnyReport) -> Presentation:
    """Return a report of any benchmark in words."""
    match report:
        case throughput.Report():
            return throughput_table.present(report)
        case sealed_cost.Report():
            return sealed_cost_table.present(report)
        case separate_hosts.Report():
            return separate_hosts_table.present(report)
        case chaos.Report():
            return chaos_table.present(report)
        case compare.Report():
            return compare_table.present(report)
        case lightening.Report():
            return lightening_table.present(report)
        case grid_choice.Report():
            return grid_choice_table.present(report)


def _section(name: str, report: AnyReport) -> str:
    said = present(report)
    versions = ", ".join(f"{package} {version}" for package, version in report.versions.items())
    return "\n".join(
        [
            f"## {name.removesuffix('.json')}",
            "",
            f"{said.title}. {report.date}, {report.machine['system']}; {versions}.",
            "",
            *(f"{markdown(*cells)}\n" for cells in said.tables),
            said.notes,
            "",
            "Again:",
            "",
            f"    {said.command}",
            "",
        ]
    )


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table as Markdown, its first column to the left."""
    line = "|" + " --- |" + " ---: |" * (len(head) - 1)
    return "\n".join(["| " + " | ".join(head) + " |", line, *("| " + " | ".join(row) + " |" for row in rows)])
