"""The command: from its arguments to the report."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from psl_flower.config import RunConfig
from psl_flower.errors import ConfigError
from psl_flower.machine import usable_cores
from simulations.sealed_cost import bench, table
from simulations.sealed_cost.defaults import DECIDED
from simulations.throughput import results
from simulations.throughput.command import check_out, count, exit_status, merge, temporary_workspace, terminable
from simulations.throughput.progress import Progress


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status: 0, 1 (failed), 2 (usage) or 130 (interrupted)."""
    parser = make_parser()
    return exit_status(lambda: _bench(parser.parse_args(arguments), parser))


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command's arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m simulations.sealed_cost",
        description="Measure what sealing costs on this machine: reads beside a step, ingest, restoration, memory.",
        epilog="With nothing else running: a busy machine makes every number meaningless.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("settings", nargs="*", metavar="KEY=VALUE", help="any other setting of a run, as `psl train` takes it")
    add("--dataset", help="digits, a hub name or a folder, such as ../shared/data/cifar10 [digits]")
    add(
        "--images",
        type=count,
        default=12_500,
        help="training images; the larger ingest takes 4 times as many [12500]",
    )
    add("--batches", type=count, default=100, help="batches read from each kind of store [100]")
    add("--steps", type=count, default=5, help="timed training steps [5]")
    add("--warmup", type=count, default=2, help="steps before them, not timed, at least 1 [2]")
    add("--restored", type=count, default=2000, help="images put together again [2000]")
    add("--repetitions", type=count, default=3, help="how often everything is measured [3]")
    add("--threads", type=count, default=usable_cores(), help="threads of the training step [all cores]")
    add("--json", action="store_true", help="print the report as JSON instead of tables")
    add("--out", type=Path, metavar="FILE", help="write the report (JSON) to a file")
    return parser


def read_config(given: argparse.Namespace) -> RunConfig:
    """Return the settings of the training step; raises ConfigError as `simulations.throughput.command.merge`."""
    return merge({"dataset": given.dataset}, given.settings, DECIDED)


def _bench(given: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    try:
        config = read_config(given)
    except ConfigError as error:
        parser.error(str(error))
    check_out(given.out)
    options = bench.Options(
        images=given.images, batches=given.batches, steps=given.steps, warmup=given.warmup, restored=given.restored,
        repetitions=given.repetitions, threads=given.threads,
    )  # fmt: skip
    with terminable(), temporary_workspace(False, "psl-sealed-cost-") as workspace, Progress(sys.stderr) as progress:
        report = bench.run(config, options, workspace, progress)
    if given.out is not None:
        results.save(given.out, report)
    if given.json:
        print(results.encode(report).decode())
    else:
        table.show(report)
