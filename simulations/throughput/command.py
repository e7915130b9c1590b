"""The command: from its arguments to the report."""

from __future__ import annotations

import argparse
import contextlib
import glob
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from psl_flower.cli.train import parse_settings
from psl_flower.config import CODECS, RunConfig
from psl_flower.errors import ConfigError, PslError, RunError
from psl_flower.files import write_atomically
from psl_flower.machine import usable_cores
from simulations.sealed_cost import results as costs
from simulations.throughput import bench, page, results, table
from simulations.throughput.defaults import DECIDED, DEFAULTS
from simulations.throughput.progress import Progress
from simulations.throughput.results import FEDERATED

_FAILED, _INTERRUPTED = 1, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status: 0, 1 (failed), 2 (usage) or 130 (interrupted)."""
    parser = make_parser()

    def work() -> None:
        given = parser.parse_args(arguments)
        if given.page is None:
            _bench(given, parser)
        else:
            _page(given, parser)

    return exit_status(work)


def exit_status(work: Callable[[], None]) -> int:
    """Do a command's work and return its exit status; an error becomes one line on standard error."""
    try:
        work()
    except SystemExit as exit_:
        return exit_.code if isinstance(exit_.code, int) else 0
    except PslError as error:
        if os.environ.get("PSL_DEBUG") == "1":
            traceback.print_exc()
        print(f"error: {' '.join(str(error).split()) or type(error).__name__}", file=sys.stderr)
        return _FAILED
    except KeyboardInterrupt:
        return _INTERRUPTED
    return 0


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command's arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m simulations.throughput",
        description="Measure the same training through Flower and in one process, side by side, on this machine.",
        epilog="With nothing else running: a busy machine makes every number meaningless.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("settings", nargs="*", metavar="KEY=VALUE", help="any other setting of a run, as `psl train` takes it")
    add("--dataset", help="digits, a hub name or a folder, such as ../shared/data/cifar10 [digits]")
    add("--patch-size", help="HEIGHTxWIDTH in pixels [half the image each way: 2x2 patches]")
    add("--batch-size", type=int, help="images in a mini-batch [128]")
    add("--steps", type=count, default=20, help="timed training steps of a trial [20]")
    add("--warmup", type=count, default=3, help="steps before them, not timed, at least 1 [3]")
    add("--repetitions", type=count, default=3, help="trials of each mode, taking turns [3]")
    add("--wire", choices=CODECS, help="codec of smashed data and gradients [bfloat16]")
    add("--autocast", action="store_true", default=None, help="bfloat16 autocast, in all modes")
    add("--transports", type=_transports, default=FEDERATED, metavar="LIST", help="which to try [stream,flower]")
    add("--threads", type=count, default=usable_cores(), help="threads of the one process and the Lower [all cores]")
    add("--round-at-cut", action="store_true", help="the one process rounds at the cut as the wire does")
    add("--keep", action="store_true", help="keep stores and runs, and say where")
    add("--json", action="store_true", help="print the report as JSON instead of tables")
    add("--out", type=Path, metavar="FILE", help="write the report (JSON), or the page, to a file")
    add("--page", nargs="*", metavar="FILE", help="measure nothing: make docs/benchmarks.md of these result files")
    return parser


def read_config(given: argparse.Namespace) -> RunConfig:
    """Return the settings that all trials share.

    Raises
    ------
    ConfigError
        If a setting is unknown, mistyped, contradictory, given twice, or the benchmark's own to decide.
    """
    options = {
        "dataset": given.dataset,
        "patch-size": given.patch_size,
        "batch-size": given.batch_size,
        "wire-activations": given.wire,
        "wire-gradients": given.wire,
        "autocast": given.autocast,
    }
    return merge(options, given.settings, DECIDED)


def merge(options: Mapping[str, object], texts: list[str], decided: Mapping[str, str]) -> RunConfig:
    """Return a run's settings of a command's options (None: not given) and KEY=VALUE arguments.

    Parameters
    ----------
    options : mapping
        By the settings' keys.
    texts : list of str
        The arguments.
    decided : mapping
        Keys that the benchmark decides, each with the option that asks for it, or an empty text.

    Raises
    ------
    ConfigError
        As `read_config`.
    """
    asked = {key: value for key, value in options.items() if value is not None}
    settings = parse_settings(texts)
    for key in settings:
        if key in decided:
            option = decided[key]
            raise ConfigError(f"{key}: the benchmark decides it{f'; see {option}' if option else ''}")
        if key in asked:
            raise ConfigError(f"{key} is given twice, as an option and as KEY=VALUE")
    return RunConfig.from_mapping({**DEFAULTS, **asked, **settings})


def _bench(given: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    try:
        config = read_config(given)
    except ConfigError as error:
        parser.error(str(error))
    check_out(given.out)
    with terminable(), temporary_workspace(given.keep) as workspace, Progress(sys.stderr) as progress:
        report = bench.run(
            config,
            bench.Options(
                transports=given.transports,
                steps=given.steps,
                warmup=given.warmup,
                repetitions=given.repetitions,
                threads=given.threads,
                round_at_cut=given.round_at_cut,
            ),
            workspace,
            progress,
            keep=given.keep,
        )
    if given.out is not None:
        results.save(given.out, report)
    if given.json:
        print(results.encode(report).decode())
    else:
        table.show(report)


def _page(given: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    if given.settings or given.json:
        parser.error("--page takes result files and --out, nothing else")
    check_out(given.out)
    text = page.render(_reports(given.page))
    if given.out is None:
        print(text, end="")
        return
    try:
        write_atomically(given.out, text.encode())
    except OSError as error:
        raise RunError(f"{given.out}: cannot write: {error.strerror or error}") from error


def _reports(names: Sequence[str]) -> dict[str, page.AnyReport]:
    """Return the reports of result files, by file name; those of benchmarks without a section are passed over."""
    reports: dict[str, page.AnyReport] = {}
    for name in names:
        # A shell leaves a pattern that fits nothing as it is: no result file yet.
        for path in sorted(glob.glob(name)) if glob.has_magic(name) else [name]:
            report = results.load(Path(path), results.Report) or results.load(Path(path), costs.Report)
            if report is not None:
                reports[Path(path).name] = report
    return reports


def check_out(out: Path | None) -> None:
    """Refuse what could not be written before minutes are spent; RunError says so."""
    if out is None:
        return
    folder = out.absolute().parent
    if not folder.is_dir() or not os.access(folder, os.W_OK) or out.is_dir():
        raise RunError(f"--out {out}: cannot write a file there")


@contextlib.contextmanager
def temporary_workspace(keep: bool, prefix: str = "psl-throughput-") -> Iterator[Path]:
    """Yield a workspace that goes afterwards, unless it is kept."""
    if keep:
        path = Path(tempfile.mkdtemp(prefix=prefix))
        print(f"stores and runs stay in {path}", file=sys.stderr)
        yield path
        return
    with tempfile.TemporaryDirectory(prefix=prefix, ignore_cleanup_errors=True) as name:
        yield Path(name)


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Let SIGTERM end the command as Ctrl-C does, so that it leaves no process of Flower's behind."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def count(text: str) -> int:
    """Read an argument that is a whole number from 1 on."""
    try:
        number = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a whole number, got {text!r}") from None
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, got {number}")
    return number


def _transports(text: str) -> tuple[str, ...]:
    names = tuple(name for name in text.split(",") if name)
    if not names or len(set(names)) < len(names) or not set(names) <= set(FEDERATED):
        raise argparse.ArgumentTypeError(f"expected {','.join(FEDERATED)} or one of them, got {text!r}")
    return names
