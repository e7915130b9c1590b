"""The command: from its arguments to the report, or from result files to the page."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Sequence

from psl_flower.config import CODECS, RunConfig
from psl_flower.system.machine import usable_cores
from simulations import page, reports
from simulations.command_line import Benchmark, check_out, count, exit_status, new_benchmark_parser, workspace_of
from simulations.settings import merge
from simulations.throughput import bench
from simulations.throughput.results import FEDERATED, Options
from simulations.throughput.table import present


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status, see `exit_status`."""
    parser = make_parser()

    def work() -> None:
        given = parser.parse_args(arguments)
        if given.page is None:
            _bench(given, parser)
        else:
            _page(given, parser)

    return exit_status(work)


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command's arguments."""
    parser = new_benchmark_parser(
        "throughput",
        "Measure the same training through Flower and in one process, in turns, on this machine: while one computes, "
        "the other is stopped, so that a machine whose speed drifts does not change their ratio.",
    )
    add = parser.add_argument
    add("--patch-size", help="HEIGHTxWIDTH in pixels [half the image each way: 2x2 patches]")
    add("--batch-size", type=int, help="images in a mini-batch [128]")
    add("--steps", type=count, default=20, help="timed training steps of a trial [20]")
    add("--turns", type=count, default=4, help="turns they are spread over, at most one to a step [4]")
    add("--warmup", type=count, default=3, help="steps before them, not timed, at least 1 [3]")
    add("--repetitions", type=count, default=3, help="trials of each transport, each in turns with one process [3]")
    add("--wire", choices=CODECS, help="codec of smashed data and gradients [bfloat16]")
    add("--autocast", action="store_true", default=None, help="bfloat16 autocast, in all modes")
    add("--transports", type=_transports, default=FEDERATED, metavar="LIST", help="which to try [stream,flower]")
    add("--threads", type=count, default=usable_cores(), help="threads of the one process and the Lower [all cores]")
    add("--round-at-cut", action="store_true", help="the one process rounds at the cut as the wire does")
    add("--keep", action="store_true", help="keep stores and runs, and say where")
    add("--page", nargs="*", metavar="FILE", help="measure nothing: make docs/benchmarks.md (--out) of result files")
    return parser


def read_config(given: argparse.Namespace) -> RunConfig:
    """Return the settings that all trials share; raises ConfigError as `merge`."""
    options = {
        "dataset": given.dataset,
        "patch-size": given.patch_size,
        "batch-size": given.batch_size,
        "wire-activations": given.wire,
        "wire-gradients": given.wire,
        "autocast": given.autocast,
    }
    return merge(options, given.settings, bench.DECIDED)


def _bench(given: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    measure = functools.partial(bench.run, keep=given.keep)
    benchmark = Benchmark(read_config=read_config, options=Options, measure=measure, present=present)
    benchmark.run(given, parser, workspace_of("psl-throughput-", keep=given.keep))


def _page(given: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    if given.settings or given.json:
        parser.error("--page takes result files and --out, nothing else")
    check_out(given.out)
    text = page.render(page.load_all(given.page))
    if given.out is None:
        print(text, end="")
    else:
        reports.write(given.out, text.encode())


def _transports(text: str) -> tuple[str, ...]:
    names = tuple(name for name in text.split(",") if name)
    if not names or len(set(names)) < len(names) or not set(names) <= set(FEDERATED):
        raise argparse.ArgumentTypeError(f"expected {','.join(FEDERATED)} or one of them, got {text!r}")
    return names
