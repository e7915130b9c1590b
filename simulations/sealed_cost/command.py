"""The command: from its arguments to the report."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from psl_flower.config import RunConfig
from psl_flower.system.machine import usable_cores
from simulations.command_line import Benchmark, count, exit_status, new_benchmark_parser, workspace_of
from simulations.sealed_cost import bench
from simulations.sealed_cost.results import Options
from simulations.sealed_cost.table import present
from simulations.settings import merge


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status, see `exit_status`."""
    parser = make_parser()
    return exit_status(lambda: _bench(parser.parse_args(arguments), parser))


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command's arguments."""
    parser = new_benchmark_parser(
        "sealed_cost", "Measure what sealing costs on this machine: reads beside a step, ingest, restoration, memory."
    )
    add = parser.add_argument
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
    return parser


def read_config(given: argparse.Namespace) -> RunConfig:
    """Return the settings of the training step; raises ConfigError as `merge`."""
    return merge({"dataset": given.dataset}, given.settings, bench.DECIDED)


def _bench(given: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    benchmark = Benchmark(read_config=read_config, options=Options, measure=bench.run, present=present)
    benchmark.run(given, parser, workspace_of("psl-sealed-cost-"))
