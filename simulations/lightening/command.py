"""The command: from its arguments to the report."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from psl_flower.config import RunConfig
from simulations.command_line import Benchmark, count, exit_status, new_benchmark_parser, workspace_of
from simulations.lightening import bench
from simulations.lightening.results import DEFAULTS, ENGINES, Options
from simulations.lightening.table import present
from simulations.settings import merge


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status, see `exit_status`; goals that are missed are no failure."""
    parser = make_parser()
    return exit_status(lambda: _bench(parser.parse_args(arguments), parser))


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command's arguments."""
    parser = new_benchmark_parser(
        "lightening",
        "Train a reference, lighten it by `psl lighten --local`, and measure all models in turns.",
    )
    add = parser.add_argument
    add("--epochs", type=count, default=10, help="passes of the reference over the training images [10]")
    add("--speedup", type=_factor, default=3.0, help="the light model is to be so many times as fast [3]")
    add("--shrink", type=_factor, default=4.0, help="and so many times smaller [4]")
    add("--max-drop", type=_share, default=0.01, help="accuracy that it may lose, 0 to below 1 [0.01]")
    add("--lighten", default="", metavar="WORDS", help="further arguments of psl lighten, such as '--epochs 5'")
    add("--threads", type=count, default=1, help="threads that speed is measured with [1]")
    add("--batch", type=count, default=32, help="images at a time when images/s are measured [32]")
    add("--repetitions", type=count, default=5, help="turns in which all models are measured [5]")
    text = "the reference: through flwr run, or as one graph in one process, whose weights are the same [flwr]"
    add("--engine", choices=ENGINES, default="flwr", help=text)
    text = "keep run and models in this workspace, and go on with what is there"
    add("--workspace", type=Path, metavar="FOLDER", help=text)
    return parser


def read_config(given: argparse.Namespace) -> RunConfig:
    """Return the settings of the reference's run; raises ConfigError as `merge`."""
    return merge({"dataset": given.dataset, "rounds": given.epochs}, given.settings, bench.DECIDED, DEFAULTS)


def _bench(given: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    benchmark = Benchmark(read_config=read_config, options=Options, measure=bench.run, present=present)
    benchmark.run(given, parser, workspace_of("psl-lightening-", given=given.workspace))


def _factor(text: str) -> float:
    return _number(text, 1.0, 1000.0)


def _share(text: str) -> float:
    return _number(text, 0.0, 0.999)


def _number(text: str, lowest: float, highest: float) -> float:
    try:
        number = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a number, got {text!r}") from None
    if not lowest <= number <= highest:
        raise argparse.ArgumentTypeError(f"expected {lowest:g} to {highest:g}, got {number:g}")
    return number
