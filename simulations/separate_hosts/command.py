"""The command: from its arguments to the report."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence

from psl_flower.config import CODECS, RunConfig
from psl_flower.system.machine import usable_cores
from simulations.command_line import Benchmark, count, exit_status, new_benchmark_parser, workspace_of
from simulations.separate_hosts import bench
from simulations.separate_hosts.results import Options
from simulations.separate_hosts.table import present
from simulations.settings import merge


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status, see `exit_status`."""
    parser = make_parser()
    return exit_status(lambda: _bench(parser.parse_args(arguments), parser))


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command's arguments."""
    parser = new_benchmark_parser(
        "separate_hosts",
        "Measure training between hosts of their own (network namespaces; needs root) with TLS, by delay of their "
        "links, beside the same in one process.",
    )
    add = parser.add_argument
    add("--batch-size", type=int, help="images in a mini-batch [128]")
    add("--wire", choices=CODECS, help="codec of smashed data and gradients [bfloat16]")
    add(
        "--delays", type=_delays, default=(0.0, 10.0, 50.0, 100.0), dest="delays_ms", metavar="LIST",
        help="one-way delays of every node's link, in ms [0,10,50,100]",
    )  # fmt: skip
    add("--steps", type=count, default=4, help="timed training steps of a trial [4]")
    add("--warmup", type=count, default=1, help="steps before them, not timed, at least 1 [1]")
    add("--repetitions", type=count, default=1, help="trials of each delay, taking turns [1]")
    add("--threads", type=count, default=usable_cores(), help="threads of the one process and the Lower [all cores]")
    add("--keep", action="store_true", help="keep the hosts' folders (logs, stores, runs), and say where")
    return parser


def read_config(given: argparse.Namespace) -> RunConfig:
    """Return the settings that all trials share; raises ConfigError as `merge`."""
    options = {
        "dataset": given.dataset,
        "batch-size": given.batch_size,
        "wire-activations": given.wire,
        "wire-gradients": given.wire,
    }
    return merge(options, given.settings, bench.DECIDED)


def _bench(given: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    benchmark = Benchmark(read_config=read_config, options=Options, measure=bench.run, present=present)
    benchmark.run(given, parser, workspace_of("psl-hosts-", keep=given.keep))


def _delays(text: str) -> tuple[float, ...]:
    try:
        delays = tuple(float(word) for word in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected milliseconds with commas between, got {text!r}") from None
    if len(set(delays)) < len(delays) or not all(math.isfinite(delay) and delay >= 0 for delay in delays):
        raise argparse.ArgumentTypeError(f"expected different delays of 0 or more, got {text!r}")
    return delays
