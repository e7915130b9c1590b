"""Benchmarks with their own options: their reports, and their commands, which keep every finished trial."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

import msgspec

from psl_flower.cli.output import exit_status
from psl_flower.config.fields import Settings
from simulations import reports
from simulations.command_line import check_out, deliver, new_parser, workspace_of
from simulations.machine import circumstances
from simulations.options import Asked, read_options, texts
from simulations.progress import Progress
from simulations.tables import again


class Report(reports.Report, frozen=True, kw_only=True):
    """A result file of a benchmark whose settings are its options; `measurements` holds its trials."""

    settings: Settings

    @property
    def command(self) -> str:
        """The command line that measures the same again."""
        module = self.benchmark.replace("-", "_")
        return again(module, texts(self.settings).items(), getattr(self.settings, "config", {}))


Kind = TypeVar("Kind", bound=Report)


@dataclass(slots=True, kw_only=True)
class Study(Generic[Asked, Kind]):
    """A measurement in progress."""

    options: Asked
    folder: Path  #: Folder for temporary files.
    progress: Progress  #: Progress display.
    report: Kind  #: Measurements so far, those of an earlier, interrupted command first.
    out: Path | None  #: File of the report.

    def keep(self, *trials: object, **changes: object) -> None:
        """Add trials to the report, with other changes, and save it; raises RunError if the disk refuses."""
        measured: Any = self.report
        changes["measurements"] = (*measured.measurements, *trials)
        self.report = msgspec.structs.replace(self.report, **changes)
        if self.out is not None:
            reports.save(self.out, self.report)


def command(
    name: str, about: str, options: type[Asked], report: type[Kind], measure: Callable[[Study[Asked, Kind]], None]
) -> Callable[..., int]:
    """Return a benchmark's `main`, which takes arguments, by default those of the process, and returns `exit_status`.

    `measure` does the trials that its report lacks.
    """

    def work(arguments: Sequence[str] | None) -> None:
        given = new_parser(name, about, options).parse_args(arguments)
        check_out(given.out)
        asked, make = read_options(given, options), cast("Callable[..., Kind]", report)
        begun = reports.begun(given.out, make(**circumstances(), settings=asked, measurements=()))
        with workspace_of(f"psl-{name}-") as workspace, Progress() as progress:
            study = Study(options=asked, folder=workspace.path, progress=progress, report=begun, out=given.out)
            measure(study)
        deliver(given, study.report)

    return lambda arguments=None: exit_status(lambda: work(arguments))
