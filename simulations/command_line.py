"""Shared by the benchmarks' commands: arguments, exit status, a workspace, and the report's output."""

from __future__ import annotations

import abc
import argparse
import contextlib
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from psl_flower.cli.output import exit_status
from psl_flower.config import CODECS, RunConfig
from psl_flower.config.fields import Settings
from psl_flower.errors import ConfigError, RunError
from simulations import reports
from simulations.options import Asked, add_options, read_options, text_of
from simulations.progress import Progress
from simulations.reports import Report
from simulations.settings import DEFAULTS, merge
from simulations.tables import show

T = TypeVar("T")


def new_parser(
    name: str, about: str, options: type[Settings] | None = None, *, epilog: str = "", folder: str = ""
) -> argparse.ArgumentParser:
    """Return a parser for `python -m simulations.<name>` with what all of these commands take, and its own options.

    With `folder`, a default, the command writes a folder of files and not one report.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m simulations.{name}", description=about, epilog=epilog, allow_abbrev=False
    )
    add = parser.add_argument
    add("--json", action="store_true", help="print the report as JSON instead of tables")
    if folder:
        text = f"write report, tables, plots and page there; finished trials are kept [{folder}]"
        add("--out", type=Path, metavar="FOLDER", default=Path(folder), help=text)
    else:
        add("--out", type=Path, metavar="FILE", help="write the report (JSON) to a file")
    if options is not None:
        add_options(parser, options)
    return parser


def check_out(out: Path | None) -> None:
    """Refuse what could not be written before minutes are spent; RunError says so."""
    if out is None:
        return
    folder = out.absolute().parent
    if not folder.is_dir() or not os.access(folder, os.W_OK) or out.is_dir():
        raise RunError(f"--out {out}: cannot write a file there")


@dataclass(frozen=True, slots=True, kw_only=True)
class Workspace:
    """Folder of stores and runs; `stays` says whether it is kept."""

    path: Path
    stays: bool


@contextlib.contextmanager
def workspace_of(prefix: str, *, keep: bool = False, given: Path | None = None) -> Iterator[Workspace]:
    """Yield a workspace: the given one, or a new one that goes afterwards unless it is kept.

    SIGTERM ends the command as Ctrl-C does meanwhile, so that it leaves no process behind, Flower's included.
    """
    with ended_by_sigterm():
        if given is not None:
            yield Workspace(path=given, stays=True)
        elif keep:
            path = Path(tempfile.mkdtemp(prefix=prefix))
            print(f"stores and runs stay in {path}", file=sys.stderr)
            yield Workspace(path=path, stays=True)
        else:
            with tempfile.TemporaryDirectory(prefix=prefix, ignore_cleanup_errors=True) as name:
                yield Workspace(path=Path(name), stays=False)


@contextlib.contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """Let SIGTERM raise KeyboardInterrupt meanwhile."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@dataclass(frozen=True, slots=True)
class Shortcut:
    """An option that stands for settings of the runs: these keys, or the one of the same name."""

    name: str
    help: str
    keys: tuple[str, ...] = ()
    choices: tuple[str, ...] | None = None
    flag: bool = False


_DATASET = Shortcut("dataset", "digits, a hub name or a folder, such as ../shared/data/cifar10 [digits]")
BATCH_SIZE = Shortcut("batch-size", "images in a mini-batch [128]")
WIRE = Shortcut(
    "wire", "codec of smashed data and gradients [bfloat16]", ("wire-activations", "wire-gradients"), choices=CODECS
)


class Benchmark(abc.ABC, Generic[Asked]):
    """A benchmark that measures runs, as a command: `python -m simulations.<name>`."""

    #: The name of its module, and its description.
    name: str
    about: str
    options: type[Asked]  #: The dataclass of its options.
    #: Keys of settings that it decides, each with the option that asks for it, if any.
    decided: Mapping[str, str]
    defaults: Mapping[str, object] = DEFAULTS  #: Default settings, used unless overridden.
    shortcuts: tuple[Shortcut, ...] = ()  #: Options that stand for settings, besides --dataset.
    keep = ""  #: Help of the flag that keeps the workspace; empty: there is none.
    folder = ""  #: Folder, as `new_parser` takes it.

    def settings_of(self, options: Asked) -> Mapping[str, object]:
        """Return the settings that follow from the options."""
        return {}

    def make_parser(self) -> argparse.ArgumentParser:
        """Return the parser of the command's arguments."""
        note = "With nothing else running: a busy machine makes every number meaningless."
        parser = new_parser(self.name, self.about, self.options, epilog=note, folder=self.folder)
        add = parser.add_argument
        add("settings", nargs="*", metavar="KEY=VALUE", help="any other setting of a run, as `psl train` takes it")
        for short in (_DATASET, *self.shortcuts):
            if short.flag:
                add(f"--{short.name}", action="store_true", default=None, help=short.help)
            else:
                add(f"--{short.name}", choices=short.choices, help=short.help)
        if self.keep:
            add("--keep", action="store_true", help=self.keep)
        return parser

    def read(self, given: argparse.Namespace) -> tuple[RunConfig, Asked]:
        """Return the runs' settings and the options that arguments ask for; raises ConfigError as `merge`."""
        options = read_options(given, self.options)
        asked = [
            f"{key}={text_of(value)}"
            for short in (_DATASET, *self.shortcuts)
            if (value := getattr(given, short.name.replace("-", "_"))) is not None
            for key in short.keys or (short.name,)
        ]
        return merge(asked, given.settings, self.decided, {**self.defaults, **self.settings_of(options)}), options

    @abc.abstractmethod
    def run(self, given: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
        """Run the command; raises PslError, and leaves bad arguments to the parser."""

    def main(self, arguments: Sequence[str] | None = None) -> int:
        """Run the command and return its exit status, see `exit_status`."""
        parser = self.make_parser()
        return exit_status(lambda: self.run(parser.parse_args(arguments), parser))


class ReportBenchmark(Benchmark[Asked]):
    """A benchmark whose report is made in one workspace and delivered as one file."""

    @abc.abstractmethod
    def measure(self, config: RunConfig, options: Asked, workspace: Workspace, progress: Progress) -> Report:
        """Measure and return the report; raises PslError if the dataset cannot be used, or a trial fails."""

    def run(self, given: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
        """Measure in a workspace, with progress, and deliver the report as the arguments ask."""
        config, options = checked(self.read, given, parser)
        check_out(given.out)
        workspace = workspace_of(
            f"psl-{self.name.replace('_', '-')}-",
            keep=bool(self.keep) and given.keep,
            given=getattr(given, "workspace", None),
        )
        with workspace as place, Progress() as progress:
            report = self.measure(config, options, place, progress)
        deliver(given, report)


def checked(read: Callable[[argparse.Namespace], T], given: argparse.Namespace, parser: argparse.ArgumentParser) -> T:
    """Read arguments; a PslError of the reading becomes an error of usage."""
    try:
        return read(given)
    except ConfigError as error:
        parser.error(str(error))


def deliver(given: argparse.Namespace, report: Report) -> None:
    """Write and print a report as the arguments of `new_parser` ask; raises RunError if the disk refuses."""
    if given.out is not None:
        reports.save(given.out, report)
    if given.json:
        print(reports.encode(report).decode())
    else:
        show(report)
