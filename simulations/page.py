"""The page docs/benchmarks.md, made of result files."""

from __future__ import annotations

import glob
from collections.abc import Mapping, Sequence
from pathlib import Path

from psl_flower.errors import RunError
from simulations import first_model, grid_choice, reading, recipe, seams
from simulations.chaos.deployed_results import Report as ChaosDeployed
from simulations.chaos.results import Report as Chaos
from simulations.compare.report import Report as Comparison
from simulations.leakage.results import Report as Leakage
from simulations.lightening.results import Report as Lightening
from simulations.reports import Report, load
from simulations.sealed_cost.results import Report as SealedCost
from simulations.separate_hosts.results import Report as SeparateHosts
from simulations.tables import markdown
from simulations.throughput.results import Report as Throughput
from simulations.vertical.results import Report as Vertical

KINDS: tuple[type[Report], ...] = (
    Throughput, SealedCost, SeparateHosts, Chaos, ChaosDeployed, Comparison, Lightening, grid_choice.Report,
    reading.Report, Leakage, seams.Report, recipe.Report, first_model.Report, Vertical,
)  # fmt: skip
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
    python -m simulations.chaos --deployed --kills 200 --out docs/results/chaos-deployed.json
    python -m simulations.compare --dataset ../shared/data/cifar10 --out comparison   # report.json of that folder
    python -m simulations.lightening --dataset ../shared/data/cifar10 --out docs/results/lightening-cifar10.json
    python -m simulations.grid_choice --dataset digits --out docs/results/grid-choice.json
    python -m simulations.leakage --dataset ../shared/data/cifar10 --out docs/results/leakage-cifar10.json
    python -m simulations.seams --dataset ../shared/data/cifar10 --out docs/results/seams-cifar10.json
    python -m simulations.reading --other OLDER/.venv/bin/python --out docs/results/reading.json
    python -m simulations.vertical --out docs/results/vertical.json
    python -m simulations.first_model --dataset ../shared/data/cifar10 --out docs/results/first-model.json
"""


def draw(report: Report, name: str, source: str) -> bytes:
    """Return one of a report's plots as PNG, which says in itself what it was made of.

    Raises
    ------
    RunError
        If the report has no such plot; only comparisons and the benchmark of what codes give away have some.
    """
    from simulations.compare.files import plot, png  # loads matplotlib
    from simulations.leakage.plots import drawn

    if isinstance(report, Comparison):
        return plot(report, name, source)
    figure = drawn(report, name) if isinstance(report, Leakage) else None
    if figure is None:
        raise RunError(f"{source}: has no plot {name}")
    return png(figure, source)


def load_all(names: Sequence[str]) -> dict[str, Report]:
    """Return the reports of result files, by file name; those of benchmarks without a section are passed over.

    Raises RunError as `load`.
    """
    found: dict[str, Report] = {}
    for name in names:
        # A shell leaves a pattern that fits nothing as it is: no result file yet.
        for path in map(Path, sorted(glob.glob(name)) if glob.has_magic(name) else [name]):
            report = load(path, *KINDS)
            if report is not None:
                found[path.name] = report
    return found


def render(reports: Mapping[str, Report]) -> str:
    """Return the page of reports, of any benchmark, by file name."""
    if not reports:
        return _HEAD + _NONE
    return "\n".join([_HEAD, *(_section(name, report) for name, report in sorted(reports.items()))])


def _section(name: str, report: Report) -> str:
    versions = ", ".join(f"{package} {version}" for package, version in report.versions.items())
    return "\n".join(
        [
            f"## {name.removesuffix('.json')}",
            "",
            f"{report.title}. {report.date}, {report.machine['system']}; {versions}.",
            "",
            *(f"{markdown(*cells)}\n" for cells in report.tables),
            report.notes,
            "",
            "Again:",
            "",
            f"    {report.command}",
            "",
        ]
    )
