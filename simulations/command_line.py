"""What the benchmarks' commands share: arguments, exit status, a workspace, and what is done with the report."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import msgspec

from psl_flower.config import RunConfig
from psl_flower.errors import ConfigError, PslError, RunError
from psl_flower.system.machine import forbid_core_dumps
from psl_flower.system.streams import drop_output, open_streams
from simulations import reports
from simulations.progress import Progress
from simulations.reports import Report
from simulations.tables import Presentation, show

Asked = TypeVar("Asked")
Measured = TypeVar("Measured", bound=Report)
_FAILED, _INTERRUPTED = 1, 130


def new_parser(name: str, description: str, epilog: str = "", *, folder: str = "") -> argparse.ArgumentParser:
    """Return a parser for `python -m simulations.<name>` with what all of these commands take.

    With `folder`, a default, the command writes a folder of files and not one report.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m simulations.{name}", description=description, epilog=epilog, allow_abbrev=False
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON instead of tables")
    if folder:
        text = f"write report, tables, plots and page there; what is there is not done again [{folder}]"
        parser.add_argument("--out", type=Path, metavar="FOLDER", default=Path(folder), help=text)
    else:
        parser.add_argument("--out", type=Path, metavar="FILE", help="write the report (JSON) to a file")
    return parser


def new_benchmark_parser(name: str, description: str, *, folder: str = "") -> argparse.ArgumentParser:
    """Return a parser as `new_parser` does, for a command that also takes a dataset and a run's settings."""
    note = "With nothing else running: a busy machine makes every number meaningless."
    parser = new_parser(name, description, note, folder=folder)
    add = parser.add_argument
    add("settings", nargs="*", metavar="KEY=VALUE", help="any other setting of a run, as `psl train` takes it")
    add("--dataset", help="digits, a hub name or a folder, such as ../shared/data/cifar10 [digits]")
    return parser


def count(text: str) -> int:
    """Read an argument that is a whole number from 1 on."""
    try:
        number = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a whole number, got {text!r}") from None
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, got {number}")
    return number


def checked(
    read_config: Callable[[argparse.Namespace], RunConfig], given: argparse.Namespace, parser: argparse.ArgumentParser
) -> RunConfig:
    """Return the settings that arguments ask for; what is wrong with them is an error of usage."""
    try:
        return read_config(given)
    except ConfigError as error:
        parser.error(str(error))


def check_out(out: Path | None) -> None:
    """Refuse what could not be written before minutes are spent; RunError says so."""
    if out is None:
        return
    folder = out.absolute().parent
    if not folder.is_dir() or not os.access(folder, os.W_OK) or out.is_dir():
        raise RunError(f"--out {out}: cannot write a file there")


def exit_status(work: Callable[[], None]) -> int:
    """Do a command's work and return its exit status: 0, 1 (failed), 2 (usage) or 130 (interrupted).

    An error becomes one line on standard error.
    """
    forbid_core_dumps()  # some open keys
    open_streams()
    try:
        work()
        sys.stdout.flush()
    except SystemExit as exit_:
        return exit_.code if isinstance(exit_.code, int) else 0
    except PslError as error:
        if os.environ.get("PSL_DEBUG") == "1":
            traceback.print_exc()
        print(f"error: {' '.join(str(error).split()) or type(error).__name__}", file=sys.stderr)
        return _FAILED
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:
        drop_output()  # whoever read it has gone
        return _FAILED
    return 0


@contextlib.contextmanager
def workspace_of(prefix: str, *, keep: bool = False, given: Path | None = None) -> Iterator[Path]:
    """Yield a workspace: the given one, or a new one that goes afterwards unless it is kept.

    SIGTERM ends the command as Ctrl-C does meanwhile, so that it leaves no process of its own or of Flower's behind.
    """
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if given is not None:
            yield given
        elif keep:
            path = Path(tempfile.mkdtemp(prefix=prefix))
            print(f"stores and runs stay in {path}", file=sys.stderr)
            yield path
        else:
            with tempfile.TemporaryDirectory(prefix=prefix, ignore_cleanup_errors=True) as name:
                yield Path(name)
    finally:
        signal.signal(signal.SIGTERM, before)


@dataclass(frozen=True, slots=True, kw_only=True)
class Benchmark(Generic[Asked, Measured]):
    """What one benchmark's command does with its arguments.

    Attributes
    ----------
    read_config : callable
        Returns the run's settings that arguments ask for.
    options : type
        The struct that takes the other arguments, by name.
    measure : callable
        Called as measure(config, options, workspace, progress); returns the report.
    present : callable
        Returns the report's tables.
    """

    read_config: Callable[[argparse.Namespace], RunConfig]
    options: type[Asked]
    measure: Callable[[RunConfig, Asked, Path, Progress], Measured]
    present: Callable[[Measured], Presentation]

    def run(
        self, given: argparse.Namespace, parser: argparse.ArgumentParser, workspace: AbstractContextManager[Path]
    ) -> None:
        """Measure in a workspace, with progress, and deliver the report as the arguments ask."""
        config = checked(self.read_config, given, parser)
        check_out(given.out)
        options = msgspec.convert(given, self.options, from_attributes=True)
        with workspace as place, Progress() as progress:
            report = self.measure(config, options, place, progress)
        deliver(given, report, self.present(report))


def deliver(given: argparse.Namespace, report: Report, presentation: Presentation) -> None:
    """Write and print a report as the arguments of `new_parser` ask; raises RunError if the disk refuses."""
    if given.out is not None:
        reports.save(given.out, report)
    if given.json:
        print(reports.encode(report).decode())
    else:
        show(presentation)
